// Matmul of several tokens with AMX tiles, ternary or int8; everything else of this level is AVX-512's.
//
// tdpbsud multiplies a tile of up to 16 tokens x 64 signed activations, straight from their rows, with a tile of
// 16 lines of weights: a line is four columns of 16 rows, one unsigned byte each, which is what a line of panels
// (pack.hpp, under one of the nested masks) and a line of int8 lanes (pack_lanes.hpp) are. Four tiles of weights
// are the 64 rows of a panel, so four tiles of sums are one token tile's outputs of it. Per 64 columns: 5 tile
// loads (8 cycles each) and 4 products (16 cycles each).
#pragma once

#include "avx512_dense.hpp"
#include "avx512_int8.hpp"
#include "isa.hpp"

#if AGENTFORGE_AMX
AGENTFORGE_TARGET_AMXINT8
namespace agentforge::amx {

constexpr int64_t kTileTokens = 16;
constexpr int64_t kTileBytes = 64;  // of a row: 64 activations, or four columns of 16 rows of weights
constexpr int64_t kStepColumns = 64;
constexpr int64_t kStepGroups = kStepColumns / kGroupColumns;
constexpr int64_t kStepLines = kStepColumns / kLineColumns;
// Weights as tiles read them stay in the first-level cache for all tokens: 512 columns are 32 KB.
constexpr int64_t kBlockSteps = 8;
constexpr int64_t kBlockGroups = kBlockSteps * kStepGroups;
constexpr int64_t kMaskedTileBytes = kStepLines * kTileBytes;
constexpr int64_t kMaskedStepBytes = 3 * kMaskedTileBytes;
// Tokens that take turns on a block of weights: their activations should stay in the second-level cache.
constexpr int64_t kMostTurnTokens = 256;
constexpr int64_t kMostTurnBytes = 1 << 20;
constexpr int64_t kSumsBytes = kMostTurnTokens * kPanelRows * 4;
constexpr int64_t kScratchBytes = kSumsBytes + kBlockSteps * kMaskedStepBytes;

// Tile registers: 0 to 3 are sums. The last columns of a row, fewer than 64, have registers of their own shape.
constexpr int kTokens = 4, kWeights = 5, kLastTokens = 6, kLastWeights = 7;

struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileShapes(int64_t tokens, int64_t last_groups) {
    for (int sums = 0; sums < 4; ++sums) set(sums, tokens, kTileBytes);
    set(kTokens, tokens, kTileBytes);
    set(kWeights, kStepLines, kTileBytes);
    if (last_groups == 0) return;
    set(kLastTokens, tokens, last_groups * kGroupColumns);
    set(kLastWeights, last_groups * kStepGroups, kTileBytes);
  }
  void set(int tile, int64_t tile_rows, int64_t bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

// Where the four weight tiles of a step lie: three at a distance, the fourth on its own.
struct WeightTiles {
  const uint8_t* first;
  int64_t distance;    // between the first three
  int64_t step_bytes;  // to the next step of these
  const uint8_t* fourth;
  int64_t fourth_step_bytes;
  int64_t line_bytes;  // between the rows of a tile
};

// A token tile's sums of a panel that wait to become outputs, a few tokens at a time between the products of the
// next tile: they use other units of the processor.
struct Unfinished {
  const MatmulCall* call;
  bool nested;  // sums of nested masks: ternary; else of raised int8 weights
  int64_t row;
  const int32_t* sums;  // [tokens][4][16], from `token` on
  int64_t token;
  int64_t end;

  __attribute__((noinline)) void finish(int64_t count) {
    for (; count > 0 && token < end; --count, ++token, sums += kPanelRows) {
      __m512i rows[4], found[4];
      AGENTFORGE_UNROLL for (int tile = 0; tile < 4; ++tile) found[tile] = _mm512_load_si512(sums + 16 * tile);
      int32_t excess = call->sum[token];
      if (nested) {
        avx512::separate_rows(rows, found);
      } else {
        AGENTFORGE_UNROLL for (int tile = 0; tile < 4; ++tile) rows[tile] = found[tile];
        excess = int8_excess(excess);
      }
      AGENTFORGE_UNROLL for (int tile = 0; tile < 4; ++tile)
        rows[tile] = _mm512_sub_epi32(rows[tile], _mm512_set1_epi32(excess));
      avx512::finish_panel(call->epilogue->from_token(token), row, rows, call->scale[token]);
    }
  }
};

// 16 tokens x 64 columns (or fewer of either) x 64 rows; registers by number, which has to be literal.
#define AGENTFORGE_TILE_STEP(tokens, weight)                              \
  _tile_loadd(tokens, q, stride);                                         \
  _tile_loadd(weight, at, weights.line_bytes);                            \
  _tile_dpbsud(0, tokens, weight);                                        \
  _tile_loadd(weight, at + weights.distance, weights.line_bytes);         \
  _tile_dpbsud(1, tokens, weight);                                        \
  _tile_loadd(weight, at + 2 * weights.distance, weights.line_bytes);     \
  _tile_dpbsud(2, tokens, weight);                                        \
  _tile_loadd(weight, fourth, weights.line_bytes);                        \
  _tile_dpbsud(3, tokens, weight);

// `steps` steps of 64 columns and, where `last_step`, one of fewer; the sums stay in tiles 0 to 3.
static AGENTFORGE_INLINE void multiply_steps(const WeightTiles& weights, const int8_t* q, int64_t stride,
                                             int64_t steps, bool last_step, Unfinished& unfinished) {
  const uint8_t* at = weights.first;
  const uint8_t* fourth = weights.fourth;
  const int64_t share = ceil_div(unfinished.end - unfinished.token, steps + last_step);
  for (int64_t step = 0; step < steps; ++step) {
    AGENTFORGE_TILE_STEP(4, 5)
    q += kStepColumns;
    at += weights.step_bytes;
    fourth += weights.fourth_step_bytes;
    unfinished.finish(share);
  }
  if (last_step) {
    AGENTFORGE_TILE_STEP(6, 7)
  }
  unfinished.finish(kTileTokens);
}

static AGENTFORGE_INLINE void load_sums(const int32_t* sums) {
  constexpr int64_t kStride = kPanelRows * 4;
  _tile_loadd(0, sums, kStride);
  _tile_loadd(1, sums + 16, kStride);
  _tile_loadd(2, sums + 32, kStride);
  _tile_loadd(3, sums + 48, kStride);
}

static AGENTFORGE_INLINE void store_sums(int32_t* sums) {
  constexpr int64_t kStride = kPanelRows * 4;
  _tile_stored(0, sums, kStride);
  _tile_stored(1, sums + 16, kStride);
  _tile_stored(2, sums + 32, kStride);
  _tile_stored(3, sums + 48, kStride);
}

static AGENTFORGE_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Lines of a panel under three nested masks; the fourth tile of a step are the lines as they are.
static AGENTFORGE_INLINE void mask_lines(const uint8_t* lines, int64_t count, uint8_t* masked) {
  const __m512i masks[3] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0f), _mm512_set1_epi8(0x3f)};
  for (int64_t line = 0; line < count; ++line, lines += kLineBytes) {
    const __m512i codes = _mm512_loadu_si512(lines);
    uint8_t* const to = masked + line / kStepLines * kMaskedStepBytes + line % kStepLines * kTileBytes;
    AGENTFORGE_UNROLL for (int nested = 0; nested < 3; ++nested)
      _mm512_store_si512(to + nested * kMaskedTileBytes, _mm512_and_si512(codes, masks[nested]));
  }
}

// Tokens in tiles of equal size (the last one begins earlier where they do not divide: its first tokens are
// computed twice, to the same outputs), so that the shapes of the tiles never change.
static __attribute__((noinline)) void multiply_panels(const MatmulCall& call, bool ternary) {
  const int64_t group_bytes = ternary ? kGroupBytes : kInt8GroupBytes;
  const int64_t tiles = ceil_div(call.tokens, kTileTokens);
  const int64_t tile_tokens = ceil_div(call.tokens, tiles);
  const int64_t last_groups = call.groups % kStepGroups;
  int32_t* const sums = reinterpret_cast<int32_t*>(call.scratch);
  uint8_t* const masked = reinterpret_cast<uint8_t*>(call.scratch + kSumsBytes);
  const TileShapes shapes(tile_tokens, last_groups);
  _tile_loadconfig(&shapes);
  Unfinished unfinished = {&call, ternary, 0, nullptr, 0, 0};
  for (int64_t panel = call.panel_begin; panel < call.panel_end; ++panel) {
    const uint8_t* const weights = call.panels + panel * call.groups * group_bytes;
    for (int64_t group = 0; group < call.groups; group += kBlockGroups) {
      const int64_t groups = smaller(kBlockGroups, call.groups - group);
      const bool last = group + groups == call.groups;
      const uint8_t* const block = weights + group * group_bytes;
      WeightTiles tile = {block, kTileBytes, kStepGroups * kInt8GroupBytes, block + 3 * kTileBytes,
                          kStepGroups * kInt8GroupBytes, kStepBytes};
      if (ternary) {
        mask_lines(block, groups * kStepGroups, masked);
        tile = {masked, kMaskedTileBytes, kMaskedStepBytes, block, kStepGroups * kGroupBytes, kLineBytes};
        __asm__ volatile("" ::: "memory");  // not every compiler knows that a tile load reads memory
      }
      for (int64_t index = 0; index < tiles; ++index) {
        const int64_t token = smaller(index * tile_tokens, call.tokens - tile_tokens);
        int32_t* const own_sums = sums + index * tile_tokens * kPanelRows;
        if (group == 0)
          clear_sums();
        else
          load_sums(own_sums);
        multiply_steps(tile, call.q + token * call.q_stride + group * kGroupColumns, call.q_stride,
                       groups / kStepGroups, groups % kStepGroups != 0, unfinished);
        store_sums(own_sums);
        if (last) unfinished = {&call, ternary, panel * kPanelRows, own_sums, token, token + tile_tokens};
      }
    }
  }
  unfinished.finish(kTileTokens);
  _tile_release();
}

static void multiply_turns(const MatmulCall& call, bool ternary) {
  const int64_t bytes = call.groups * kGroupColumns;
  const int64_t most = larger(4 * kTileTokens, smaller(kMostTurnTokens, kMostTurnBytes / bytes / kTileTokens * kTileTokens));
  const int64_t turns = ceil_div(call.tokens, most);
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t tiles = ceil_div(call.tokens, kTileTokens);
    const int64_t begin = smaller(part_begin(tiles, turn, turns) * kTileTokens, call.tokens);
    const int64_t end = smaller(part_begin(tiles, turn + 1, turns) * kTileTokens, call.tokens);
    const Epilogue epilogue = call.epilogue->from_token(begin);
    MatmulCall part = call;
    part.q += begin * call.q_stride;
    part.scale += begin;
    part.sum += begin;
    part.tokens = end - begin;
    part.epilogue = &epilogue;
    multiply_panels(part, ternary);
  }
}

static void dense_matmul(const MatmulCall& call) { multiply_turns(call, true); }
static void int8_matmul(const MatmulCall& call) { multiply_turns(call, false); }

}  // namespace agentforge::amx
AGENTFORGE_TARGET_END

namespace agentforge::amx {

static DenseKernels with_matmul(DenseKernels kernels, DenseMatmul matmul, int64_t least_tokens, int64_t most_groups) {
  kernels.matmul = matmul;
  kernels.matmul_least_tokens = least_tokens;
  kernels.matmul_most_groups = most_groups;
  kernels.matmul_tile_tokens = kTileTokens;
  kernels.matmul_scratch = kScratchBytes;
  kernels.matmul_panels_first = true;
  return kernels;
}

static const DenseKernels dense_kernels =
    with_matmul(avx512::dense_kernels, dense_matmul, 4, kMostMatvecGroups);
static const DenseKernels int8_kernels = with_matmul(avx512::int8_kernels, int8_matmul, 4, INT64_MAX);

}  // namespace agentforge::amx
#endif
