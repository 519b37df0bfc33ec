// Driver of the activation-sparse ternary matvec: lists the columns whose activation is not zero and reads only
// their lines. Several tokens are several matvecs: the union of their columns is soon all of them.
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

// Tokens whose lists are made before any of them is multiplied. They take turns on a block of rows, so that lines
// two of them need come from memory once.
constexpr int64_t kListedTokens = 16;

// Fills a list up with zeros to whole steps.
static inline void fill_up(ColumnList& list) {
  for (; list.count % kColumnsAtOnce; ++list.count) {
    list.offset[list.count] = list.offset[0];
    list.value[list.count] = 0;
  }
}

// The lines wanted after a list: the first ones of the next list, `distance` bytes further on.
static inline void look_ahead(ColumnList& list, const ColumnList& next, int64_t distance) {
  for (int64_t ahead = 0; ahead < kColumnsAhead; ++ahead)
    list.offset[list.count + ahead] = ahead < next.count ? next.offset[ahead] + static_cast<int32_t>(distance) : 0;
}

// Up to kListedTokens tokens.
static inline void multiply_listed(const ColumnSparseCall& call, const QuantizedInput& input) {
  const int64_t tokens = call.tokens, list_bytes = ColumnList::bytes(call.columns);
  char* const memory = Workspace::of_this_thread().reserve(tokens * list_bytes);
  ColumnList lists[kListedTokens];
  int64_t listed = 0;
  for (int64_t token = 0; token < tokens; ++token) {
    lists[token].place(memory + token * list_bytes, call.columns);
    lists[token].count = call.kernels->list_columns(input.from_token(token).q, call.columns, lists[token]);
    fill_up(lists[token]);
    listed += lists[token].count;
  }
  for (int64_t token = tokens - 1; token >= 0; --token) {
    const bool last = token + 1 == tokens;
    look_ahead(lists[token], lists[last ? 0 : token + 1], last ? call.block_bytes() : 0);
  }
  const int threads =
      useful_threads(call.threads, listed * call.rows, least_macs_per_thread(call.threads), call.block_count());
  fork_join(threads, [&](int64_t part, int64_t parts) {
    const int64_t end = part_begin(call.block_count(), part + 1, parts);
    for (int64_t block = part_begin(call.block_count(), part, parts); block < end; ++block)
      for (int64_t token = 0; token < tokens; ++token) {
        const Epilogue epilogue = call.epilogue.from_token(token);
        call.kernels->column_matvec({call.blocks, call.block_bytes(), &lists[token], input.sum[token],
                                     input.scale[token], &epilogue, block, block + 1});
      }
  });
}

// Returns the first token whose scale is NaN (its outputs are NaN), or kAllFinite.
static inline int64_t multiply(const ColumnSparseCall& call, const QuantizedInput& input) {
  FirstBadToken bad;
  for (int64_t token = 0; token < call.tokens; token += kListedTokens) {
    ColumnSparseCall listed = call;
    listed.tokens = smaller(kListedTokens, call.tokens - token);
    listed.epilogue = call.epilogue.from_token(token);
    multiply_listed(listed, input.from_token(token));
    for (int64_t i = token; i < token + listed.tokens; ++i) bad.note(i, input.scale[i]);
  }
  return bad.token();
}

}  // namespace agentforge
