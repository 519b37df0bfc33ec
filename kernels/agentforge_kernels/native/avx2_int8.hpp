// int8 matmul, AVX2: bytes are widened to 16 bits, because vpmaddubsw saturates at 255 * 127 * 2.
#pragma once

#include "avx2.hpp"
#include "pack_lanes.hpp"

#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX2
namespace agentforge::avx2 {

// Four activations, broadcast, as the pairs of int16 that meet columns 0 and 2, and 1 and 3.
struct WidePairs {
  __m256i even, odd;
};

static AGENTFORGE_INLINE WidePairs widen_word(const void* four_activations) {
  const __m256i word = _mm256_set1_epi32(load_unaligned<int32_t>(four_activations));
  return {_mm256_srai_epi16(_mm256_slli_epi16(word, 8), 8), _mm256_srai_epi16(word, 8)};
}

// sums += products of 8 rows and four columns, modulo 2^32.
static AGENTFORGE_INLINE void add_int8(__m256i& sums, __m256i even, __m256i odd, const WidePairs& x) {
  sums = _mm256_add_epi32(
      sums, _mm256_add_epi32(_mm256_madd_epi16(even, x.even), _mm256_madd_epi16(odd, x.odd)));
}

alignas(32) static const uint32_t kEvenBytes[8] = {0x00ff00ff, 0x00ff00ff, 0x00ff00ff, 0x00ff00ff,
                                                  0x00ff00ff, 0x00ff00ff, 0x00ff00ff, 0x00ff00ff};

// In assembly, with the mask in memory: there is no register left for it in the largest tile.
static AGENTFORGE_INLINE __m256i even_bytes(__m256i bytes) {
#if defined(__clang__)
  return _mm256_and_si256(bytes, load_32(kEvenBytes));
#else
  __m256i even;
  __asm__("vpand %2, %1, %0" : "=x"(even) : "x"(bytes), "m"(kEvenBytes));
  return even;
#endif
}
static AGENTFORGE_INLINE __m256i odd_bytes(__m256i bytes) { return _mm256_srli_epi16(bytes, 8); }

// The same from the stored bytes. In assembly, because GCC takes so many registers for products that it spills
// three of the eight sums of a panel.
static AGENTFORGE_INLINE void add_int8_bytes(__m256i& sums, __m256i bytes, const WidePairs& x) {
#if defined(__clang__)
  add_int8(sums, even_bytes(bytes), odd_bytes(bytes), x);
#else
  __m256i even;
  __asm__(
      "vpand %5, %1, %2\n\t"
      "vpsrlw $8, %1, %1\n\t"
      "vpmaddwd %3, %2, %2\n\t"
      "vpmaddwd %4, %1, %1\n\t"
      "vpaddd %1, %2, %2\n\t"
      "vpaddd %2, %0, %0"
      : "+&x"(sums), "+&x"(bytes), "=&x"(even)
      : "x"(x.even), "x"(x.odd), "m"(kEvenBytes));
#endif
}

// One token: a panel is eight vectors of 8 rows.
static void int8_matvec(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum, float scale,
                        const Epilogue& epilogue, int64_t panel_begin, int64_t panel_end) {
  const uint8_t* step = panels + panel_begin * groups * kInt8GroupBytes;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    __m256i sums[8];
    AGENTFORGE_UNROLL for (int vector = 0; vector < 8; ++vector) sums[vector] = _mm256_setzero_si256();
    const uint8_t* const end = step + groups * kInt8GroupBytes;
    for (const int8_t* x = q; step < end; step += kStepBytes, x += kLineColumns) {
      const WidePairs pairs = widen_word(x);
      AGENTFORGE_UNROLL for (int vector = 0; vector < 8; ++vector) {
        if (vector % 2 == 0)
          _mm_prefetch(reinterpret_cast<const char*>(step) + 4096 + 32 * vector, _MM_HINT_T0);
        add_int8_bytes(sums[vector], load_32(step + 32 * vector), pairs);
      }
    }
    __m256i totals[8];  // the accumulators stay in registers: only their copy has an address
    AGENTFORGE_UNROLL for (int vector = 0; vector < 8; ++vector) totals[vector] = sums[vector];
    finish_panel(epilogue, panel * kPanelRows, totals, int8_excess(sum), scale);
  }
}

// Complete sums in `carry` to outputs, as finish_tile does for ternary weights.
static void finish_int8_tile(const TileCall& call, int tokens) {
  for (int token = 0; token < tokens; ++token) {
    const Epilogue epilogue = call.epilogue->from_token(token);
    const __m256i excess = _mm256_set1_epi32(int8_excess(call.sum[token]));
    for (int64_t row = 0; row < kPanelRows; row += 8)
      finish_8_rows(epilogue, call.row + row,
                    _mm256_sub_epi32(load_32(call.carry + token * kPanelRows + row), excess), call.scale[token]);
  }
}

// 16 rows x T tokens a pass; at T = 4: 8 sums, 4 widened weights, 2 activations.
template <int T>
static void int8_tile(const TileCall& call) {
  for (int line = 0; line < kStepLines; ++line) {
    __m256i sums[2][T];
    AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
      AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
        sums[half][token] = call.first ? _mm256_setzero_si256() : load_32(carry_of(call, line, half, token));
    const uint8_t* at = call.weights + kLineBytes * line;
    const int32_t* words = call.words;
    const char* next = reinterpret_cast<const char*>(call.prefetch + line * 4 * call.groups * call.prefetch_step);
    for (int64_t step = 0; step < 4 * call.groups; ++step, at += kStepBytes, words += T) {
      _mm_prefetch(next, _MM_HINT_T0);
      next += call.prefetch_step;
      const __m256i first = load_32(at), second = load_32(at + 32);
      const __m256i even[2] = {even_bytes(first), even_bytes(second)};
      const __m256i odd[2] = {odd_bytes(first), odd_bytes(second)};
      AGENTFORGE_UNROLL for (int token = 0; token < T; ++token) {
        const WidePairs pairs = widen_word(words + token);
        AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
          add_int8(sums[half][token], even[half], odd[half], pairs);
      }
    }
    AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
      AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
        _mm256_storeu_si256(carry_of(call, line, half, token), sums[half][token]);
  }
  if (call.last) finish_int8_tile(call, T);
}

static const DenseKernels int8_kernels = {
    quantize_row,
    int8_matvec,
    4,
    {nullptr, int8_tile<1>, int8_tile<2>, int8_tile<3>, int8_tile<4>},
    {nullptr, pack_tokens_portable<1>, pack_tokens_portable<2>, pack_tokens_portable<3>,
     pack_tokens_portable<4>},
    nullptr, 0, 0, 0, kInt8GroupBytes};

}  // namespace agentforge::avx2
AGENTFORGE_TARGET_END
#endif
