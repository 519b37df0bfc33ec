// Activation quantiser in plain C++, in loops that compilers vectorise; exact, with the norm in float64.
#pragma once

#include "dense_kernels.hpp"

namespace agentforge::portable {

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = half >> 10 & 0x1fu, fraction = half & 0x3ffu;
  // Subnormal: fraction * 2^-24, exact in float32. Computed for all, chosen below without a branch.
  const float subnormal = static_cast<float>(static_cast<int32_t>(fraction)) * 5.9604644775390625e-8f;
  const uint32_t widened_exponent = exponent == 0x1f ? kInfinityBits : (exponent + 112) << 23;
  const uint32_t normal = widened_exponent | fraction << 13;
  return float_from_bits(sign | (exponent == 0 ? bits_from_float(subnormal) : normal));
}

template <int Type>
static AGENTFORGE_INLINE float load_element(const void* row, int64_t column) {
  if constexpr (Type == kFloat32) {
    return load_unaligned<float>(static_cast<const char*>(row) + 4 * column);
  } else {
    const uint16_t bits = load_unaligned<uint16_t>(static_cast<const char*>(row) + 2 * column);
    if constexpr (Type == kFloat16) return half_to_float(bits);
    return float_from_bits(static_cast<uint32_t>(bits) << 16);
  }
}

template <int Type>
static AGENTFORGE_INLINE double mean_square(const void* row, int64_t columns) {
  constexpr int lanes = 8;  // independent sums: one would wait for itself at every step
  double squares[lanes] = {};
  int64_t column = 0;
  for (; column + lanes <= columns; column += lanes)
    for (int lane = 0; lane < lanes; ++lane) {
      const double value = load_element<Type>(row, column + lane);
      squares[lane] += value * value;
    }
  for (; column < columns; ++column) {
    const double value = load_element<Type>(row, column);
    squares[0] += value * value;
  }
  double total = 0.0;
  for (int lane = 0; lane < lanes; ++lane) total += squares[lane];
  return total / static_cast<double>(columns);
}

// A row as the quantiser reads it: with the norm as the reference computes it, rounded once to float32.
template <int Type, bool Norm>
struct QuantizerRow {
  const void* row;
  const float* norm_weight;
  double root;

  AGENTFORGE_INLINE float at(int64_t column) const {
    const float value = load_element<Type>(row, column);
    if constexpr (!Norm) return value;
    const float weight = load_unaligned<float>(norm_weight + column);
    return static_cast<float>(static_cast<double>(value) / root * static_cast<double>(weight));
  }
};

template <int Type, bool Norm>
static float quantize(const FloatInput& input, int64_t token, int64_t padded_columns, int8_t* __restrict q,
                      int32_t* sum) {
  const int64_t columns = input.columns;
  QuantizerRow<Type, Norm> row = {input.token(token), input.norm_weight, 1.0};
  if constexpr (Norm) row.root = std::sqrt(mean_square<Type>(row.row, columns) + input.epsilon);

  int32_t largest_bits = 0;  // magnitudes order like their bits, and NaN and infinity stay visible
  for (int64_t column = 0; column < columns; ++column) {
    const int32_t bits = static_cast<int32_t>(bits_from_float(row.at(column)) & kMagnitudeBits);
    largest_bits = bits > largest_bits ? bits : largest_bits;
  }
  float largest = float_from_bits(static_cast<uint32_t>(largest_bits));
  const bool finite = static_cast<uint32_t>(largest_bits) < kInfinityBits;
  if (!finite) {  // nothing below may overflow an int
    std::memset(q, 0, static_cast<size_t>(padded_columns));
    *sum = 0;
    return float_from_bits(0x7fc00000u);
  }
  if (largest < kSmallestMagnitude) largest = kSmallestMagnitude;

  // Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
  constexpr float rounding = 12582912.0f;
  const int32_t rounding_bits = static_cast<int32_t>(bits_from_float(rounding));
  const float inverse = inverse_step(largest);
  int32_t total = 0;
  for (int64_t column = 0; column < columns; ++column) {
    const float scaled = row.at(column) * inverse;
    const int32_t rounded = static_cast<int32_t>(bits_from_float(scaled + rounding)) - rounding_bits;
    q[column] = static_cast<int8_t>(rounded);
    total += rounded;
  }
  std::memset(q + columns, 0, static_cast<size_t>(padded_columns - columns));
  *sum = total;
  return largest / 127.0f;
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

}  // namespace agentforge::portable
