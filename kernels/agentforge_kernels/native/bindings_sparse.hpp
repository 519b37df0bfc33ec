// Python entry points of the sparse ternary matmuls and of the int8 one. As in bindings_dense.hpp, tensors arrive
// as addresses, and shapes, dtypes and contiguity are the caller's duty (native_backend.py).
#pragma once

#include <nanobind/nanobind.h>

#include "activation_sparse.hpp"
#include "bindings_bench.hpp"
#include "bindings_dense.hpp"
#include "block_sparse.hpp"
#include "pack_columns.hpp"
#include "pack_lanes.hpp"

namespace agentforge {

// Faults of block_sparse_linear: below kAllFinite, which together with tokens' numbers is the rest of its results.
constexpr int64_t kStartFaultResult = -2;
constexpr int64_t kIndexFaultResult = -3;

static inline Epilogue epilogue_of(uintptr_t weight_scale, bool scale_per_row, uintptr_t residual,
                                   uintptr_t output, int64_t rows) {
  return {pointer<const float>(weight_scale), scale_per_row, pointer<const float>(residual), pointer<float>(output),
          rows};
}

static inline QuantizedInput quantized_input(uintptr_t q, int64_t q_stride, uintptr_t scale, uintptr_t sum) {
  return {pointer<const int8_t>(q), q_stride, pointer<const float>(scale), pointer<const int32_t>(sum)};
}

AGENTFORGE_ENTRY int64_t block_sparse_linear(uintptr_t q, int64_t q_stride, uintptr_t activation_scale,
                                          uintptr_t activation_sum, int64_t tokens, uintptr_t tiles,
                                          uintptr_t index, uintptr_t start, int64_t count,
                                          uintptr_t weight_scale, bool scale_per_row, uintptr_t residual,
                                          uintptr_t output, int64_t rows, int64_t columns, int threads) {
  const BlockSparseCall call = {&dense_kernels(),
                                &sparse_kernels(),
                                {pointer<const uint8_t>(tiles), pointer<const int32_t>(index),
                                 pointer<const int32_t>(start)},
                                rows,
                                columns,
                                tokens,
                                epilogue_of(weight_scale, scale_per_row, residual, output, rows),
                                threads};
  const LongCall long_call(tokens * count * kPanelRows * kGroupColumns);
  switch (find_fault(call.weights, count, call.panel_count(), call.groups())) {
    case kStartFault: return kStartFaultResult;
    case kIndexFault: return kIndexFaultResult;
    case kNoFault: break;
  }
  return multiply(call, quantized_input(q, q_stride, activation_scale, activation_sum));
}

AGENTFORGE_ENTRY int64_t activation_sparse_linear(uintptr_t q, int64_t q_stride, uintptr_t activation_scale,
                                               uintptr_t activation_sum, int64_t tokens, uintptr_t blocks,
                                               uintptr_t weight_scale, bool scale_per_row,
                                               uintptr_t residual, uintptr_t output, int64_t rows,
                                               int64_t columns, int threads) {
  const LongCall long_call(tokens * rows * columns);
  return multiply(ColumnSparseCall{&sparse_kernels(), pointer<const uint8_t>(blocks), rows, columns, tokens,
                                   epilogue_of(weight_scale, scale_per_row, residual, output, rows), threads},
                  quantized_input(q, q_stride, activation_scale, activation_sum));
}

// Floating tokens as int8, in memory of the calling thread: valid until its next call.
static inline QuantizedTokens quantize_on_the_way(uintptr_t x, int type, uintptr_t norm_weight, double epsilon,
                                                  int64_t tokens, int64_t columns, int threads) {
  static thread_local Workspace workspace;
  const int64_t stride = round_up(columns, kStoredColumns);
  char* const memory = workspace.reserve(tokens * (stride + 8));
  const QuantizedTokens quantized = {reinterpret_cast<int8_t*>(memory), stride,
                                     reinterpret_cast<float*>(memory + tokens * stride),
                                     reinterpret_cast<int32_t*>(memory + tokens * (stride + 4))};
  quantize_tokens(FloatInput{pointer<const void>(x), type, columns, pointer<const float>(norm_weight), epsilon}, tokens,
                  quantized, threads);
  return quantized;
}

static inline uintptr_t address(const void* memory) { return reinterpret_cast<uintptr_t>(memory); }

AGENTFORGE_ENTRY int64_t block_sparse_linear_fused(uintptr_t x, int type, uintptr_t norm_weight, double epsilon,
                                                int64_t tokens, uintptr_t tiles, uintptr_t index, uintptr_t start,
                                                int64_t count, uintptr_t weight_scale, bool scale_per_row,
                                                uintptr_t residual, uintptr_t output, int64_t rows,
                                                int64_t columns, int threads) {
  const QuantizedTokens q = quantize_on_the_way(x, type, norm_weight, epsilon, tokens, columns, threads);
  return block_sparse_linear(address(q.q), q.stride, address(q.scale), address(q.sum), tokens, tiles, index, start,
                             count, weight_scale, scale_per_row, residual, output, rows, columns, threads);
}

AGENTFORGE_ENTRY int64_t activation_sparse_linear_fused(uintptr_t x, int type, uintptr_t norm_weight, double epsilon,
                                                     int64_t tokens, uintptr_t blocks, uintptr_t weight_scale,
                                                     bool scale_per_row, uintptr_t residual, uintptr_t output,
                                                     int64_t rows, int64_t columns, int threads) {
  const QuantizedTokens q = quantize_on_the_way(x, type, norm_weight, epsilon, tokens, columns, threads);
  return activation_sparse_linear(address(q.q), q.stride, address(q.scale), address(q.sum), tokens, blocks,
                                  weight_scale, scale_per_row, residual, output, rows, columns, threads);
}

AGENTFORGE_ENTRY int64_t int8_linear(uintptr_t q, int64_t q_stride, uintptr_t activation_scale,
                                  uintptr_t activation_sum, int64_t tokens, uintptr_t lanes,
                                  uintptr_t row_scale, uintptr_t residual, uintptr_t output, int64_t rows,
                                  int64_t columns, int threads) {
  const LongCall long_call(tokens * rows * columns);
  return multiply(dense_call(int8_kernels(), lanes, row_scale, true, residual, output, tokens, rows, columns, threads),
                  quantized_input(q, q_stride, activation_scale, activation_sum));
}

static inline void bind_sparse(nanobind::module_& module) {
  namespace nb = nanobind;
  module.def("block_sparse_linear", &block_sparse_linear, nb::arg("q"), nb::arg("q_stride"),
             nb::arg("activation_scale"), nb::arg("activation_sum"), nb::arg("tokens"), nb::arg("tiles"),
             nb::arg("index"), nb::arg("start"), nb::arg("count"), nb::arg("weight_scale"),
             nb::arg("scale_per_row"), nb::arg("residual"), nb::arg("output"), nb::arg("rows"),
             nb::arg("columns"), nb::arg("threads"),
             "Quantised tokens times `count` tiles of pack_tiles; returns the first token whose scale is NaN, -1, "
             "-2 when `start` does not divide the tiles among row blocks, or -3 when an index is no group of "
             "columns (nothing is computed then).");
  module.def("activation_sparse_linear", &activation_sparse_linear, nb::arg("q"), nb::arg("q_stride"),
             nb::arg("activation_scale"), nb::arg("activation_sum"), nb::arg("tokens"), nb::arg("blocks"),
             nb::arg("weight_scale"), nb::arg("scale_per_row"), nb::arg("residual"), nb::arg("output"),
             nb::arg("rows"), nb::arg("columns"), nb::arg("threads"),
             "Quantised tokens (rows of q readable up to a multiple of 128) times the columns they do not multiply "
             "by zero; returns the first token whose scale is NaN, or -1.");
  module.def("block_sparse_linear_fused", &block_sparse_linear_fused, nb::arg("x"), nb::arg("type"),
             nb::arg("norm_weight"), nb::arg("epsilon"), nb::arg("tokens"), nb::arg("tiles"), nb::arg("index"),
             nb::arg("start"), nb::arg("count"), nb::arg("weight_scale"), nb::arg("scale_per_row"),
             nb::arg("residual"), nb::arg("output"), nb::arg("rows"), nb::arg("columns"), nb::arg("threads"),
             "Floating tokens, quantised on the way, times tiles; results as of block_sparse_linear.");
  module.def("activation_sparse_linear_fused", &activation_sparse_linear_fused, nb::arg("x"), nb::arg("type"),
             nb::arg("norm_weight"), nb::arg("epsilon"), nb::arg("tokens"), nb::arg("blocks"),
             nb::arg("weight_scale"), nb::arg("scale_per_row"), nb::arg("residual"), nb::arg("output"),
             nb::arg("rows"), nb::arg("columns"), nb::arg("threads"),
             "Floating tokens, quantised on the way, times the columns they do not multiply by zero; returns the "
             "first token that held NaN or infinity, or -1.");
  module.def("int8_linear", &int8_linear, nb::arg("q"), nb::arg("q_stride"), nb::arg("activation_scale"),
             nb::arg("activation_sum"), nb::arg("tokens"), nb::arg("lanes"), nb::arg("row_scale"),
             nb::arg("residual"), nb::arg("output"), nb::arg("rows"), nb::arg("columns"), nb::arg("threads"),
             "Quantised tokens times int8 lanes; returns the first token whose scale is NaN, or -1.");
  module.def("column_blocks_bytes", &column_blocks_bytes, nb::arg("rows"), nb::arg("columns"),
             "Size of the column blocks layout.");
  module.def("lanes_bytes", &lanes_bytes, nb::arg("rows"), nb::arg("columns"), "Size of the lanes layout.");
  module.def(
      "pack_tiles",
      [](uintptr_t tiles, int64_t count, uintptr_t out) {
        const LongCall long_call(count * kGroupBytes);
        exchange_tiles(pointer<const uint8_t>(tiles), count, pointer<uint8_t>(out));
      },
      nb::arg("tiles"), nb::arg("count"), nb::arg("out"),
      "Stored tiles to the order of the panels layout, and back.");
  module.def(
      "pack_columns",
      [](uintptr_t codes, int64_t stride, int64_t rows, int64_t columns, uintptr_t blocks) {
        const LongCall long_call(rows * columns);
        pack_columns(pointer<const uint8_t>(codes), stride, rows, columns, pointer<uint8_t>(blocks));
      },
      nb::arg("codes"), nb::arg("stride"), nb::arg("rows"), nb::arg("columns"), nb::arg("blocks"),
      "Stored columns (`stride` bytes each) to column blocks.");
  module.def(
      "unpack_columns",
      [](uintptr_t blocks, int64_t rows, int64_t columns, uintptr_t codes, int64_t stride) {
        const LongCall long_call(rows * columns);
        unpack_columns(pointer<const uint8_t>(blocks), rows, columns, pointer<uint8_t>(codes), stride);
      },
      nb::arg("blocks"), nb::arg("rows"), nb::arg("columns"), nb::arg("codes"), nb::arg("stride"),
      "Column blocks to stored columns.");
  module.def(
      "pack_lanes",
      [](uintptr_t weight, int64_t rows, int64_t columns, uintptr_t lanes) {
        const LongCall long_call(rows * columns);
        pack_lanes(pointer<const int8_t>(weight), rows, columns, pointer<uint8_t>(lanes));
      },
      nb::arg("weight"), nb::arg("rows"), nb::arg("columns"), nb::arg("lanes"), "int8 rows to lanes.");
  bind_repeated<&block_sparse_linear, 5>(module, "repeat_block_sparse_linear");
  bind_repeated<&activation_sparse_linear, 5>(module, "repeat_activation_sparse_linear");
  bind_repeated<&int8_linear, 5>(module, "repeat_int8_linear");
}

}  // namespace agentforge
