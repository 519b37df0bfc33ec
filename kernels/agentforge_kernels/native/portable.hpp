// Dense ternary kernels for any 64-bit little-endian processor, in the vector types of GCC and clang
// (128 bits: SSE2, NEON, VSX), one token at a time; from three on by lookup_matmul.hpp.
//
// A 32-bit lane of a line is two 16-bit lanes: an even one with bytes 0 and 1 (columns 0 and 1), an odd one
// with bytes 2 and 3. A lane holds two columns of four rows; shifted by 0, 4, 8 or 12, two rows of one column
// lie under the masks 0x3 and 0xc, the second counting four times. So 16 bytes take 3 shifts and 8 times (mask,
// multiply, add), each with the two activations that belong to the even and the odd lane.
//
// Sums are int16 for four groups: a row field adds 32 products of magnitude at most 2 * 128, or, fourfold, of
// at most 1024 downwards and 1016 upwards, [-32768, 32512]: exactly int16. Then the lane pairs are widened.
#pragma once

#include "dense_kernels.hpp"
#include "lookup_matmul.hpp"
#include "portable_quantize.hpp"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the native kernels need a little-endian processor; build the pure-Python wheel"
#endif

namespace agentforge::portable {

typedef int16_t NarrowLanes __attribute__((vector_size(16)));
typedef uint16_t CodeLanes __attribute__((vector_size(16)));
typedef int32_t WideLanes __attribute__((vector_size(16)));
typedef uint32_t WordLanes __attribute__((vector_size(16)));

constexpr int64_t kSegmentGroups = 4;
constexpr int64_t kSegmentLines = 4 * kSegmentGroups;
constexpr int64_t kVectorLanes = 4;
constexpr int64_t kLineVectors = kLineLanes / kVectorLanes;

// The activations of one line's four columns as factors: of columns 0 and 2, and of columns 1 and 3.
struct LineFactors {
  NarrowLanes byte[2];
};

static AGENTFORGE_INLINE LineFactors spread(const int8_t* q) {
  LineFactors factors;
  for (int byte = 0; byte < 2; ++byte) {
    const int32_t even = q[byte], odd = q[2 + byte];
    const int32_t pair = static_cast<int32_t>(static_cast<uint32_t>(odd) << 16 | (even & 0xffff));
    const WideLanes pairs = {pair, pair, pair, pair};
    factors.byte[byte] = reinterpret_cast<NarrowLanes>(pairs);
  }
  return factors;
}

// 16 bytes of a line: 4 lanes, 8 products each, into the sums of the four row fields.
static AGENTFORGE_INLINE void add_products(const uint8_t* codes, const LineFactors& factors,
                                           NarrowLanes (&fields)[4]) {
  CodeLanes lanes;
  std::memcpy(&lanes, codes, sizeof lanes);
  AGENTFORGE_UNROLL for (int byte = 0; byte < 2; ++byte) {
    AGENTFORGE_UNROLL for (int pair = 0; pair < 2; ++pair) {
      const CodeLanes shifted = lanes >> (8 * byte + 4 * pair);
      fields[2 * pair] += reinterpret_cast<NarrowLanes>(shifted & 0x3) * factors.byte[byte];
      fields[2 * pair + 1] += reinterpret_cast<NarrowLanes>(shifted & 0xc) * factors.byte[byte];
    }
  }
}

// The sums of a panel's 64 rows, in their order: [16 * field + lane].
struct PanelSums {
  WideLanes rows[4][kLineVectors];
};

// Adds `groups` groups of one panel to the sums of its rows (of codes times activations). Activations of
// group i begin `unit` * place[i] bytes after q; without `place` one group after the other.
static AGENTFORGE_INLINE void add_groups(const uint8_t* blocks, int64_t groups, const int8_t* q,
                                         const int32_t* place, int64_t unit, PanelSums& sums) {
  for (int64_t segment = 0; segment < groups; segment += kSegmentGroups) {
    const int64_t lines = 4 * smaller(kSegmentGroups, groups - segment);
    const uint8_t* const first = blocks + segment * kGroupBytes;
    LineFactors factors[kSegmentLines];
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t group = segment + line / 4;
      const int64_t begin = place ? place[group] * unit : group * kGroupColumns;
      factors[line] = spread(q + begin + line % 4 * kLineColumns);
    }
    for (int64_t vector = 0; vector < kLineVectors; ++vector) {
      NarrowLanes fields[4] = {};
      for (int64_t line = 0; line < lines; ++line)
        add_products(first + line * kLineBytes + 16 * vector, factors[line], fields);
      AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field) {
        const WideLanes pairs = reinterpret_cast<WideLanes>(fields[field]);
        const WideLanes odd = pairs >> 16;
        const WideLanes even = reinterpret_cast<WideLanes>(reinterpret_cast<WordLanes>(pairs) << 16) >> 16;
        sums.rows[field][vector] += field % 2 ? (even + odd) >> 2 : even + odd;
      }
    }
  }
}

static AGENTFORGE_INLINE void finish_panel(const Epilogue& epilogue, int64_t first, const PanelSums& sums,
                                           int32_t excess, float scale) {
  const int64_t rows = smaller(kPanelRows, epilogue.rows - first);
  for (int64_t row = 0; row < rows; ++row) {
    const WideLanes& lanes = sums.rows[row / kLineLanes][row % kLineLanes / kVectorLanes];
    finish_row(epilogue, first + row, lanes[row % kVectorLanes] - excess, scale);
  }
}

static void matvec(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum, float scale,
                   const Epilogue& epilogue, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    PanelSums sums = {};
    add_groups(panels + panel * groups * kGroupBytes, groups, q, nullptr, 0, sums);
    finish_panel(epilogue, panel * kPanelRows, sums, sum, scale);
  }
}

// The tile of one token: its words are its activations in order.
static void tile(const TileCall& call) {
  PanelSums sums = {};
  if (!call.first) std::memcpy(&sums, call.carry, sizeof sums);
  add_groups(call.weights, call.groups, reinterpret_cast<const int8_t*>(call.words), call.offset, 4, sums);
  if (call.last)
    finish_panel(*call.epilogue, call.row, sums, call.sum[0], call.scale[0]);
  else
    std::memcpy(call.carry, &sums, sizeof sums);
}

// Lookup takes about the time of 2.5 tokens for up to 8.
static const DenseKernels dense_kernels = {quantize_row,
                                           matvec,
                                           1,
                                           {nullptr, tile},
                                           {nullptr, pack_tokens_portable<1>},
                                           lookup::multiply,
                                           3,
                                           lookup::kMostTokens,
                                           lookup::kScratchBytes};

}  // namespace agentforge::portable
