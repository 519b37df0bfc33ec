// Matmul of several tokens with AMX tiles, ternary or int8; everything else of this level is AVX-512's.
//
// tdpbsud multiplies a tile of up to 16 tokens x 64 signed activations, straight from their rows, with a tile of
// 16 lines of weights: a line is four columns of 16 rows, one unsigned byte each, which is what a line of panels
// (pack.hpp, under one of the nested masks) and a line of int8 lanes (pack_lanes.hpp) are. Four such tiles are the
// 64 rows of a panel. Two token tiles meet two weight tiles at a time: 4 loads (8 cycles each) for 4 products (16
// cycles each). One token tile meets all four, with 5 loads. At times loads and products hardly overlap
// (docs/log.md): 24 ns a product with 4 loads before 4 products, 30 ns with 5, instead of 6.4 to 7 with either.
#pragma once

#include "avx512_dense.hpp"
#include "avx512_int8.hpp"
#include "isa.hpp"

#if AGENTFORGE_AMX
AGENTFORGE_TARGET_AMXINT8
namespace agentforge::amx {

constexpr int64_t kTileTokens = 16;
// Where tiles are worth it: at the times when loads and products overlap they gain from 9 tokens on, at others from
// 13, and 17 to 23 (a second tile, hardly filled) lose up to a fifth. The int8 head waits for memory longer.
constexpr int64_t kLeastTokens = 13;
constexpr int64_t kLeastInt8Tokens = 16;
constexpr int64_t kTileLineBytes = 64;  // 64 activations, or four columns of 16 rows of weights
constexpr int64_t kStepColumns = 64;
constexpr int64_t kStepGroups = kStepColumns / kGroupColumns;
constexpr int64_t kStepLines = kStepColumns / kLineColumns;
constexpr int64_t kTileBytes = kStepLines * kTileLineBytes;
// Columns of a block, 1,024: its weights as tiles read them are 64 KB. Half as many fit the first-level cache but
// move sums to memory and back twice as often, which costs 4-10 % at 256 tokens.
constexpr int64_t kBlockSteps = 16;
constexpr int64_t kBlockGroups = kBlockSteps * kStepGroups;
// Tokens that take turns on a block of weights: their activations should stay in the second-level cache.
constexpr int64_t kMostTurnTokens = 256;
constexpr int64_t kMostTurnBytes = 1 << 20;

// A thread's scratch.
struct Scratch {
  int32_t sums[kMostTurnTokens * kPanelRows];       // of all tokens, for one panel
  int8_t last_q[kMostTurnTokens * kStepColumns];    // the last columns, fewer than 64, filled up with zeros
  uint8_t masked[kBlockSteps + 1][4][kTileBytes];   // a block under nested masks; and the last step's weights
};

// Tile registers: 0 to 3 sums, 4 and 5 tokens, 6 and 7 weights.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileShapes(int64_t tokens) {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = kTileLineBytes;
      rows[tile] = static_cast<uint8_t>(tile < 6 ? tokens : kStepLines);
    }
  }

  // GCC's intrinsic says that it reads eight bytes: without the barrier the other stores may be dropped, and an
  // undefined configuration is a general protection fault.
  void load() const {
    __asm__ volatile("" : : "r"(this) : "memory");
    _tile_loadconfig(this);
  }
};

// The weight tiles of some columns of a panel: where the four of the first step lie, and how far the next ones.
struct WeightTiles {
  const uint8_t* tile[4];
  int64_t step_bytes[4];
  int64_t line_bytes;  // between the lines of a tile
};

// Sums of a panel, of one or two token tiles, that wait to become outputs, a few tokens at a time between the
// products of the next tiles: they use other units of the processor.
class Unfinished {
 public:
  Unfinished(const MatmulCall& call, bool ternary) : call_(&call), ternary_(ternary) {}

  void set(int64_t row, const int32_t* sums, int64_t first, int64_t tile_tokens, int64_t second) {
    row_ = row;
    sums_ = sums;
    token_ = first;
    next_tile_ = second;
    in_tile_ = tile_tokens_ = tile_tokens;
    left_ = second == kNoTile ? tile_tokens : 2 * tile_tokens;
  }
  int64_t left() const { return left_; }

  __attribute__((noinline)) void finish(int64_t count) {
    for (; count > 0 && left_ > 0; --count, --left_, --in_tile_, ++token_, sums_ += kPanelRows) {
      if (in_tile_ == 0) {
        token_ = next_tile_;
        in_tile_ = tile_tokens_;
      }
      __m512i rows[4], found[4];
      AGENTFORGE_UNROLL for (int tile = 0; tile < 4; ++tile) found[tile] = _mm512_load_si512(sums_ + 16 * tile);
      int32_t excess = call_->sum[token_];
      if (ternary_) {
        avx512::separate_rows(rows, found);
      } else {
        AGENTFORGE_UNROLL for (int tile = 0; tile < 4; ++tile) rows[tile] = found[tile];
        excess = int8_excess(excess);
      }
      AGENTFORGE_UNROLL for (int tile = 0; tile < 4; ++tile)
        rows[tile] = _mm512_sub_epi32(rows[tile], _mm512_set1_epi32(excess));
      avx512::finish_panel(call_->epilogue->from_token(token_), row_, rows, call_->scale[token_]);
    }
  }

  static constexpr int64_t kNoTile = -1;

 private:
  const MatmulCall* call_;
  bool ternary_;
  int64_t row_ = 0;
  const int32_t* sums_ = nullptr;  // [token][4][16]
  int64_t token_ = 0;
  int64_t in_tile_ = 0;  // tokens left in this tile
  int64_t tile_tokens_ = 0;
  int64_t next_tile_ = kNoTile;  // its first token
  int64_t left_ = 0;
};

// Two token tiles x two weight tiles. `finish`: outputs to finish in each step.
static AGENTFORGE_INLINE void multiply_pairs(const WeightTiles& weights, int pair, const int8_t* q, int64_t stride,
                                             int64_t second, int64_t steps, Unfinished& unfinished, int64_t finish) {
  const uint8_t* left = weights.tile[2 * pair];
  const uint8_t* right = weights.tile[2 * pair + 1];
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, q, stride);
    _tile_loadd(6, left, weights.line_bytes);
    _tile_loadd(7, right, weights.line_bytes);
    _tile_loadd(5, q + second, stride);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
    q += kStepColumns;
    left += weights.step_bytes[2 * pair];
    right += weights.step_bytes[2 * pair + 1];
    unfinished.finish(finish);
  }
}

// One token tile x four weight tiles.
static AGENTFORGE_INLINE void multiply_single(const WeightTiles& weights, const int8_t* q, int64_t stride,
                                              int64_t steps, Unfinished& unfinished, int64_t finish) {
  const uint8_t* at[4] = {weights.tile[0], weights.tile[1], weights.tile[2], weights.tile[3]};
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, q, stride);
    _tile_loadd(6, at[0], weights.line_bytes);
    _tile_loadd(7, at[1], weights.line_bytes);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_loadd(6, at[2], weights.line_bytes);
    _tile_loadd(7, at[3], weights.line_bytes);
    _tile_dpbsud(2, 4, 6);
    _tile_dpbsud(3, 4, 7);
    q += kStepColumns;
    AGENTFORGE_UNROLL for (int tile = 0; tile < 4; ++tile) at[tile] += weights.step_bytes[tile];
    unfinished.finish(finish);
  }
}

// Sums of tiles 0 to 3, [token][4][16]: tiles 2 and 3 lie `next` behind 0 and 1.
static AGENTFORGE_INLINE void start_sums(bool from_zero, const int32_t* sums, int64_t next) {
  if (from_zero) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    return;
  }
  _tile_loadd(0, sums, kPanelRows * 4);
  _tile_loadd(1, sums + 16, kPanelRows * 4);
  _tile_loadd(2, sums + next, kPanelRows * 4);
  _tile_loadd(3, sums + next + 16, kPanelRows * 4);
}

static AGENTFORGE_INLINE void keep_sums(int32_t* sums, int64_t next) {
  _tile_stored(0, sums, kPanelRows * 4);
  _tile_stored(1, sums + 16, kPanelRows * 4);
  _tile_stored(2, sums + next, kPanelRows * 4);
  _tile_stored(3, sums + next + 16, kPanelRows * 4);
}

// Lines of a panel under three nested masks, beside each other for every step; the fourth tile of a step are the
// lines as they are.
static AGENTFORGE_INLINE void mask_lines(const uint8_t* lines, int64_t count, uint8_t* masked) {
  const __m512i masks[3] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0f), _mm512_set1_epi8(0x3f)};
  for (int64_t line = 0; line < count; ++line, lines += kLineBytes) {
    const __m512i codes = _mm512_loadu_si512(lines);
    uint8_t* const to = masked + line / kStepLines * 4 * kTileBytes + line % kStepLines * kTileLineBytes;
    AGENTFORGE_UNROLL for (int nested = 0; nested < 3; ++nested)
      _mm512_store_si512(to + nested * kTileBytes, _mm512_and_si512(codes, masks[nested]));
  }
}

// A block of whole steps of a panel, and what is left of its columns, as tiles.
struct Block {
  int64_t steps;
  WeightTiles weights;
  int64_t last_groups;  // 0: nothing left
  WeightTiles last;

  AGENTFORGE_INLINE Block(bool ternary, const uint8_t* lines, int64_t groups, Scratch& scratch)
      : steps(groups / kStepGroups), last_groups(groups % kStepGroups) {
    const int64_t line_bytes = ternary ? kLineBytes : kStepBytes;
    const int64_t raw_step = kStepLines * line_bytes;
    const uint8_t* const left_over = lines + steps * raw_step;
    uint8_t* const masked = scratch.masked[0][0];
    uint8_t* const last_masked = scratch.masked[kBlockSteps][0];
    if (ternary) {
      mask_lines(lines, groups * 4, masked);
      weights = {{masked, masked + kTileBytes, masked + 2 * kTileBytes, lines},
                 {4 * kTileBytes, 4 * kTileBytes, 4 * kTileBytes, raw_step}, line_bytes};
      last = {{last_masked, last_masked + kTileBytes, last_masked + 2 * kTileBytes, last_masked + 3 * kTileBytes},
              {}, line_bytes};
      mask_lines(left_over, last_groups * 4, last_masked);
      std::memcpy(last_masked + 3 * kTileBytes, left_over, static_cast<size_t>(last_groups * 4 * line_bytes));
    } else {
      weights = {{lines, lines + kLineBytes, lines + 2 * kLineBytes, lines + 3 * kLineBytes},
                 {raw_step, raw_step, raw_step, raw_step}, line_bytes};
      last = {{last_masked, last_masked + kLineBytes, last_masked + 2 * kLineBytes, last_masked + 3 * kLineBytes},
              {}, line_bytes};
      std::memcpy(last_masked, left_over, static_cast<size_t>(last_groups * 4 * line_bytes));
    }
    __asm__ volatile("" ::: "memory");  // not every compiler knows that a tile load reads memory
  }
};

// Tokens in tiles of equal size (the last one begins earlier where they do not divide: its first tokens are
// computed twice, to the same outputs), so that the shapes of the tiles never change.
static __attribute__((noinline)) void multiply_turn(const MatmulCall& call, bool ternary) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(call.scratch);
  const int64_t group_bytes = ternary ? kGroupBytes : kInt8GroupBytes;
  const int64_t tiles = ceil_div(call.tokens, kTileTokens);
  const int64_t tile_tokens = ceil_div(call.tokens, tiles);
  const int64_t last_groups = call.groups % kStepGroups;
  if (last_groups != 0) {
    const __mmask16 present = static_cast<__mmask16>((1u << 4 * last_groups) - 1);
    const int8_t* q = call.q + (call.groups - last_groups) * kGroupColumns;
    for (int64_t token = 0; token < call.tokens; ++token, q += call.q_stride)
      _mm512_store_si512(scratch.last_q + token * kStepColumns, _mm512_maskz_loadu_epi32(present, q));
  }
  const TileShapes shapes(tile_tokens);
  shapes.load();
  Unfinished unfinished(call, ternary);
  for (int64_t panel = call.panel_begin; panel < call.panel_end; ++panel) {
    for (int64_t group = 0; group < call.groups; group += kBlockGroups) {
      const int64_t groups = smaller(kBlockGroups, call.groups - group);
      const Block block(ternary, call.panels + (panel * call.groups + group) * group_bytes, groups, scratch);
      for (int64_t tile = 0; tile < tiles; tile += 2) {
        const int64_t token = smaller(tile * tile_tokens, call.tokens - tile_tokens);
        const int64_t next = smaller((tile + 1) * tile_tokens, call.tokens - tile_tokens) - token;
        const int8_t* const q = call.q + token * call.q_stride + group * kGroupColumns;
        const int8_t* const last_q = scratch.last_q + token * kStepColumns;
        int32_t* const sums = scratch.sums + tile * tile_tokens * kPanelRows;
        const int64_t finish = ceil_div(unfinished.left(), larger(block.steps, 1));
        const bool single = tile + 1 == tiles;
        const int64_t next_sums = single ? 32 : tile_tokens * kPanelRows;
        for (int pair = 0; pair < (single ? 1 : 2); ++pair) {
          start_sums(group == 0, sums + 32 * pair, next_sums);
          if (single)
            multiply_single(block.weights, q, call.q_stride, block.steps, unfinished, finish);
          else
            multiply_pairs(block.weights, pair, q, call.q_stride, next * call.q_stride, block.steps, unfinished,
                           finish);
          if (block.last_groups != 0) {
            if (single)
              multiply_single(block.last, last_q, kStepColumns, 1, unfinished, 0);
            else
              multiply_pairs(block.last, pair, last_q, kStepColumns, next * kStepColumns, 1, unfinished, 0);
          }
          unfinished.finish(2 * kTileTokens);
          keep_sums(sums + 32 * pair, next_sums);
        }
        if (group + groups == call.groups)
          unfinished.set(panel * kPanelRows, sums, token, tile_tokens, single ? Unfinished::kNoTile : token + next);
      }
    }
  }
  unfinished.finish(2 * kTileTokens);
  _tile_release();
}

static void multiply_turns(const MatmulCall& call, bool ternary) {
  const int64_t tiles = ceil_div(call.tokens, kTileTokens);
  const int64_t fitting = kMostTurnBytes / (call.groups * kGroupColumns * kTileTokens);
  const int64_t most_tiles = larger(4, smaller(kMostTurnTokens / kTileTokens, fitting));
  const int64_t turns = ceil_div(tiles, most_tiles);
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t begin = part_begin(tiles, turn, turns) * kTileTokens;
    const int64_t end = smaller(part_begin(tiles, turn + 1, turns) * kTileTokens, call.tokens);
    const Epilogue epilogue = call.epilogue->from_token(begin);
    MatmulCall part = call;
    part.q += begin * call.q_stride;
    part.scale += begin;
    part.sum += begin;
    part.tokens = end - begin;
    part.epilogue = &epilogue;
    multiply_turn(part, ternary);
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
  kernels.matmul_scratch = round_up(sizeof(Scratch), 64);
  kernels.matmul_panels_first = true;
  return kernels;
}

static const DenseKernels dense_kernels =
    with_matmul(avx512::dense_kernels, dense_matmul, kLeastTokens, kMostMatvecGroups);
static const DenseKernels int8_kernels =
    with_matmul(avx512::int8_kernels, int8_matmul, kLeastInt8Tokens, INT64_MAX);

}  // namespace agentforge::amx
#endif
