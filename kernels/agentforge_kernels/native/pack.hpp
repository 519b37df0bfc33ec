// Stored rows (TQ2_0 plane order, format.py) to panels and back; exact, any size.
//
// Stored: byte b of a 32-byte group of 128 columns holds columns 32 plane + b at bits 2 plane.
// Panels: byte b of a row's 32-bit word in group g holds columns 16 g + 4 field + b at bits 2 field.
// So the four fields of a panel word lie in one stored plane, in four successive stored words:
// word field of the half plane, shifted down by the plane, masked, shifted up by the field.
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

// codes [rows][padded columns / 4] to panels; rows beyond the matrix become weight 0.
static inline void pack_panels(const uint8_t* codes, int64_t rows, int64_t columns, uint8_t* panels) {
  const int64_t groups = ceil_div(columns, kGroupColumns);
  const int64_t row_bytes = round_up(columns, kStoredColumns) / 4;
  for (int64_t row = 0; row < round_up(rows, kPanelRows); ++row) {
    uint8_t* out = panels + row / kPanelRows * groups * kGroupBytes + row % kPanelRows * 4;
    const uint8_t* stored_row = codes + row * row_bytes;
    for (int64_t group = 0; group < groups; ++group, out += kGroupBytes) {
      if (row >= rows) {
        store_word(out, kZeroWeights);
        continue;
      }
      const int64_t inside = group % kGroupsPerStored;  // 8 groups: two a plane
      const int plane = static_cast<int>(inside / 2);
      const uint8_t* stored = stored_row + group / kGroupsPerStored * kStoredBytes + inside % 2 * 16;
      uint32_t word = 0;
      for (int field = 0; field < 4; ++field)
        word |= (load_unaligned<uint32_t>(stored + 4 * field) >> (2 * plane) & kCodesOfPlane) << (2 * field);
      store_word(out, word);
    }
  }
}

// The inverse; columns between `columns` and the stored padding become weight 0.
static inline void unpack_panels(const uint8_t* panels, int64_t rows, int64_t columns, uint8_t* codes) {
  const int64_t groups = ceil_div(columns, kGroupColumns);
  const int64_t stored_groups = ceil_div(columns, kStoredColumns);
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* in = panels + row / kPanelRows * groups * kGroupBytes + row % kPanelRows * 4;
    uint8_t* stored_row = codes + row * stored_groups * kStoredBytes;
    for (int64_t stored_group = 0; stored_group < stored_groups; ++stored_group) {
      uint32_t words[8] = {};
      for (int64_t inside = 0; inside < kGroupsPerStored; ++inside) {
        const int64_t group = stored_group * kGroupsPerStored + inside;
        const uint32_t packed =
            group < groups ? load_unaligned<uint32_t>(in + group * kGroupBytes) : kZeroWeights;
        for (int field = 0; field < 4; ++field)
          words[inside % 2 * 4 + field] |= (packed >> (2 * field) & kCodesOfPlane) << (inside / 2 * 2);
      }
      std::memcpy(stored_row + stored_group * kStoredBytes, words, sizeof words);
    }
  }
}

}  // namespace agentforge
