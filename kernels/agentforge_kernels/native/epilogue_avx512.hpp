// The float epilogue for 16 rows at a time (AVX-512), for dense, sparse and int8 kernels.
#pragma once

#include "common.hpp"

#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX512VNNI
namespace agentforge::avx512 {

// accumulator += sum of four products of unsigned bytes of `codes` and signed bytes of `values`.
// Inline assembly because GCC 12 copies accumulator arrays around the intrinsic on every step
// (matvec 1.7x, tiles 1.4x slower); tests/kernels/test_native_assembly.py keeps spills at zero.
static AGENTFORGE_INLINE void dot4(__m512i& accumulator, __m512i codes, __m512i values) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(accumulator) : "v"(codes), "v"(values));
}

static AGENTFORGE_INLINE __m512i broadcast_word(const void* address) {
  return _mm512_set1_epi32(load_unaligned<int32_t>(address));
}

// The same for the four quarters of a panel and one broadcast word of activations. One statement, so
// that nothing is kept in registers between: with 24 accumulators GCC 12 otherwise spills two.
static AGENTFORGE_INLINE void dot4_panel(__m512i& first, __m512i& second, __m512i& third, __m512i& fourth,
                                         const __m512i (&codes)[4], const int32_t* word) {
#ifdef __SANITIZE_ADDRESS__
  *static_cast<const volatile int32_t*>(word);  // the sanitizer does not see loads in assembly
#endif
  __m512i values;
  __asm__(
      "vpbroadcastd %9, %4\n\t"
      "vpdpbusd %4, %5, %0\n\t"
      "vpdpbusd %4, %6, %1\n\t"
      "vpdpbusd %4, %7, %2\n\t"
      "vpdpbusd %4, %8, %3"
      : "+v"(first), "+v"(second), "+v"(third), "+v"(fourth), "=&v"(values)
      : "v"(codes[0]), "v"(codes[1]), "v"(codes[2]), "v"(codes[3]), "m"(*word));
}

// Rows row .. row + 15 of the epilogue's first token; rows beyond the matrix are not touched.
// `accumulator` is already corrected by the sum of activations.
static AGENTFORGE_INLINE void finish_16_rows(const Epilogue& epilogue, int64_t row, __m512i accumulator,
                                             float activation_scale) {
  const int64_t left = epilogue.rows - row;
  if (left <= 0) return;
  const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
  const __m512 weight = epilogue.scale_per_row
                            ? _mm512_maskz_loadu_ps(mask, epilogue.weight_scale + row)
                            : _mm512_set1_ps(epilogue.weight_scale[0]);
  const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(activation_scale), weight);
  __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(accumulator), scale);
  if (epilogue.residual)
    y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, epilogue.residual + row));
  _mm512_mask_storeu_ps(epilogue.output + row, mask, y);
}

// All 64 rows of the panel that begins at `row`. A whole panel needs no masks: 16 rows cost a conversion,
// a multiplication and a store, which a tile of 32 groups notices (3 % of a 2048 x 512 matmul).
static AGENTFORGE_INLINE void finish_panel(const Epilogue& epilogue, int64_t row, const __m512i (&accumulators)[4],
                                           float activation_scale) {
  if (row + kPanelRows > epilogue.rows) {
    AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter)
      finish_16_rows(epilogue, row + 16 * quarter, accumulators[quarter], activation_scale);
    return;
  }
  __m512 y[4];
  if (epilogue.scale_per_row) {
    AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter)
      y[quarter] = _mm512_mul_ps(_mm512_cvtepi32_ps(accumulators[quarter]),
                                 _mm512_mul_ps(_mm512_set1_ps(activation_scale),
                                               _mm512_loadu_ps(epilogue.weight_scale + row + 16 * quarter)));
  } else {
    const __m512 scale = _mm512_set1_ps(activation_scale * epilogue.weight_scale[0]);
    AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter)
      y[quarter] = _mm512_mul_ps(_mm512_cvtepi32_ps(accumulators[quarter]), scale);
  }
  if (epilogue.residual) {
    AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter)
      y[quarter] = _mm512_add_ps(y[quarter], _mm512_loadu_ps(epilogue.residual + row + 16 * quarter));
  }
  AGENTFORGE_UNROLL for (int quarter = 0; quarter < 4; ++quarter)
    _mm512_storeu_ps(epilogue.output + row + 16 * quarter, y[quarter]);
}

}  // namespace agentforge::avx512
AGENTFORGE_TARGET_END
#endif
