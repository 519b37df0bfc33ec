// int8 matmul on 256-bit vpdpbusd.
#pragma once

#include "avx2_int8.hpp"
#include "avxvnni.hpp"

#if AGENTFORGE_X86
#if defined(__clang__)
AGENTFORGE_TARGET_AVXVNNI
#else
AGENTFORGE_TARGET_AVX2
#endif
namespace agentforge::avxvnni {

static void int8_matvec(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum, float scale,
                        const Epilogue& epilogue, int64_t panel_begin, int64_t panel_end) {
  const uint8_t* step = panels + panel_begin * groups * kInt8GroupBytes;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    __m256i sums[8];
    AGENTFORGE_UNROLL for (int vector = 0; vector < 8; ++vector) sums[vector] = _mm256_setzero_si256();
    const uint8_t* const end = step + groups * kInt8GroupBytes;
    for (const int8_t* x = q; step < end; step += kStepBytes, x += kLineColumns) {
      const __m256i word = _mm256_set1_epi32(load_unaligned<int32_t>(x));
      AGENTFORGE_UNROLL for (int vector = 0; vector < 8; ++vector) {
        if (vector % 2 == 0)
          _mm_prefetch(reinterpret_cast<const char*>(step) + 4096 + 32 * vector, _MM_HINT_T0);
        dot4<kVex>(sums[vector], avx2::load_32(step + 32 * vector), word);
      }
    }
    __m256i totals[8];  // the accumulators stay in registers: only their copy has an address
    AGENTFORGE_UNROLL for (int vector = 0; vector < 8; ++vector) totals[vector] = sums[vector];
    avx2::finish_panel(epilogue, panel * kPanelRows, totals, int8_excess(sum), scale);
  }
}

// 16 rows x T tokens a pass: 12 sums at T = 6, 2 vectors of weights, 1 activation.
template <int T>
static void int8_tile(const TileCall& call) {
  for (int line = 0; line < kStepLines; ++line) {
    __m256i sums[2][T];
    AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
      AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
        sums[half][token] =
            call.first ? _mm256_setzero_si256() : avx2::load_32(avx2::carry_of(call, line, half, token));
    const uint8_t* at = call.weights + kLineBytes * line;
    const uint8_t* const end = at + call.groups * kInt8GroupBytes;
    const char* next = reinterpret_cast<const char*>(call.prefetch + line * 4 * call.groups * call.prefetch_step);
    for (const int32_t* words = call.words; at < end; at += kStepBytes, words += T) {
      _mm_prefetch(next, _MM_HINT_T0);
      next += call.prefetch_step;
      const __m256i first = avx2::load_32(at), second = avx2::load_32(at + 32);
      AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
        dot4_halves<kVex>(sums[0][token], sums[1][token], first, second, words + token);
    }
    AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
      AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
        _mm256_storeu_si256(avx2::carry_of(call, line, half, token), sums[half][token]);
  }
  if (call.last) avx2::finish_int8_tile(call, T);
}

}  // namespace agentforge::avxvnni
AGENTFORGE_TARGET_END

namespace agentforge::avxvnni {

// Forced on a processor without AVX-VNNI (which only tests do), this level's int8 kernels are those of AVX2.
static const DenseKernels int8_kernels =
    isa_reported(kAvxVnni)
        ? DenseKernels{avx2::quantize_row,
                       int8_matvec,
                       6,
                       {nullptr, int8_tile<1>, int8_tile<2>, int8_tile<3>, int8_tile<4>, int8_tile<5>, int8_tile<6>},
                       {nullptr, pack_tokens_portable<1>, pack_tokens_portable<2>, pack_tokens_portable<3>,
                        pack_tokens_portable<4>, pack_tokens_portable<5>, pack_tokens_portable<6>},
                       nullptr, 0, 0, 0, kInt8GroupBytes}
        : avx2::int8_kernels;

}  // namespace agentforge::avxvnni
#endif
