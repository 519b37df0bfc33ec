// Driver of the activation-sparse ternary matvec: lists the columns whose activation is not zero and reads only
// their lines. Several tokens are several matvecs: from a few tokens on, the union of their columns is all.
#pragma once

#include "dense.hpp"
#include "sparse_dispatch.hpp"

namespace agentforge {

struct ColumnSparseCall {
  const SparseKernels* kernels;
  const uint8_t* blocks;
  int64_t rows;
  int64_t columns;
  int64_t tokens;
  Epilogue epilogue;
  int threads;

  int64_t block_count() const { return ceil_div(rows, kBlockRows); }
  int64_t block_bytes() const { return columns * kLineBytes; }
};

// Fills the list up with zeros to whole steps, and with the lines that are wanted after it: the same columns of
// the next block.
static inline void finish_list(ColumnList& list, int64_t block_bytes) {
  while (list.count % kColumnsAtOnce) {
    list.offset[list.count] = list.offset[0];
    list.value[list.count++] = 0;
  }
  for (int64_t ahead = 0; ahead < kColumnsAhead; ++ahead)
    list.offset[list.count + ahead] =
        ahead < list.count ? list.offset[ahead] + static_cast<int32_t>(block_bytes) : 0;
}

// Returns the first token whose scale is NaN (its outputs are NaN), or kAllFinite.
static inline int64_t multiply(const ColumnSparseCall& call, const QuantizedInput& input) {
  ColumnList list(Workspace::of_this_thread().reserve(ColumnList::bytes(call.columns)), call.columns);
  int64_t bad = kAllFinite;
  for (int64_t token = 0; token < call.tokens; ++token) {
    const QuantizedInput own = input.from_token(token);
    list.count = call.kernels->list_columns(own.q, call.columns, list);
    finish_list(list, call.block_bytes());
    const Epilogue epilogue = call.epilogue.from_token(token);
    const int threads = useful_threads(call.threads, list.count * call.rows, least_macs_per_thread(call.threads),
                                       call.block_count());
    fork_join(threads, [&](int64_t part, int64_t parts) {
      call.kernels->column_matvec({call.blocks, call.block_bytes(), &list, own.sum[0], own.scale[0], &epilogue,
                                   part_begin(call.block_count(), part, parts),
                                   part_begin(call.block_count(), part + 1, parts)});
    });
    if (bad == kAllFinite && !(own.scale[0] == own.scale[0])) bad = token;
  }
  return bad;
}

}  // namespace agentforge
