// int8 weights to lanes, for the language-model head.
//
// Panels of 64 rows x groups of 16 columns, 1024 bytes each: four steps of four columns, in each four lines of 16
// rows, in each one 32-bit word a row. Bytes are weight + 128: vpdpbusd multiplies unsigned bytes with signed
// ones, activations are signed already, and the excess is then 128 times their sum, which is known.
#pragma once

#include "common.hpp"

namespace agentforge {

constexpr int64_t kInt8GroupBytes = kPanelRows * kGroupColumns;
constexpr int64_t kStepBytes = kPanelRows * kLineColumns;
constexpr int64_t kStepLines = 4;
constexpr int64_t kStepLineRows = kPanelRows / kStepLines;
constexpr uint32_t kRaise = 0x80808080u;

// Modulo 2^32, as the sums it is subtracted from.
static inline int32_t int8_excess(int32_t sum) { return static_cast<int32_t>(static_cast<uint32_t>(sum) * 128u); }

static inline int64_t lanes_bytes(int64_t rows, int64_t columns) {
  return round_up(rows, kPanelRows) * round_up(columns, kGroupColumns);
}

// weight [rows][columns] to lanes; rows and columns beyond the matrix become weight 0.
static inline void pack_lanes(const int8_t* weight, int64_t rows, int64_t columns, uint8_t* lanes) {
  const int64_t row_steps = round_up(columns, kGroupColumns) / kLineColumns;
  for (int64_t row = 0; row < round_up(rows, kPanelRows); ++row) {
    uint8_t* out = lanes + row / kPanelRows * row_steps * kStepBytes + row % kPanelRows * 4;
    for (int64_t step = 0; step < row_steps; ++step, out += kStepBytes) {
      const int64_t column = step * kLineColumns;
      uint32_t word = 0;
      if (row < rows && column < columns)
        std::memcpy(&word, weight + row * columns + column,
                    static_cast<size_t>(smaller(kLineColumns, columns - column)));
      word ^= kRaise;
      std::memcpy(out, &word, sizeof word);
    }
  }
}

}  // namespace agentforge
