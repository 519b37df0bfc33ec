// Driver of the activation quantiser: tokens over threads.
#pragma once

#include "fork_cost.hpp"

namespace agentforge {

// Quantising an element takes as long as so many multiply-accumulates (measured: 17 to 27).
constexpr int64_t kMacsPerElement = 20;

struct QuantizedTokens {
  int8_t* q;  // [tokens][stride]
  int64_t stride;
  float* scale;  // [tokens]
  int32_t* sum;  // [tokens]
};

static inline void quantize_tokens(const FloatInput& input, int64_t tokens, const QuantizedTokens& out,
                                   int threads) {
  const QuantizeRow quantize_row = dense_kernels().quantize_row;
  const int parts = useful_threads(threads, tokens * input.columns * kMacsPerElement,
                                   least_macs_per_thread(threads), tokens);
  fork_join(parts, [&](int64_t part, int64_t granted) {
    const int64_t end = part_begin(tokens, part + 1, granted);
    for (int64_t token = part_begin(tokens, part, granted); token < end; ++token)
      out.scale[token] = quantize_row(input, token, out.stride, out.q + token * out.stride, out.sum + token);
  });
}

}  // namespace agentforge
