// Dense ternary matmul, AVX-512 with VNNI.
//
// The ternary matrix is u8 codes 0, 1, 2 (first operand of vpdpbusd, unsigned), activations are the
// signed operand; every 32-bit lane is one output row, so there is no horizontal sum, and the excess of
// codes over weights is one subtraction of the sum of activations.
#pragma once

#include "avx512_quantize.hpp"
#include "dense_kernels.hpp"
#include "epilogue_avx512.hpp"

#if AGENTFORGE_X86
namespace agentforge::avx512 {

// How the words of T tokens interleave, for 16 words of each: lane l of output register j takes word
// (16 j + l) / T of token (16 j + l) % T.
template <int T>
struct Interleave {
  alignas(64) int32_t word[T][16] = {};
  uint16_t lanes[T][T] = {};  // [output][token]: which lanes belong to the token

  constexpr Interleave() {
    for (int output = 0; output < T; ++output)
      for (int lane = 0; lane < 16; ++lane) {
        word[output][lane] = (16 * output + lane) / T;
        lanes[output][(16 * output + lane) % T] |= static_cast<uint16_t>(1u << lane);
      }
  }
};

template <int T>
static constexpr Interleave<T> kInterleave{};

}  // namespace agentforge::avx512

AGENTFORGE_TARGET_AVX512VNNI
namespace agentforge::avx512 {

// How far ahead of its loads a matvec prefetches. The hardware stops at 4 KB pages; 4 KB ahead is
// +8..20 % from the third-level cache, and reaches into the next matrix of an arena.
constexpr int64_t kPrefetchBytes = 4096;

// One token, one panel at a time: 64 rows are four registers of words; the four 2-bit fields are
// masked, not shifted, each into its own accumulator (scaled 1, 4, 16, 64), and shifted once at the
// end. 256 weights cost 1 load, 4 ands and 4 vpdpbusd: 8 cycles a group where two vpdpbusd and four
// vector operations a cycle are possible.
static void dense_matvec(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum,
                         float scale, const Epilogue& epilogue, int64_t panel_begin,
                         int64_t panel_end) {
  const __m512i masks[4] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c), _mm512_set1_epi8(0x30),
                            _mm512_set1_epi8(static_cast<char>(0xc0))};
  const __m512i excess = _mm512_set1_epi32(sum);
  const uint8_t* weights = panels + panel_begin * groups * kGroupBytes;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    __m512i accumulators[4][4];  // [quarter of the panel][field]
    AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter) {
      AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field)
        accumulators[quarter][field] = _mm512_setzero_si512();
    }
    const int8_t* values = q;
    const uint8_t* const end = weights + groups * kGroupBytes;
    for (; weights < end; weights += kGroupBytes, values += kGroupColumns) {
      __m512i words[4];
      AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field)
        words[field] = broadcast_word(values + 4 * field);
      AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter) {
        _mm_prefetch(reinterpret_cast<const char*>(weights) + kPrefetchBytes + 64 * quarter, _MM_HINT_T0);
        const __m512i packed = _mm512_loadu_si512(weights + 64 * quarter);
        AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field)
          dot4(accumulators[quarter][field], _mm512_and_si512(packed, masks[field]), words[field]);
      }
    }
    __m512i sums[4];
    AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter) {
      const __m512i low = _mm512_add_epi32(accumulators[quarter][0], _mm512_srai_epi32(accumulators[quarter][1], 2));
      const __m512i high = _mm512_add_epi32(_mm512_srai_epi32(accumulators[quarter][2], 4),
                                            _mm512_srai_epi32(accumulators[quarter][3], 6));
      sums[quarter] = _mm512_sub_epi32(_mm512_add_epi32(low, high), excess);
    }
    finish_panel(epilogue, panel * kPanelRows, sums, scale);
  }
}

template <int Field>
static AGENTFORGE_INLINE __m512i field_codes(__m512i packed, __m512i mask) {
  return _mm512_and_si512(Field == 0 ? packed : _mm512_srli_epi16(packed, 2 * Field), mask);
}

// One field (four columns) of a group for all rows of the panel and T tokens.
template <int T, int Field>
static AGENTFORGE_INLINE void tile_step(__m512i (&accumulators)[4][T], const uint8_t* weights,
                                        const int32_t* words, __m512i mask) {
  __m512i codes[4];
  AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter)
    codes[quarter] = field_codes<Field>(_mm512_loadu_si512(weights + 64 * quarter), mask);
  AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
    dot4_panel(accumulators[0][token], accumulators[1][token], accumulators[2][token],
               accumulators[3][token], codes, words + Field * T + token);
}

// 64 rows x T tokens: up to 24 accumulators, 4 registers of codes, 1 of activations, 1 mask. A group is
// 16 T vpdpbusd on two ports; unpacking (28 operations) hides on the other two from T = 2.
template <int T>
static void dense_tile(const TileCall& call) {
  const __m512i mask = _mm512_set1_epi8(3);
  __m512i accumulators[4][T];
  AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter) {
    AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
      accumulators[quarter][token] =
          call.first ? _mm512_setzero_si512()
                     : _mm512_load_si512(call.carry + token * kPanelRows + 16 * quarter);
  }
  const uint8_t* weights = call.weights;
  const uint8_t* const end = weights + call.groups * kGroupBytes;
  const int32_t* words = call.words;
  const char* next = reinterpret_cast<const char*>(call.prefetch);
  const int64_t step = call.prefetch_step;
  for (; weights < end; weights += kGroupBytes, words += 4 * T) {
    _mm_prefetch(next, _MM_HINT_T0);
    tile_step<T, 0>(accumulators, weights, words, mask);
    _mm_prefetch(next + step, _MM_HINT_T0);
    tile_step<T, 1>(accumulators, weights, words, mask);
    next += 2 * step;
    _mm_prefetch(next, _MM_HINT_T0);
    tile_step<T, 2>(accumulators, weights, words, mask);
    _mm_prefetch(next + step, _MM_HINT_T0);
    tile_step<T, 3>(accumulators, weights, words, mask);
    next += 2 * step;
  }
  if (!call.last) {
    AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter) {
      AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
        _mm512_store_si512(call.carry + token * kPanelRows + 16 * quarter, accumulators[quarter][token]);
    }
    return;
  }
  AGENTFORGE_UNROLL for (int token = 0; token < T; ++token) {
    const Epilogue epilogue = call.epilogue->from_token(token);
    const __m512i excess = _mm512_set1_epi32(call.sum[token]);
    __m512i sums[4];
    AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter)
      sums[quarter] = _mm512_sub_epi32(accumulators[quarter][token], excess);
    finish_panel(epilogue, call.row, sums, call.scale[token]);
  }
}

// Interleaves the words of T tokens with T * T permutations for 16 T words (scalar stores cost 10 % of
// a 512 x 512 matmul).
template <int T>
static void pack_tokens(const int8_t* q, int64_t stride, int64_t count, int32_t* words) {
  for (int64_t word = 0; word < count; word += 16, words += 16 * T) {
    const int64_t left = count - word;
    const __mmask16 present = columns_mask(left);
    __m512i rows[T];
    AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
      rows[token] = _mm512_maskz_loadu_epi32(present, q + token * stride + 4 * word);
    AGENTFORGE_UNROLL for (int output = 0; output < T; ++output) {
      const __m512i source = _mm512_load_si512(kInterleave<T>.word[output]);
      __m512i mixed = _mm512_permutexvar_epi32(source, rows[0]);
      AGENTFORGE_UNROLL for (int token = 1; token < T; ++token)
        mixed = _mm512_mask_permutexvar_epi32(mixed, kInterleave<T>.lanes[output][token], source,
                                              rows[token]);
      _mm512_mask_storeu_epi32(words + 16 * output, columns_mask(left * T - 16 * output), mixed);
    }
  }
}

static const DenseKernels dense_kernels = {
    quantize_row,
    dense_matvec,
    6,
    {nullptr, dense_tile<1>, dense_tile<2>, dense_tile<3>, dense_tile<4>, dense_tile<5>, dense_tile<6>},
    {nullptr, pack_tokens<1>, pack_tokens<2>, pack_tokens<3>, pack_tokens<4>, pack_tokens<5>,
     pack_tokens<6>}};

}  // namespace agentforge::avx512
AGENTFORGE_TARGET_END
#endif
