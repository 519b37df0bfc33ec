// int8 matmul for any 64-bit little-endian processor, one token at a time (see portable.hpp).
#pragma once

#include "pack_lanes.hpp"
#include "portable.hpp"

namespace agentforge::portable {

typedef WordLanes Int8Sums[kPanelRows / kVectorLanes];  // modulo 2^32: the excess is taken off at the end

// Both int16 of every 32-bit lane, added.
static AGENTFORGE_INLINE WideLanes add_pairs(NarrowLanes narrow) {
  const WideLanes pairs = reinterpret_cast<WideLanes>(narrow);
  return (pairs >> 16) + (reinterpret_cast<WideLanes>(reinterpret_cast<WordLanes>(pairs) << 16) >> 16);
}

// Adds `groups` groups of one panel. A product, 255 * 127 at most and 255 * -128 at least, fits int16.
static AGENTFORGE_INLINE void add_int8_groups(const uint8_t* weights, int64_t groups, const int8_t* q,
                                              Int8Sums& sums) {
  for (int64_t step = 0; step < 4 * groups; ++step, weights += kStepBytes) {
    const LineFactors factors = spread(q + step * kLineColumns);
    for (int64_t vector = 0; vector < kPanelRows / kVectorLanes; ++vector) {
      CodeLanes bytes;
      std::memcpy(&bytes, weights + 16 * vector, sizeof bytes);
      const NarrowLanes even = reinterpret_cast<NarrowLanes>(bytes & 0xff) * factors.byte[0];
      const NarrowLanes odd = reinterpret_cast<NarrowLanes>(bytes >> 8) * factors.byte[1];
      sums[vector] += reinterpret_cast<WordLanes>(add_pairs(even) + add_pairs(odd));
    }
  }
}

static AGENTFORGE_INLINE void finish_int8_panel(const Epilogue& epilogue, int64_t first, const Int8Sums& sums,
                                                int32_t sum, float scale) {
  const int64_t rows = smaller(kPanelRows, epilogue.rows - first);
  const uint32_t excess = static_cast<uint32_t>(int8_excess(sum));
  for (int64_t row = 0; row < rows; ++row) {
    const uint32_t total = sums[row / kVectorLanes][row % kVectorLanes];
    finish_row(epilogue, first + row, static_cast<int32_t>(total - excess), scale);
  }
}

static void int8_matvec(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum, float scale,
                        const Epilogue& epilogue, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    Int8Sums sums = {};
    add_int8_groups(panels + panel * groups * kInt8GroupBytes, groups, q, sums);
    finish_int8_panel(epilogue, panel * kPanelRows, sums, sum, scale);
  }
}

static void int8_tile(const TileCall& call) {
  Int8Sums sums = {};
  if (!call.first) std::memcpy(&sums, call.carry, sizeof sums);
  add_int8_groups(call.weights, call.groups, reinterpret_cast<const int8_t*>(call.words), sums);
  if (call.last) finish_int8_panel(*call.epilogue, call.row, sums, call.sum[0], call.scale[0]);
  else std::memcpy(call.carry, &sums, sizeof sums);
}

static const DenseKernels int8_kernels = {quantize_row, int8_matvec, 1, {nullptr, int8_tile},
                                          {nullptr, pack_tokens_portable<1>}, nullptr, 0, 0, 0, kInt8GroupBytes};

}  // namespace agentforge::portable
