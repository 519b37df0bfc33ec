// Activation quantiser, AVX-512: 64 columns a step.
#pragma once

#include "dense_kernels.hpp"
#include "epilogue_avx512.hpp"
#include "portable.hpp"

#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX512VNNI
namespace agentforge::avx512 {

template <int Type>
static AGENTFORGE_INLINE __m512 load_16(const char* row, int64_t column, __mmask16 mask) {
  if (Type == kFloat32)
    return _mm512_maskz_loadu_ps(mask, reinterpret_cast<const float*>(row) + column);
  const __m256i halves = _mm256_maskz_loadu_epi16(mask, reinterpret_cast<const int16_t*>(row) + column);
  if (Type == kFloat16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static AGENTFORGE_INLINE __mmask16 columns_mask(int64_t left) {
  return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

// A row as the quantiser reads it: with the norm, x * (1 / root) * weight in float32.
template <int Type, bool Norm>
struct QuantizerRow {
  const char* row;
  const float* norm_weight;
  __m512 inverse_root;

  AGENTFORGE_INLINE __m512 at(int64_t column, __mmask16 mask) const {
    const __m512 value = load_16<Type>(row, column, mask);
    if (!Norm) return value;
    return _mm512_mul_ps(_mm512_mul_ps(value, inverse_root),
                         _mm512_maskz_loadu_ps(mask, norm_weight + column));
  }
};

// Mean square in float64: the square of a float32 near its largest would overflow in float32.
template <int Type>
static AGENTFORGE_INLINE double mean_square(const char* row, int64_t columns) {
  __m512d low = _mm512_setzero_pd(), high = low;
  for (int64_t column = 0; column < columns; column += 16) {
    const __m512 value = load_16<Type>(row, column, columns_mask(columns - column));
    const __m512d first = _mm512_cvtps_pd(_mm512_castps512_ps256(value));
    const __m512d second = _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
    low = _mm512_add_pd(low, _mm512_mul_pd(first, first));
    high = _mm512_add_pd(high, _mm512_mul_pd(second, second));
  }
  return _mm512_reduce_add_pd(_mm512_add_pd(low, high)) / static_cast<double>(columns);
}

template <int Type, bool Norm>
static float quantize(const FloatInput& input, int64_t token, int64_t padded_columns, int8_t* q,
                      int32_t* sum) {
  const int64_t columns = input.columns;
  QuantizerRow<Type, Norm> row = {static_cast<const char*>(input.token(token)), input.norm_weight,
                                  _mm512_setzero_ps()};
  if (Norm) {
    const double root = std::sqrt(mean_square<Type>(row.row, columns) + input.epsilon);
    // Beyond these the inverse leaves float32's normal range; such rows are rare: take the exact way.
    if (!(root > 1e-30 && root < 1e30))
      return portable::quantize_row(input, token, padded_columns, q, sum);
    row.inverse_root = _mm512_set1_ps(static_cast<float>(1.0 / root));
  }

  // Largest magnitude as an integer maximum of the bits: equal to the float maximum, and unlike it
  // keeps NaN and infinity.
  const __m512i magnitude = _mm512_set1_epi32(static_cast<int>(kMagnitudeBits));
  __m512i largest[4];
  AGENTFORGE_UNROLL for (int i = 0; i < 4; ++i) largest[i] = _mm512_setzero_si512();
  const int64_t whole = columns / 64 * 64;
  for (int64_t column = 0; column < whole; column += 64) {
    AGENTFORGE_UNROLL for (int i = 0; i < 4; ++i)
      largest[i] = _mm512_max_epi32(
          largest[i],
          _mm512_and_si512(_mm512_castps_si512(row.at(column + 16 * i, 0xffff)), magnitude));
  }
  for (int64_t column = whole; column < columns; column += 16)
    largest[0] = _mm512_max_epi32(
        largest[0], _mm512_and_si512(
                        _mm512_castps_si512(row.at(column, columns_mask(columns - column))), magnitude));
  const int32_t largest_bits = _mm512_reduce_max_epi32(
      _mm512_max_epi32(_mm512_max_epi32(largest[0], largest[1]), _mm512_max_epi32(largest[2], largest[3])));
  const bool finite = largest_bits < static_cast<int32_t>(kInfinityBits);
  float maximum = float_from_bits(static_cast<uint32_t>(largest_bits));
  if (maximum < kSmallestMagnitude) maximum = kSmallestMagnitude;

  const __m512 inverse = _mm512_set1_ps(inverse_step(maximum));
  // Packing works within 128-bit lanes: words come out as [lane][quarter], wanted [quarter][lane].
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i total = _mm512_setzero_si512();
  for (int64_t column = 0; column < columns; column += 64) {
    __m512i wide[4];
    if (column < whole) {
      AGENTFORGE_UNROLL for (int i = 0; i < 4; ++i)
        wide[i] = _mm512_cvtps_epi32(_mm512_mul_ps(row.at(column + 16 * i, 0xffff), inverse));
    } else {
      AGENTFORGE_UNROLL for (int i = 0; i < 4; ++i)
        wide[i] = _mm512_cvtps_epi32(_mm512_mul_ps(
            row.at(column + 16 * i, columns_mask(columns - column - 16 * i)), inverse));
    }
    const __m512i bytes = _mm512_permutexvar_epi32(
        order, _mm512_packs_epi16(_mm512_packs_epi32(wide[0], wide[1]), _mm512_packs_epi32(wide[2], wide[3])));
    _mm512_storeu_si512(q + column, bytes);
    dot4(total, ones, bytes);
  }
  for (int64_t column = round_up(columns, 64); column < padded_columns; column += 64)
    _mm512_storeu_si512(q + column, _mm512_setzero_si512());
  *sum = _mm512_reduce_add_epi32(total);
  return finite ? maximum / 127.0f : float_from_bits(0x7fc00000u);
}

static float quantize_row(const FloatInput& input, int64_t token, int64_t padded_columns, int8_t* q,
                          int32_t* sum) {
  if (input.norm_weight) {
    if (input.type == kFloat32) return quantize<kFloat32, true>(input, token, padded_columns, q, sum);
    if (input.type == kFloat16) return quantize<kFloat16, true>(input, token, padded_columns, q, sum);
    return quantize<kBFloat16, true>(input, token, padded_columns, q, sum);
  }
  if (input.type == kFloat32) return quantize<kFloat32, false>(input, token, padded_columns, q, sum);
  if (input.type == kFloat16) return quantize<kFloat16, false>(input, token, padded_columns, q, sum);
  return quantize<kBFloat16, false>(input, token, padded_columns, q, sum);
}

}  // namespace agentforge::avx512
AGENTFORGE_TARGET_END
#endif
