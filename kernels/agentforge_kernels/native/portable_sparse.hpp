// Sparse ternary matvecs for any 64-bit little-endian processor (see portable.hpp).
#pragma once

#include "portable.hpp"
#include "sparse_kernels.hpp"

AGENTFORGE_OPTIMIZE_MORE
namespace agentforge::portable {

static void sum_groups(const int8_t* q, int64_t groups, int32_t* sums, int64_t stride) {
  for (int64_t group = 0; group < groups; ++group) {
    int32_t sum = 0;
    for (int64_t column = 0; column < kGroupColumns; ++column) sum += q[group * kGroupColumns + column];
    sums[group * stride] = sum;
  }
}

static void block_matvec(const BlockTiles& weights, const int8_t* q, const int32_t* group_sums, float scale,
                         const Epilogue& epilogue, int64_t block_begin, int64_t block_end) {
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t first = weights.start[block], end = weights.start[block + 1];
    PanelSums sums = {};
    add_groups(weights.tiles + first * kGroupBytes, end - first, q, weights.index + first, kGroupColumns, sums);
    int32_t excess = 0;
    for (int64_t tile = first; tile < end; ++tile) excess += group_sums[weights.index[tile]];
    finish_panel(epilogue, block * kPanelRows, sums, excess, scale);
  }
}

// Without branches: an entry is written for every column and kept when the column is not zero.
static int64_t list_columns(const int8_t* q, int64_t columns, ColumnList& list) {
  int64_t count = 0;
  for (int64_t column = 0; column < columns; ++column) {
    list.offset[count] = static_cast<int32_t>(kLineBytes * column);
    list.value[count] = q[column];
    count += q[column] != 0;
  }
  return count;
}

// A 16-bit lane of a line is two bytes, each with four rows of one column. One column at a time: every product
// has a lane of its own, and so has every row: [byte of the lane][field]. Fields 1 and 3 count four times, and
// 32 products of at most 1024 downwards and 1016 upwards are exactly [-32768, 32512].
constexpr int64_t kColumnSegment = 32;

// Row of lane `lane` (0..7), byte and field of 16 bytes: byte 2 lane + byte of them (pack_columns.hpp).
static AGENTFORGE_INLINE int64_t block_row(int64_t chunk, int64_t lane, int byte, int field) {
  const int64_t at = 2 * lane + byte;
  return 64 * (at / 4) + 16 * field + 4 * chunk + at % 4;
}

// Adds columns [begin, end) of the list to the 64 rows of 16 bytes (`chunk`) of each line.
static AGENTFORGE_INLINE void add_columns(const uint8_t* lines, const ColumnList& list, int64_t begin,
                                          int64_t end, int64_t chunk, int32_t* rows) {
  NarrowLanes sums[2][4] = {};  // [byte][field]
  for (int64_t entry = begin; entry < end; ++entry) {
    CodeLanes codes;
    std::memcpy(&codes, lines + list.offset[entry] + 16 * chunk, sizeof codes);
    const int16_t value = list.value[entry];
    const NarrowLanes x = {value, value, value, value, value, value, value, value};
    AGENTFORGE_UNROLL for (int byte = 0; byte < 2; ++byte) {
      AGENTFORGE_UNROLL for (int pair = 0; pair < 2; ++pair) {
        const CodeLanes shifted = codes >> (8 * byte + 4 * pair);
        sums[byte][2 * pair] += reinterpret_cast<NarrowLanes>(shifted & 0x3) * x;
        sums[byte][2 * pair + 1] += reinterpret_cast<NarrowLanes>(shifted & 0xc) * x;
      }
    }
  }
  for (int byte = 0; byte < 2; ++byte)
    for (int field = 0; field < 4; ++field)
      for (int64_t lane = 0; lane < 8; ++lane)
        rows[block_row(chunk, lane, byte, field)] += sums[byte][field][lane] >> (field % 2 ? 2 : 0);
}

static void column_matvec(const ColumnMatvecCall& call) {
  for (int64_t block = call.block_begin; block < call.block_end; ++block) {
    const uint8_t* const lines = call.blocks + block * call.block_bytes;
    int32_t rows[kBlockRows] = {};
    for (int64_t begin = 0; begin < call.list->count; begin += kColumnSegment) {
      const int64_t end = smaller(begin + kColumnSegment, call.list->count);
      for (int64_t chunk = 0; chunk < kLineBytes / 16; ++chunk)
        add_columns(lines, *call.list, begin, end, chunk, rows);
    }
    const int64_t first_row = block * kBlockRows;
    const int64_t count = smaller(kBlockRows, call.epilogue->rows - first_row);
    for (int64_t row = 0; row < count; ++row)
      finish_row(*call.epilogue, first_row + row, rows[row] - call.sum, call.scale);
  }
}

static const SparseKernels sparse_kernels = {sum_groups, block_matvec, list_columns, column_matvec};

}  // namespace agentforge::portable
AGENTFORGE_OPTIMIZE_END
