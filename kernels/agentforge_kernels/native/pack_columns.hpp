// The stored column form (sparse.ColumnTernary: one line a column of W, packed along its rows) to blocks of 256
// rows and back; exact, any size.
//
// Block: one line of 64 bytes a column. A line is four chunks of 16 bytes; byte 4 part + m of chunk c holds rows
// 64 part + 16 field + 4 c + m at bits 2 field. When bytes of four lines are interleaved within chunks (which
// is all that vector units do cheaply), each 32-bit lane is four columns of four rows 16 apart, and the 16
// lanes are consecutive rows.
//
// A 32-bit word of a line therefore takes, for each field, four consecutive rows: one stored word of one plane.
#pragma once

#include "pack.hpp"
#include "sparse_kernels.hpp"

namespace agentforge {

constexpr int64_t kLineWords = kLineBytes / 4;

static inline int64_t column_blocks_bytes(int64_t rows, int64_t columns) {
  return ceil_div(rows, kBlockRows) * columns * kLineBytes;
}

// First of the four rows that field `field` of word `word` of a line holds.
static AGENTFORGE_INLINE int64_t first_row_of(int64_t block, int64_t word, int64_t field) {
  return block * kBlockRows + word % 4 * 64 + field * 16 + word / 4 * 4;
}

// Where in a stored line four rows lie, and in which plane.
static AGENTFORGE_INLINE int64_t stored_word_of(int64_t row) {
  return row / kStoredColumns * kStoredBytes + row % kStoredBytes;
}
static AGENTFORGE_INLINE int plane_of(int64_t row) {
  return static_cast<int>(row % kStoredColumns / kStoredBytes);
}

// codes [columns][stride bytes] to blocks; rows beyond the stored ones (padded to 128) become weight 0.
static inline void pack_columns(const uint8_t* codes, int64_t stride, int64_t rows, int64_t columns,
                                uint8_t* blocks) {
  const int64_t stored_rows = round_up(rows, kStoredColumns);
  for (int64_t block = 0; block < ceil_div(rows, kBlockRows); ++block)
    for (int64_t column = 0; column < columns; ++column) {
      uint8_t* const line = blocks + (block * columns + column) * kLineBytes;
      for (int64_t word = 0; word < kLineWords; ++word) {
        uint32_t packed = 0;
        for (int64_t field = 0; field < 4; ++field) {
          const int64_t row = first_row_of(block, word, field);
          const uint32_t stored = row < stored_rows
                                      ? load_unaligned<uint32_t>(codes + column * stride + stored_word_of(row))
                                      : kZeroWeights;
          packed |= (stored >> (2 * plane_of(row)) & kCodesOfPlane) << (2 * field);
        }
        store_word(line + 4 * word, packed);
      }
    }
}

// The inverse.
static inline void unpack_columns(const uint8_t* blocks, int64_t rows, int64_t columns, uint8_t* codes,
                                  int64_t stride) {
  const int64_t stored_rows = round_up(rows, kStoredColumns);
  std::memset(codes, 0, static_cast<size_t>(columns * stride));
  for (int64_t block = 0; block < ceil_div(rows, kBlockRows); ++block)
    for (int64_t column = 0; column < columns; ++column) {
      const uint8_t* const line = blocks + (block * columns + column) * kLineBytes;
      for (int64_t word = 0; word < kLineWords; ++word) {
        const uint32_t packed = load_unaligned<uint32_t>(line + 4 * word);
        for (int64_t field = 0; field < 4; ++field) {
          const int64_t row = first_row_of(block, word, field);
          if (row >= stored_rows) continue;
          uint8_t* const at = codes + column * stride + stored_word_of(row);
          const uint32_t four_rows = (packed >> (2 * field) & kCodesOfPlane) << (2 * plane_of(row));
          store_word(at, load_unaligned<uint32_t>(at) | four_rows);
        }
      }
    }
}

}  // namespace agentforge
