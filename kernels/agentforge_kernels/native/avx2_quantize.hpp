// Activation quantiser for 256-bit levels: 32 columns a step.
#pragma once

#include "dense_kernels.hpp"
#include "portable.hpp"

#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX2
namespace agentforge::avx2 {

constexpr int64_t kQuantizerStep = 32;

// Eight elements as float32; `address` need not be aligned.
template <int Type>
static AGENTFORGE_INLINE __m256 widen_8(const char* address) {
  if constexpr (Type == kFloat32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(address));
  } else {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(address));
    if constexpr (Type == kFloat16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
}

// Elements column .. column + 7 of a row, zeros from `columns` on, never reading beyond it.
template <int Type>
static AGENTFORGE_INLINE __m256 load_8(const char* row, int64_t column, int64_t columns) {
  constexpr int64_t bytes = Type == kFloat32 ? 4 : 2;
  if (column + 8 <= columns) return widen_8<Type>(row + column * bytes);
  alignas(32) char rest[32] = {};
  for (int64_t i = 0; i < (columns - column) * bytes; ++i) rest[i] = row[column * bytes + i];
  return widen_8<Type>(rest);
}

// A row as the quantiser reads it: with the norm, x * (1 / root) * weight in float32.
template <int Type, bool Norm>
struct QuantizerRow {
  const char* row;
  const char* norm_weight;
  int64_t columns;
  __m256 inverse_root;

  AGENTFORGE_INLINE __m256 at(int64_t column) const {
    const __m256 value = load_8<Type>(row, column, columns);
    if constexpr (!Norm) return value;
    return _mm256_mul_ps(_mm256_mul_ps(value, inverse_root), load_8<kFloat32>(norm_weight, column, columns));
  }
};

// Mean square in float64: the square of a float32 near its largest would overflow in float32.
template <int Type>
static AGENTFORGE_INLINE double mean_square(const char* row, int64_t columns) {
  __m256d low = _mm256_setzero_pd(), high = low;
  for (int64_t column = 0; column < columns; column += 8) {
    const __m256 value = load_8<Type>(row, column, columns);
    const __m256d first = _mm256_cvtps_pd(_mm256_castps256_ps128(value));
    const __m256d second = _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1));
    low = _mm256_add_pd(low, _mm256_mul_pd(first, first));
    high = _mm256_add_pd(high, _mm256_mul_pd(second, second));
  }
  alignas(32) double lanes[4];
  _mm256_store_pd(lanes, _mm256_add_pd(low, high));
  return ((lanes[0] + lanes[2]) + (lanes[1] + lanes[3])) / static_cast<double>(columns);
}

static AGENTFORGE_INLINE int32_t largest_lane(__m256i value) {
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

static AGENTFORGE_INLINE int32_t sum_of_lanes(__m256i value) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

template <int Type, bool Norm>
static float quantize(const FloatInput& input, int64_t token, int64_t padded_columns, int8_t* q,
                      int32_t* sum) {
  const int64_t columns = input.columns;
  QuantizerRow<Type, Norm> row = {static_cast<const char*>(input.token(token)),
                                  reinterpret_cast<const char*>(input.norm_weight), columns,
                                  _mm256_setzero_ps()};
  if constexpr (Norm) {
    const double root = std::sqrt(mean_square<Type>(row.row, columns) + input.epsilon);
    // Beyond these the inverse leaves float32's normal range; such rows are rare: take the exact way.
    if (!(root > 1e-30 && root < 1e30))
      return portable::quantize_row(input, token, padded_columns, q, sum);
    row.inverse_root = _mm256_set1_ps(static_cast<float>(1.0 / root));
  }

  // Largest magnitude as an integer maximum of the bits: equal to the float maximum, and unlike it
  // keeps NaN and infinity. Columns beyond the row read as zero and change neither maximum nor sum.
  const __m256i magnitude = _mm256_set1_epi32(static_cast<int>(kMagnitudeBits));
  __m256i largest[4];
  AGENTFORGE_UNROLL for (int i = 0; i < 4; ++i) largest[i] = _mm256_setzero_si256();
  int64_t column = 0;
  for (; column + kQuantizerStep <= columns; column += kQuantizerStep) {
    AGENTFORGE_UNROLL for (int i = 0; i < 4; ++i)
      largest[i] = _mm256_max_epi32(
          largest[i], _mm256_and_si256(_mm256_castps_si256(row.at(column + 8 * i)), magnitude));
  }
  for (; column < columns; column += 8)
    largest[0] =
        _mm256_max_epi32(largest[0], _mm256_and_si256(_mm256_castps_si256(row.at(column)), magnitude));
  const int32_t largest_bits = largest_lane(
      _mm256_max_epi32(_mm256_max_epi32(largest[0], largest[1]), _mm256_max_epi32(largest[2], largest[3])));
  const bool finite = largest_bits < static_cast<int32_t>(kInfinityBits);
  float maximum = float_from_bits(static_cast<uint32_t>(largest_bits));
  if (maximum < kSmallestMagnitude) maximum = kSmallestMagnitude;

  const __m256 inverse = _mm256_set1_ps(inverse_step(maximum));
  // Packing works within 128-bit lanes: words come out as [lane][quarter], wanted [quarter][lane].
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i ones = _mm256_set1_epi8(1), wide_ones = _mm256_set1_epi16(1);
  __m256i total = _mm256_setzero_si256();
  for (column = 0; column < padded_columns; column += kQuantizerStep) {
    __m256i wide[4];
    AGENTFORGE_UNROLL for (int i = 0; i < 4; ++i)
      wide[i] = column + 8 * i < columns
                    ? _mm256_cvtps_epi32(_mm256_mul_ps(row.at(column + 8 * i), inverse))
                    : _mm256_setzero_si256();
    const __m256i bytes = _mm256_permutevar8x32_epi32(
        _mm256_packs_epi16(_mm256_packs_epi32(wide[0], wide[1]), _mm256_packs_epi32(wide[2], wide[3])),
        order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + column), bytes);
    total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(ones, bytes), wide_ones));
  }
  *sum = sum_of_lanes(total);
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

}  // namespace agentforge::avx2
AGENTFORGE_TARGET_END
#endif
