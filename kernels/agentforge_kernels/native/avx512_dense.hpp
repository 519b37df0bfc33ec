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

// The four accumulators of a line's nested masks to the sums of its rows: the mask of 2 (f + 1) bits counts row
// field i 4^i times for all i <= f, so neighbours differ by 4^f times the sum of field f. Exact modulo 2^32
// while 64 * |sum| < 2^31: 2 * 128 * 64 * 65,536 columns.
static AGENTFORGE_INLINE void separate_rows(__m512i (&sums)[4], const __m512i (&nested)[4]) {
  sums[0] = nested[0];
  sums[1] = _mm512_srai_epi32(_mm512_sub_epi32(nested[1], nested[0]), 2);
  sums[2] = _mm512_srai_epi32(_mm512_sub_epi32(nested[2], nested[1]), 4);
  sums[3] = _mm512_srai_epi32(_mm512_sub_epi32(nested[3], nested[2]), 6);
}

// One token times `groups` groups of one panel. A line (64 rows, 4 columns) costs 1 load, 3 ands and 4
// vpdpbusd; the four lines of a group have accumulators of their own, since vpdpbusd takes 5 cycles and two
// start in one. With kSparse, group i meets the activations of group index[i], whose sum is added to `excess`;
// without, groups follow each other and their sum is known.
template <bool kSparse>
static AGENTFORGE_INLINE void multiply_panel(const uint8_t* weights, int64_t groups, const int8_t* q,
                                             const int32_t* index, const int32_t* group_sums, int32_t excess,
                                             float scale, const Epilogue& epilogue, int64_t row) {
  const __m512i masks[3] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0f), _mm512_set1_epi8(0x3f)};
  __m512i accumulators[4][4];  // [line][nested mask]
  AGENTFORGE_UNROLL for (int line = 0; line < 4; ++line) {
    AGENTFORGE_UNROLL for (int nested = 0; nested < 4; ++nested)
      accumulators[line][nested] = _mm512_setzero_si512();
  }
  const int8_t* values = q;
  const uint8_t* const end = weights + groups * kGroupBytes;
  for (; weights < end; weights += kGroupBytes) {
    if constexpr (kSparse) {
      values = q + int64_t{*index} * kGroupColumns;
      excess += group_sums[*index++];
    }
    AGENTFORGE_UNROLL for (int line = 0; line < 4; ++line) {
      _mm_prefetch(reinterpret_cast<const char*>(weights) + kPrefetchBytes + kLineBytes * line, _MM_HINT_T0);
      const __m512i codes = _mm512_loadu_si512(weights + kLineBytes * line);
      const __m512i words = broadcast_word(values + kLineColumns * line);
      AGENTFORGE_UNROLL for (int nested = 0; nested < 3; ++nested)
        dot4(accumulators[line][nested], _mm512_and_si512(codes, masks[nested]), words);
      dot4(accumulators[line][3], codes, words);
    }
    if constexpr (!kSparse) values += kGroupColumns;
  }
  __m512i totals[4], sums[4];
  AGENTFORGE_UNROLL for (int nested = 0; nested < 4; ++nested)
    totals[nested] = _mm512_add_epi32(_mm512_add_epi32(accumulators[0][nested], accumulators[1][nested]),
                                      _mm512_add_epi32(accumulators[2][nested], accumulators[3][nested]));
  separate_rows(sums, totals);
  AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter)
    sums[quarter] = _mm512_sub_epi32(sums[quarter], _mm512_set1_epi32(excess));
  finish_panel(epilogue, row, sums, scale);
}

static void dense_matvec(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum,
                         float scale, const Epilogue& epilogue, int64_t panel_begin,
                         int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel)
    multiply_panel<false>(panels + panel * groups * kGroupBytes, groups, q, nullptr, nullptr, sum, scale,
                          epilogue, panel * kPanelRows);
}

// `packed` under a mask of one byte. In assembly, with the mask in memory: three more registers would make
// GCC spill accumulators of the largest tile.
static AGENTFORGE_INLINE __m512i masked(__m512i packed, const uint32_t& mask) {
  __m512i codes;
  __asm__("vpandd %2%{1to16%}, %1, %0" : "=v"(codes) : "v"(packed), "m"(mask));
  return codes;
}

static const uint32_t kNestedMasks[3] = {0x03030303u, 0x0f0f0f0fu, 0x3f3f3f3fu};

// One line (four columns) for all rows of the panel and T tokens.
template <int T>
static AGENTFORGE_INLINE void tile_step(__m512i (&accumulators)[4][T], const uint8_t* line, const int32_t* words) {
  __m512i codes[4];
  codes[3] = _mm512_loadu_si512(line);
  AGENTFORGE_UNROLL for (int nested = 0; nested < 3; ++nested)
    codes[nested] = masked(codes[3], kNestedMasks[nested]);
  AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
    dot4_panel(accumulators[0][token], accumulators[1][token], accumulators[2][token],
               accumulators[3][token], codes, words + token);
}

// One token's sums of a tile to its outputs, or to where they wait for the next column block.
static AGENTFORGE_INLINE void finish_token(const TileCall& call, int token, __m512i (&sums)[4], int32_t excess) {
  int32_t* const carry = call.carry + token * kPanelRows;
  if (!call.first) {
    AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter)
      sums[quarter] = _mm512_add_epi32(sums[quarter], _mm512_load_si512(carry + 16 * quarter));
  }
  if (!call.last) {
    AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter)
      _mm512_store_si512(carry + 16 * quarter, sums[quarter]);
    return;
  }
  AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter)
    sums[quarter] = _mm512_sub_epi32(sums[quarter], _mm512_set1_epi32(excess));
  finish_panel(call.epilogue->from_token(token), call.row, sums, call.scale[token]);
}

// 64 rows x T tokens: up to 24 accumulators, 4 registers of codes, 1 of activations. A group is 16 T vpdpbusd
// and 12 ands. Small tiles have a second set of accumulators for every other line, to hide the latency.
template <int T>
static void dense_tile(const TileCall& call) {
  constexpr int kSets = T <= 2 ? 2 : 1;
  __m512i accumulators[kSets][4][T];
  AGENTFORGE_UNROLL for (int set = 0; set < kSets; ++set) {
    AGENTFORGE_UNROLL for (int nested = 0; nested < 4; ++nested) {
      AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
        accumulators[set][nested][token] = _mm512_setzero_si512();
    }
  }
  const uint8_t* weights = call.weights;
  const uint8_t* const end = weights + call.groups * kGroupBytes;
  const int32_t* offset = call.offset;
  const char* next = reinterpret_cast<const char*>(call.prefetch);
  const int64_t step = call.prefetch_step;
  for (; weights < end; weights += kGroupBytes) {
    const int32_t* const words = call.words + *offset++;
    AGENTFORGE_UNROLL for (int line = 0; line < 4; ++line) {
      _mm_prefetch(next, _MM_HINT_T0);
      next += step;
      tile_step<T>(accumulators[line % kSets], weights + kLineBytes * line, words + line * T);
    }
  }
  AGENTFORGE_UNROLL for (int token = 0; token < T; ++token) {
    __m512i nested[4], sums[4];
    AGENTFORGE_UNROLL for (int mask = 0; mask < 4; ++mask)
      nested[mask] = kSets == 1 ? accumulators[0][mask][token]
                                : _mm512_add_epi32(accumulators[0][mask][token],
                                                   accumulators[kSets - 1][mask][token]);
    separate_rows(sums, nested);
    finish_token(call, token, sums, call.sum[token]);
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
