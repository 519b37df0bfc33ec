// The slots a level of instruction set fills for the two sparse ternary matmuls: over tiles of weights that
// are not zero (block_sparse.hpp), and over columns whose activation is not zero (activation_sparse.hpp).
#pragma once

#include "common.hpp"

namespace agentforge {

// ---- Block-sparse: compressed sparse rows over blocks of 64 rows ---------------------------------

struct BlockTiles {
  const uint8_t* tiles;  // [count][256], in the panels layout (pack_tiles)
  const int32_t* index;  // [count]: the group of 16 columns of each tile
  const int32_t* start;  // [blocks + 1]: first tile of each block of 64 rows
};

// Sums of 16 activations each: sums[group * stride], for `groups` groups of q.
using SumGroups = void (*)(const int8_t* q, int64_t groups, int32_t* sums, int64_t stride);

// One token times blocks [block_begin, block_end). group_sums: of SumGroups with stride 1; a block's excess of
// codes over weights is the sum of the activations its tiles meet. At most kMostMatvecGroups tiles a block.
using BlockMatvec = void (*)(const BlockTiles& weights, const int8_t* q, const int32_t* group_sums,
                             float scale, const Epilogue& epilogue, int64_t block_begin, int64_t block_end);

// ---- Activation-sparse: blocks of 256 rows, one line of 64 bytes a column (pack_columns.hpp) -----

constexpr int64_t kBlockRows = 256;
constexpr int64_t kColumnsAtOnce = 4;     // a list is padded to a multiple of this, with value 0
constexpr int64_t kColumnsAhead = 32;     // lines prefetched ahead; so many more offsets follow a list
constexpr int64_t kListColumns = 128;     // a listing function may read q up to a multiple of this

// The columns of one token that are not zero, in ascending order.
struct ColumnList {
  int32_t* offset = nullptr;  // of the column's line in a block: 64 * column, below 2^28
  int8_t* value = nullptr;
  int64_t count = 0;  // a multiple of kColumnsAtOnce

  // Room for the list of so many columns, each part 64-byte aligned.
  static int64_t offset_bytes(int64_t columns) { return round_up(4 * (columns + kColumnsAhead + 64), 64); }
  static int64_t bytes(int64_t columns) { return offset_bytes(columns) + round_up(columns + 128, 64); }

  void place(char* memory, int64_t columns) {
    offset = reinterpret_cast<int32_t*>(memory);
    value = reinterpret_cast<int8_t*>(memory + offset_bytes(columns));
  }
};

// Writes offset and value of the columns of q that are not zero and returns how many. Whole registers may be
// stored: 64 entries beyond the last one may be overwritten.
using ListColumns = int64_t (*)(const int8_t* q, int64_t columns, ColumnList& list);

struct ColumnMatvecCall {
  const uint8_t* blocks;  // the whole matrix
  int64_t block_bytes;    // 64 * columns
  const ColumnList* list;
  int32_t sum;
  float scale;
  const Epilogue* epilogue;  // starts at the token
  int64_t block_begin;
  int64_t block_end;
};
using ColumnMatvec = void (*)(const ColumnMatvecCall& call);

struct SparseKernels {
  SumGroups sum_groups;
  BlockMatvec block_matvec;
  ListColumns list_columns;
  ColumnMatvec column_matvec;
};

}  // namespace agentforge
