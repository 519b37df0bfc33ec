// Python entry points of quantising, packing and the dense matmul. Tensors arrive as integers from
// Tensor.data_ptr() (0: none): 0.09 us a call against 6 us for a tensor through DLPack. Shapes, dtypes
// and contiguity are the caller's duty (native_backend.py).
#pragma once

#include <nanobind/nanobind.h>

#include "dense.hpp"
#include "pack.hpp"
#include "quantize.hpp"

namespace agentforge {

template <typename T>
static inline T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Lets other Python threads run during a call that is long enough to be worth it: giving up the
// interpreter lock and taking it back costs 0.1 us, and up to 5 ms when another thread computes.
class LongCall {
 public:
  // `multiplies`: multiply-accumulates of the call; 25 M take about 50 us on one core.
  explicit LongCall(int64_t multiplies) : state_(multiplies >= 25000000 ? PyEval_SaveThread() : nullptr) {}
  ~LongCall() {
    if (state_) PyEval_RestoreThread(state_);
  }
  LongCall(const LongCall&) = delete;
  LongCall& operator=(const LongCall&) = delete;

 private:
  PyThreadState* state_;
};

static inline DenseCall dense_call(const DenseKernels& kernels, uintptr_t panels, uintptr_t weight_scale,
                                   bool scale_per_row, uintptr_t residual, uintptr_t output, int64_t tokens,
                                   int64_t rows, int64_t columns, int threads) {
  return {&kernels,
          pointer<const uint8_t>(panels),
          rows,
          columns,
          tokens,
          {pointer<const float>(weight_scale), scale_per_row, pointer<const float>(residual),
           pointer<float>(output), rows},
          threads};
}

AGENTFORGE_ENTRY int64_t dense_linear(uintptr_t q, int64_t q_stride, uintptr_t activation_scale,
                                   uintptr_t activation_sum, int64_t tokens, uintptr_t panels,
                                   uintptr_t weight_scale, bool scale_per_row, uintptr_t residual,
                                   uintptr_t output, int64_t rows, int64_t columns, int threads) {
  const LongCall long_call(tokens * rows * columns);
  return multiply(dense_call(dense_kernels(), panels, weight_scale, scale_per_row, residual, output, tokens, rows,
                             columns, threads),
                  QuantizedInput{pointer<const int8_t>(q), q_stride, pointer<const float>(activation_scale),
                                 pointer<const int32_t>(activation_sum)});
}

AGENTFORGE_ENTRY int64_t dense_linear_fused(uintptr_t x, int type, uintptr_t norm_weight, double epsilon,
                                         int64_t tokens, uintptr_t panels, uintptr_t weight_scale,
                                         bool scale_per_row, uintptr_t residual, uintptr_t output,
                                         int64_t rows, int64_t columns, int threads) {
  const LongCall long_call(tokens * rows * columns);
  return multiply(dense_call(dense_kernels(), panels, weight_scale, scale_per_row, residual, output, tokens, rows,
                             columns, threads),
                  FloatInput{pointer<const void>(x), type, columns, pointer<const float>(norm_weight), epsilon});
}

AGENTFORGE_ENTRY void quantize(uintptr_t x, int type, uintptr_t norm_weight, double epsilon, int64_t tokens,
                            int64_t columns, uintptr_t q, int64_t q_stride, uintptr_t scale, uintptr_t sum,
                            int threads) {
  const LongCall long_call(tokens * columns * 50);
  quantize_tokens(FloatInput{pointer<const void>(x), type, columns, pointer<const float>(norm_weight), epsilon},
                  tokens, {pointer<int8_t>(q), q_stride, pointer<float>(scale), pointer<int32_t>(sum)}, threads);
}

static inline void bind_dense(nanobind::module_& module) {
  namespace nb = nanobind;
  module.def("quantize", &quantize, nb::arg("x"), nb::arg("type"), nb::arg("norm_weight"), nb::arg("epsilon"),
             nb::arg("tokens"), nb::arg("columns"), nb::arg("q"), nb::arg("q_stride"), nb::arg("scale"),
             nb::arg("sum"), nb::arg("threads"),
             "Tokens to int8 [tokens][q_stride], scale and sum; a token with NaN or infinity gets scale NaN.");
  module.def("dense_linear", &dense_linear, nb::arg("q"), nb::arg("q_stride"), nb::arg("activation_scale"),
             nb::arg("activation_sum"), nb::arg("tokens"), nb::arg("panels"), nb::arg("weight_scale"),
             nb::arg("scale_per_row"), nb::arg("residual"), nb::arg("output"), nb::arg("rows"),
             nb::arg("columns"), nb::arg("threads"),
             "Quantised tokens times panels; returns the first token whose scale is NaN, or -1.");
  module.def("dense_linear_fused", &dense_linear_fused, nb::arg("x"), nb::arg("type"), nb::arg("norm_weight"),
             nb::arg("epsilon"), nb::arg("tokens"), nb::arg("panels"), nb::arg("weight_scale"),
             nb::arg("scale_per_row"), nb::arg("residual"), nb::arg("output"), nb::arg("rows"),
             nb::arg("columns"), nb::arg("threads"),
             "Floating tokens, quantised on the way, times panels; returns the first token that held NaN or "
             "infinity (its outputs are NaN), or -1.");
  module.def("panels_bytes", &panels_bytes, nb::arg("rows"), nb::arg("columns"), "Size of the panels layout.");
  module.def(
      "pack_panels",
      [](uintptr_t codes, int64_t rows, int64_t columns, uintptr_t panels) {
        const LongCall long_call(rows * columns);
        pack_panels(pointer<const uint8_t>(codes), rows, columns, pointer<uint8_t>(panels));
      },
      nb::arg("codes"), nb::arg("rows"), nb::arg("columns"), nb::arg("panels"), "Stored rows to panels.");
  module.def(
      "unpack_panels",
      [](uintptr_t panels, int64_t rows, int64_t columns, uintptr_t codes) {
        const LongCall long_call(rows * columns);
        unpack_panels(pointer<const uint8_t>(panels), rows, columns, pointer<uint8_t>(codes));
      },
      nb::arg("panels"), nb::arg("rows"), nb::arg("columns"), nb::arg("codes"), "Panels to stored rows.");
}

}  // namespace agentforge
