// Dense ternary kernels for any 64-bit little-endian processor, in the vector types of GCC and clang
// (128 bits: SSE2, NEON, VSX), one token at a time; from three on by lookup_matmul.hpp.
//
// A row's 32-bit word in a block is two 16-bit lanes: an even one with bytes 0 and 1, an odd one with
// bytes 2 and 3. A lane holds eight codes; shifted by 0, 4, 8 or 12, two of them lie under the masks 0x3
// and 0xc, the second counting four times. So a vector of 4 rows takes 3 shifts and 8 times (mask,
// multiply, add), each with the two activations that belong to the even and the odd lane.
//
// Sums are int16 for eight groups: single ones add 32 products of magnitude at most 2 * 128, fourfold
// ones 32 of at most 1024 downwards and 1016 upwards, [-32768, 32512]: exactly int16. Then a quarter of
// the fourfold and the single ones (8192 each at most) are added and the lane pairs widened to int32.
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

constexpr int64_t kSegmentGroups = 8;
constexpr int kProducts = 8;  // codes in a lane
constexpr int64_t kVectorRows = 4;

// The activations of one group as factors: [product][lane], product 2 s + f for shift 4 s and mask f.
struct GroupFactors {
  NarrowLanes product[kProducts];
};

// Activations of byte b (of four) and column c (of four in a byte) are q[4 c + b].
static AGENTFORGE_INLINE void spread(const int8_t* q, GroupFactors& factors) {
  for (int shift = 0; shift < 4; ++shift)
    for (int fourfold = 0; fourfold < 2; ++fourfold) {
      const int8_t* const columns = q + 4 * (shift % 2 * 2 + fourfold) + shift / 2;
      const int32_t even = columns[0], odd = columns[2];
      const int32_t pair = static_cast<int32_t>(static_cast<uint32_t>(odd) << 16 | (even & 0xffff));
      const WideLanes pairs = {pair, pair, pair, pair};
      factors.product[2 * shift + fourfold] = reinterpret_cast<NarrowLanes>(pairs);
    }
}

// One vector of 4 rows and one group: 8 products a lane.
static AGENTFORGE_INLINE void add_products(const uint8_t* codes, const GroupFactors& factors,
                                           NarrowLanes& single, NarrowLanes& fourfold) {
  CodeLanes lanes;
  std::memcpy(&lanes, codes, sizeof lanes);
  AGENTFORGE_UNROLL for (int shift = 0; shift < 4; ++shift) {
    const CodeLanes shifted = lanes >> (4 * shift);
    single += reinterpret_cast<NarrowLanes>(shifted & 0x3) * factors.product[2 * shift];
    fourfold += reinterpret_cast<NarrowLanes>(shifted & 0xc) * factors.product[2 * shift + 1];
  }
}

// Adds `groups` groups of one panel to the sums of its 64 rows (of codes times activations).
static AGENTFORGE_INLINE void add_groups(const uint8_t* blocks, int64_t groups, const int8_t* q,
                                         WideLanes (&sums)[kPanelRows / kVectorRows]) {
  for (int64_t segment = 0; segment < groups; segment += kSegmentGroups) {
    const int64_t count = smaller(kSegmentGroups, groups - segment);
    const uint8_t* const first = blocks + segment * kGroupBytes;
    GroupFactors factors[kSegmentGroups];
    for (int64_t group = 0; group < count; ++group)
      spread(q + (segment + group) * kGroupColumns, factors[group]);
    for (int64_t vector = 0; vector < kPanelRows / kVectorRows; vector += 2) {
      NarrowLanes single[2] = {}, fourfold[2] = {};
      for (int64_t group = 0; group < count; ++group) {
        const uint8_t* const codes = first + group * kGroupBytes + 16 * vector;
        add_products(codes, factors[group], single[0], fourfold[0]);
        add_products(codes + 16, factors[group], single[1], fourfold[1]);
      }
      AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half) {
        const WideLanes pairs = reinterpret_cast<WideLanes>(single[half] + (fourfold[half] >> 2));
        const WideLanes odd = pairs >> 16;
        const WideLanes even = reinterpret_cast<WideLanes>(reinterpret_cast<WordLanes>(pairs) << 16) >> 16;
        sums[vector + half] += even + odd;
      }
    }
  }
}

static void matvec(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum, float scale,
                   const Epilogue& epilogue, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    WideLanes sums[kPanelRows / kVectorRows] = {};
    add_groups(panels + panel * groups * kGroupBytes, groups, q, sums);
    const int64_t first = panel * kPanelRows, rows = smaller(kPanelRows, epilogue.rows - first);
    for (int64_t row = 0; row < rows; ++row)
      finish_row(epilogue, first + row, sums[row / kVectorRows][row % kVectorRows] - sum, scale);
  }
}

// The tile of one token: its words are its activations in order.
static void tile(const TileCall& call) {
  WideLanes sums[kPanelRows / kVectorRows] = {};
  if (!call.first) std::memcpy(sums, call.carry, sizeof sums);
  add_groups(call.weights, call.groups, reinterpret_cast<const int8_t*>(call.words), sums);
  if (!call.last) {
    std::memcpy(call.carry, sums, sizeof sums);
    return;
  }
  const int64_t rows = smaller(kPanelRows, call.epilogue->rows - call.row);
  for (int64_t row = 0; row < rows; ++row)
    finish_row(*call.epilogue, call.row + row, sums[row / kVectorRows][row % kVectorRows] - call.sum[0],
               call.scale[0]);
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
