// The float epilogue for 8 rows at a time (AVX2), for dense, sparse and int8 kernels of 256 bits.
#pragma once

#include "common.hpp"

#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX2
namespace agentforge::avx2 {

// Rows row .. row + 7 of the epilogue's first token; rows beyond the matrix are not touched.
// `accumulator` is already corrected by the sum of activations.
static AGENTFORGE_INLINE void finish_8_rows(const Epilogue& epilogue, int64_t row, __m256i accumulator,
                                            float activation_scale) {
  const int64_t left = epilogue.rows - row;
  if (left <= 0) return;
  if (left < 8) {
    alignas(32) int32_t values[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(values), accumulator);
    for (int64_t i = 0; i < left; ++i) finish_row(epilogue, row + i, values[i], activation_scale);
    return;
  }
  const __m256 weight = epilogue.scale_per_row ? _mm256_loadu_ps(epilogue.weight_scale + row)
                                               : _mm256_set1_ps(epilogue.weight_scale[0]);
  const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(activation_scale), weight);
  __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(accumulator), scale);
  if (epilogue.residual) y = _mm256_add_ps(y, _mm256_loadu_ps(epilogue.residual + row));
  _mm256_storeu_ps(epilogue.output + row, y);
}

// All 64 rows of the panel that begins at `row`; `sums` are not corrected yet. Not inlined: eight times
// finish_8_rows in every kernel is slow to compile and no faster.
static __attribute__((noinline)) void finish_panel(const Epilogue& epilogue, int64_t row, const __m256i (&sums)[8],
                                                   int32_t excess, float activation_scale) {
  for (int64_t vector = 0; vector < 8; ++vector)
    finish_8_rows(epilogue, row + 8 * vector, _mm256_sub_epi32(sums[vector], _mm256_set1_epi32(excess)),
                  activation_scale);
}

}  // namespace agentforge::avx2
AGENTFORGE_TARGET_END
#endif
