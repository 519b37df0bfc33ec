// Stored rows (TQ2_0 plane order, format.py) to panels and back; exact, any size.
//
// Stored: byte b of a 32-byte group of 128 columns holds columns 32 plane + b at bits 2 plane.
// Panels: a block (64 rows x 16 columns) is four lines of 64 bytes, one for four columns; byte b of 32-bit
// lane l of line c holds column 4 c + b of the rows l, 16 + l, 32 + l, 48 + l at bits 0, 2, 4, 6.
//
// Rows in the fields of a byte, not columns, because all four fields then meet the same activations: with
// the nested masks 0x03, 0x0f, 0x3f and none, a line costs 3 ands and 4 vpdpbusd, and the sums of the rows are
// differences of the four accumulators. Columns in the fields cost 4 ands, and in a tile of tokens 4 ands and
// 3 shifts; on processors with two 512-bit ports (Intel) these take the places of products.
//
// In between: the word of one row, columns 16 g + 4 field + b of byte b at bits 2 field, whose four fields
// lie in one stored plane, in four successive stored words.
#pragma once

#include "common.hpp"

namespace agentforge {

constexpr uint32_t kCodesOfPlane = 0x03030303u;
constexpr uint32_t kZeroWeights = 0x55555555u;  // code 1 in all fields
constexpr int64_t kGroupsPerStored = kStoredColumns / kGroupColumns;
constexpr int64_t kStoredBytes = kStoredColumns / 4;

static inline int64_t panels_bytes(int64_t rows, int64_t columns) {
  return ceil_div(rows, kPanelRows) * ceil_div(columns, kGroupColumns) * kGroupBytes;
}

static inline void store_word(uint8_t* address, uint32_t word) { std::memcpy(address, &word, sizeof word); }

// Field f of word i becomes field i of word f, in every byte; its own inverse. Words of any width.
template <typename Word>
static AGENTFORGE_INLINE void exchange_fields(Word (&words)[4]) {
  for (int low = 0; low < 2; ++low) {
    const Word change = ((words[low] >> 4) ^ words[low + 2]) & 0x0f0f0f0fu;
    words[low] ^= change << 4;
    words[low + 2] ^= change;
  }
  for (int low = 0; low < 4; low += 2) {
    const Word change = ((words[low] >> 2) ^ words[low + 1]) & 0x33333333u;
    words[low] ^= change << 2;
    words[low + 1] ^= change;
  }
}

// The word of one stored row and group of 16 columns.
static AGENTFORGE_INLINE uint32_t row_word(const uint8_t* stored_row, int64_t group) {
  const int64_t inside = group % kGroupsPerStored;  // 8 groups: two a plane
  const int plane = static_cast<int>(inside / 2);
  const uint8_t* stored = stored_row + group / kGroupsPerStored * kStoredBytes + inside % 2 * 16;
  uint32_t word = 0;
  for (int field = 0; field < 4; ++field)
    word |= (load_unaligned<uint32_t>(stored + 4 * field) >> (2 * plane) & kCodesOfPlane) << (2 * field);
  return word;
}

// codes [rows][padded columns / 4] to panels; rows beyond the matrix become weight 0.
static inline void pack_panels(const uint8_t* codes, int64_t rows, int64_t columns, uint8_t* panels) {
  const int64_t groups = ceil_div(columns, kGroupColumns);
  const int64_t row_bytes = round_up(columns, kStoredColumns) / 4;
  for (int64_t panel = 0; panel < ceil_div(rows, kPanelRows); ++panel)
    for (int64_t lane = 0; lane < kLineLanes; ++lane) {
      uint8_t* out = panels + panel * groups * kGroupBytes + 4 * lane;
      for (int64_t group = 0; group < groups; ++group, out += kGroupBytes) {
        uint32_t words[4];
        for (int64_t quarter = 0; quarter < 4; ++quarter) {
          const int64_t row = panel * kPanelRows + quarter * kLineLanes + lane;
          words[quarter] = row < rows ? row_word(codes + row * row_bytes, group) : kZeroWeights;
        }
        exchange_fields(words);
        for (int64_t line = 0; line < 4; ++line) store_word(out + line * kLineBytes, words[line]);
      }
    }
}

// The inverse; columns between `columns` and the stored padding become weight 0.
static inline void unpack_panels(const uint8_t* panels, int64_t rows, int64_t columns, uint8_t* codes) {
  const int64_t groups = ceil_div(columns, kGroupColumns);
  const int64_t stored_groups = ceil_div(columns, kStoredColumns);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t quarter = row % kPanelRows / kLineLanes;
    const uint8_t* in = panels + row / kPanelRows * groups * kGroupBytes + row % kLineLanes * 4;
    uint8_t* stored_row = codes + row * stored_groups * kStoredBytes;
    for (int64_t stored_group = 0; stored_group < stored_groups; ++stored_group) {
      uint32_t stored[8] = {};
      for (int64_t inside = 0; inside < kGroupsPerStored; ++inside) {
        const int64_t group = stored_group * kGroupsPerStored + inside;
        for (int64_t line = 0; line < 4; ++line) {
          const uint32_t four_rows = group < groups
                                         ? load_unaligned<uint32_t>(in + group * kGroupBytes + line * kLineBytes)
                                         : kZeroWeights;
          stored[inside % 2 * 4 + line] |= (four_rows >> (2 * quarter) & kCodesOfPlane) << (inside / 2 * 2);
        }
      }
      std::memcpy(stored_row + stored_group * kStoredBytes, stored, sizeof stored);
    }
  }
}

}  // namespace agentforge
