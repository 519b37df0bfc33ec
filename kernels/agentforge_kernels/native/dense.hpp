// Driver of the dense matmul, ternary or int8: splits panels and tokens over threads, blocks columns, and,
// in the fused form, quantises where the result is used.
#pragma once

#include <atomic>

#include "dispatch.hpp"
#include "fork_cost.hpp"
#include "threads.hpp"
#include "workspace.hpp"

namespace agentforge {

// Weights in a block of a tile: 16 KB of one panel stay in the first-level cache for all tokens.
constexpr int64_t kBlockBytes = 16 << 10;
constexpr int64_t kMostBlockGroups = kBlockBytes / kGroupBytes;
// Above this many elements threads quantise and pack a share each and meet at a barrier; below, each
// thread does all of it for itself, which takes less than the barrier.
constexpr int64_t kLeastSharedElements = 16384;
// Scratch for activations is bounded by working through so many bytes of packed tokens at a time.
constexpr int64_t kMostPackedBytes = 32 << 20;

// TileCall::offset of the dense matmul: all groups of columns, one after the other.
struct ConsecutiveGroups {
  int32_t offset[kMostTileTokens + 1][kMostBlockGroups] = {};  // [tokens of the tile]
  constexpr ConsecutiveGroups() {
    for (int tokens = 1; tokens <= kMostTileTokens; ++tokens)
      for (int64_t group = 0; group < kMostBlockGroups; ++group)
        offset[tokens][group] = static_cast<int32_t>(4 * tokens * group);
  }
};
static constexpr ConsecutiveGroups kConsecutiveGroups{};

struct TileGrid;
struct PackedTokens;

// The interface multiply_tokens() needs: BlockSparseCall (block_sparse.hpp) offers the same.
struct DenseCall {
  const DenseKernels* kernels;  // of the weights: ternary or int8
  const uint8_t* panels;
  int64_t rows;
  int64_t columns;
  int64_t tokens;
  Epilogue epilogue;
  int threads;

  int64_t panel_count() const { return ceil_div(rows, kPanelRows); }
  int64_t groups() const { return ceil_div(columns, kGroupColumns); }
  int64_t macs() const { return tokens * rows * columns; }
  int64_t first_panel(int64_t part, int64_t parts) const { return part_begin(panel_count(), part, parts); }

  // What else is noted about packed tokens: nothing.
  static int64_t note_bytes(int64_t) { return 0; }
  void note_tile(const int8_t*, int64_t, int64_t, int64_t, char*) const {}

  static int64_t carry_bytes(int64_t tokens) { return tokens * kPanelRows * 4; }
  inline void multiply_tiles(const TileGrid& grid, const PackedTokens& packed, char* carry, int64_t panel_begin,
                             int64_t panel_end, int64_t tile_begin, int64_t tile_end) const;
};

// Activations of a dense call: quantised already, or floating and quantised on the way (fused).
struct QuantizedInput {
  const int8_t* q;  // [tokens][stride], zero beyond the columns up to a multiple of 16
  int64_t stride;
  const float* scale;
  const int32_t* sum;

  QuantizedInput from_token(int64_t token) const {
    return {q + token * stride, stride, scale + token, sum + token};
  }
};

// What a call reports: the first token whose scale is NaN (it held NaN or infinity), or this.
constexpr int64_t kAllFinite = -1;

class FirstBadToken {
 public:
  void note(int64_t token, float scale) {
    if (scale == scale) return;
    int64_t known = token_.load();
    while ((known == kAllFinite || token < known) && !token_.compare_exchange_weak(known, token)) {
    }
  }
  int64_t token() const { return token_.load(); }

 private:
  std::atomic<int64_t> token_{kAllFinite};
};

// ---- One token -----------------------------------------------------------------------------------

static inline int matvec_threads(const DenseCall& call) {
  return useful_threads(call.threads, call.macs(), least_macs_per_thread(call.threads), call.panel_count());
}

static inline void matvec_part(const DenseKernels& kernels, const DenseCall& call, const int8_t* q,
                               int32_t sum, float scale, int64_t part, int64_t parts) {
  kernels.matvec(call.panels, call.groups(), q, sum, scale, call.epilogue,
                 part_begin(call.panel_count(), part, parts), part_begin(call.panel_count(), part + 1, parts));
}

static inline int64_t multiply_token(const DenseCall& call, const QuantizedInput& input) {
  const DenseKernels& kernels = *call.kernels;
  fork_join(matvec_threads(call), [&](int64_t part, int64_t parts) {
    matvec_part(kernels, call, input.q, input.sum[0], input.scale[0], part, parts);
  });
  return input.scale[0] == input.scale[0] ? kAllFinite : 0;
}

// Every thread quantises the one token for itself: no second meeting, and no waiting for the first
// thread's result to travel between caches.
static inline int64_t multiply_token(const DenseCall& call, const FloatInput& input) {
  const DenseKernels& kernels = *call.kernels;
  const int threads = matvec_threads(call);
  const int64_t padded_columns = round_up(input.columns, 64);
  const int64_t slice = padded_columns + 64;
  int8_t* const scratch = reinterpret_cast<int8_t*>(Workspace::of_this_thread().reserve(threads * slice));
  bool finite = true;
  fork_join(threads, [&](int64_t part, int64_t parts) {
    int8_t* q = scratch + part * slice;
    int32_t sum;
    const float scale = kernels.quantize_row(input, 0, padded_columns, q, &sum);
    if (part == 0) finite = scale == scale;
    matvec_part(kernels, call, q, sum, scale, part, parts);
  });
  return finite ? kAllFinite : 0;
}

// ---- Several tokens ------------------------------------------------------------------------------

// Tokens in tiles of nearly equal size, and the parts of the (panels x tiles) grid the threads take.
struct TileGrid {
  int64_t tokens;
  int64_t tiles;
  int64_t panels;
  int64_t panel_parts;
  int64_t tile_parts;

  TileGrid(int64_t token_count, int64_t tile_tokens, int64_t panel_count, int64_t parts)
      : tokens(token_count), tiles(ceil_div(token_count, tile_tokens)), panels(panel_count) {
    int64_t least_load = INT64_MAX;  // tiles x panels of the busiest thread
    for (int64_t candidate = smaller(parts, panels); candidate >= 1; --candidate) {
      const int64_t others = smaller(parts / candidate, tiles);
      const int64_t load = ceil_div(panels, candidate) * ceil_div(tiles, others);
      if (load < least_load) {
        least_load = load;
        panel_parts = candidate;
        tile_parts = others;
      }
    }
  }

  int64_t first_token(int64_t tile) const { return part_begin(tokens, tile, tiles); }
};

// Packed activations: the words of a tile's tokens interleaved; tile after tile.
struct PackedTokens {
  int32_t* words;
  float* scale;
  int32_t* sum;
  char* notes;  // what DenseCall::note_tile, or that of another call, wrote
  int64_t words_per_token;

  static int64_t bytes(int64_t tokens, int64_t words_per_token, int64_t note_bytes) {
    return round_up(note_bytes + tokens * (4 * words_per_token + 8), 64) + 128;
  }

  PackedTokens(char* memory, int64_t tokens, int64_t count, int64_t note_bytes)
      : words(reinterpret_cast<int32_t*>(memory + note_bytes)),
        scale(reinterpret_cast<float*>(words + tokens * count)),
        sum(reinterpret_cast<int32_t*>(scale + tokens)),
        notes(memory),
        words_per_token(count) {}
};

// Takes, or quantises, the tokens of one tile and packs them. `rows`: scratch of tile_scratch_bytes.
template <typename Call>
static inline void pack_tile(const Call& call, const QuantizedInput& input, const TileGrid& grid, int64_t tile,
                             int8_t* /*rows*/, const PackedTokens& out) {
  const int64_t begin = grid.first_token(tile), count = grid.first_token(tile + 1) - begin;
  const int8_t* const q = input.q + begin * input.stride;
  call.kernels->pack[count](q, input.stride, out.words_per_token, out.words + begin * out.words_per_token);
  call.note_tile(q, input.stride, tile, count, out.notes);
  for (int64_t token = begin; token < begin + count; ++token) {
    out.scale[token] = input.scale[token];
    out.sum[token] = input.sum[token];
  }
}

template <typename Call>
static inline void pack_tile(const Call& call, const FloatInput& input, const TileGrid& grid, int64_t tile,
                             int8_t* rows, const PackedTokens& out) {
  const int64_t begin = grid.first_token(tile), count = grid.first_token(tile + 1) - begin;
  const int64_t stride = round_up(input.columns, 64);
  for (int64_t token = begin; token < begin + count; ++token)
    out.scale[token] =
        call.kernels->quantize_row(input, token, stride, rows + (token - begin) * stride, out.sum + token);
  call.kernels->pack[count](rows, stride, out.words_per_token, out.words + begin * out.words_per_token);
  call.note_tile(rows, stride, tile, count, out.notes);
}

static inline int64_t tile_scratch_bytes(const QuantizedInput&) { return 0; }
static inline int64_t tile_scratch_bytes(const FloatInput& input) {
  return kMostTileTokens * round_up(input.columns, 64);
}

// Where tiles that take turns on a block of weights prefetch the next block: the first tiles a share each.
struct PrefetchShares {
  int64_t tiles;
  int64_t step;

  explicit PrefetchShares(int64_t tile_count) : tiles(smaller(tile_count, 4)), step(64 / larger(tiles, 1)) {}

  // `bytes`: of the next block (of this one, that is; nearly all are equal).
  void set(TileCall& call, int64_t turn, const uint8_t* next_block, int64_t bytes) const {
    call.prefetch_step = step;
    call.prefetch = turn < tiles ? next_block + turn * bytes / tiles : call.weights;
  }
};

// Panels [panel_begin, panel_end) times tiles [tile_begin, tile_end). Order: panel, column block,
// tile, so that a block of weights is read from memory once; sums wait in `carry` between blocks.
inline void DenseCall::multiply_tiles(const TileGrid& grid, const PackedTokens& packed, char* carry,
                                      int64_t panel_begin, int64_t panel_end, int64_t tile_begin,
                                      int64_t tile_end) const {
  const int64_t block_groups = kBlockBytes / kernels->group_bytes;
  const PrefetchShares shares(tile_end - tile_begin);
  TileCall tile_call;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const uint8_t* const weights = panels + panel * groups() * kernels->group_bytes;
    tile_call.row = panel * kPanelRows;
    for (int64_t group = 0; group < groups(); group += block_groups) {
      tile_call.weights = weights + group * kernels->group_bytes;
      tile_call.groups = smaller(block_groups, groups() - group);
      tile_call.first = group == 0;
      tile_call.last = group + tile_call.groups == groups();
      const uint8_t* const next_block = tile_call.weights + tile_call.groups * kernels->group_bytes;
      for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
        const int64_t begin = grid.first_token(tile), count = grid.first_token(tile + 1) - begin;
        const Epilogue moved = epilogue.from_token(begin);
        tile_call.words = packed.words + begin * packed.words_per_token + group * 4 * count;
        tile_call.offset = kConsecutiveGroups.offset[count];
        tile_call.carry = reinterpret_cast<int32_t*>(carry) + (begin - grid.first_token(tile_begin)) * kPanelRows;
        tile_call.scale = packed.scale + begin;
        tile_call.sum = packed.sum + begin;
        tile_call.epilogue = &moved;
        shares.set(tile_call, tile - tile_begin, next_block, tile_call.groups * kernels->group_bytes);
        kernels->tile[count](tile_call);
      }
    }
  }
}

// Call: DenseCall or BlockSparseCall. Input: QuantizedInput or FloatInput. Returns as multiply() does.
template <typename Call, typename Input>
static inline int64_t multiply_tokens(const Call& call, const Input& input) {
  const int64_t tiles = ceil_div(call.tokens, call.kernels->tile_tokens);
  const int threads = useful_threads(call.threads, call.macs(), least_macs_per_thread(call.threads),
                                     call.panel_count() * tiles);
  const bool shared = threads > 1 && call.tokens * call.columns >= kLeastSharedElements;
  const int64_t words_per_token = 4 * call.groups();
  const int64_t note_bytes = call.note_bytes(tiles);
  const int64_t packed_bytes = PackedTokens::bytes(call.tokens, words_per_token, note_bytes);
  const int64_t carry_bytes = round_up(call.carry_bytes(call.tokens), 64);
  const int64_t rows_bytes = tile_scratch_bytes(input);
  const int64_t own_bytes = carry_bytes + rows_bytes + (shared ? 0 : packed_bytes);
  char* const memory =
      Workspace::of_this_thread().reserve((shared ? packed_bytes : 0) + threads * own_bytes);
  FirstBadToken bad;
  fork_join(threads, [&](int64_t part, int64_t parts) {
    const TileGrid grid(call.tokens, call.kernels->tile_tokens, call.panel_count(), parts);
    char* const own = memory + (shared ? packed_bytes : 0) + part * own_bytes;
    int8_t* const rows = reinterpret_cast<int8_t*>(own + carry_bytes);
    const PackedTokens packed(shared ? memory : own + carry_bytes + rows_bytes, call.tokens, words_per_token,
                              note_bytes);

    const bool idle = part >= grid.panel_parts * grid.tile_parts;
    const int64_t panel_part = part % grid.panel_parts, tile_part = part / grid.panel_parts;
    const int64_t tile_begin = part_begin(grid.tiles, tile_part, grid.tile_parts);
    const int64_t tile_end = part_begin(grid.tiles, tile_part + 1, grid.tile_parts);
    if (shared) {
      const int64_t end = part_begin(grid.tiles, part + 1, parts);
      for (int64_t tile = part_begin(grid.tiles, part, parts); tile < end; ++tile)
        pack_tile(call, input, grid, tile, rows, packed);
      wait_for_all(parts);
    } else if (!idle) {
      for (int64_t tile = tile_begin; tile < tile_end; ++tile)
        pack_tile(call, input, grid, tile, rows, packed);
    }
    if (idle) return;
    call.multiply_tiles(grid, packed, own, call.first_panel(panel_part, grid.panel_parts),
                        call.first_panel(panel_part + 1, grid.panel_parts), tile_begin, tile_end);
    if (panel_part == 0)
      for (int64_t token = grid.first_token(tile_begin); token < grid.first_token(tile_end); ++token)
        bad.note(token, packed.scale[token]);
  });
  return bad.token();
}

// ---- Several tokens, all rows at once (DenseKernels::matmul) -------------------------------------

// The tokens as int8: given, or quantised into `memory` of quantized_bytes by all parts together.
static inline int64_t quantized_bytes(const QuantizedInput&, int64_t) { return 0; }
// An odd number of 64-byte lines from token to token: lines of several tokens then do not meet in a cache's set.
static inline int64_t quantized_stride(const FloatInput& input) { return round_up(input.columns, 64) | 64; }
static inline int64_t quantized_bytes(const FloatInput& input, int64_t tokens) {
  return round_up(tokens * (quantized_stride(input) + 8), 64);
}

static inline QuantizedInput quantize_part(const DenseKernels&, const QuantizedInput& input, char*, int64_t,
                                           int64_t, int64_t) {
  return input;
}

static inline QuantizedInput quantize_part(const DenseKernels& kernels, const FloatInput& input, char* memory,
                                           int64_t tokens, int64_t part, int64_t parts) {
  const int64_t stride = quantized_stride(input);
  int8_t* const q = reinterpret_cast<int8_t*>(memory);
  float* const scale = reinterpret_cast<float*>(memory + tokens * stride);
  int32_t* const sum = reinterpret_cast<int32_t*>(scale + tokens);
  const int64_t end = part_begin(tokens, part + 1, parts);
  for (int64_t token = part_begin(tokens, part, parts); token < end; ++token)
    scale[token] = kernels.quantize_row(input, token, round_up(input.columns, 64), q + token * stride, sum + token);
  wait_for_all(parts);
  return {q, stride, scale, sum};
}

// Threads take tokens first, so that nobody prepares what another one also does, then panels; or the other way
// round where it is weights that are prepared (matmul_panels_first).
template <typename Input>
static inline int64_t multiply_all_rows(const DenseCall& call, const Input& input) {
  const DenseKernels& kernels = *call.kernels;
  const int64_t tiles = ceil_div(call.tokens, kernels.matmul_tile_tokens);
  const int threads = useful_threads(call.threads, call.macs(),
                                     least_macs_per_thread(call.threads), call.panel_count() * tiles);
  const int64_t shared_bytes = quantized_bytes(input, call.tokens);
  char* const memory = Workspace::of_this_thread().reserve(shared_bytes + threads * kernels.matmul_scratch);
  FirstBadToken bad;
  fork_join(threads, [&](int64_t part, int64_t parts) {
    const QuantizedInput tokens = quantize_part(kernels, input, memory, call.tokens, part, parts);
    const TileGrid grid(call.tokens, kernels.matmul_tile_tokens, call.panel_count(), parts);
    const int64_t token_parts = kernels.matmul_panels_first ? grid.tile_parts : smaller(parts, tiles);
    const int64_t panel_parts =
        kernels.matmul_panels_first ? grid.panel_parts : smaller(parts / token_parts, call.panel_count());
    const int64_t token_part = part % token_parts, panel_part = part / token_parts;
    if (panel_part >= panel_parts) return;
    const int64_t begin = part_begin(tiles, token_part, token_parts) * kernels.matmul_tile_tokens;
    const int64_t end = smaller(part_begin(tiles, token_part + 1, token_parts) * kernels.matmul_tile_tokens, call.tokens);
    const QuantizedInput own = tokens.from_token(begin);
    const Epilogue epilogue = call.epilogue.from_token(begin);
    kernels.matmul({call.panels, call.groups(), own.q, own.stride, own.scale, own.sum, end - begin, &epilogue,
                    part_begin(call.panel_count(), panel_part, panel_parts),
                    part_begin(call.panel_count(), panel_part + 1, panel_parts),
                    memory + shared_bytes + part * kernels.matmul_scratch});
    if (panel_part == 0)
      for (int64_t token = begin; token < end; ++token) bad.note(token, tokens.scale[token]);
  });
  return bad.token();
}

// The dense matmul. Input: QuantizedInput or FloatInput. Returns the first token whose scale is
// NaN (its outputs are NaN), or kAllFinite.
template <typename Input>
static inline int64_t multiply(const DenseCall& call, const Input& input) {
  if (call.tokens == 1 && call.groups() <= kMostMatvecGroups) return multiply_token(call, input);
  const DenseKernels& kernels = *call.kernels;
  const int64_t tile_tokens = kernels.matmul ? kernels.matmul_tile_tokens : kernels.tile_tokens;
  const int64_t most_tokens = round_up(larger(kMostPackedBytes / (16 * call.groups()), 1), tile_tokens);
  int64_t bad = kAllFinite;
  for (int64_t token = 0; token < call.tokens; token += most_tokens) {
    DenseCall chunk = call;
    chunk.tokens = smaller(most_tokens, call.tokens - token);
    chunk.epilogue = call.epilogue.from_token(token);
    const bool all_rows = kernels.matmul && chunk.tokens >= kernels.matmul_least_tokens &&
                          chunk.groups() <= kernels.matmul_most_groups;
    const int64_t bad_in_chunk = all_rows ? multiply_all_rows(chunk, input.from_token(token))
                                          : multiply_tokens(chunk, input.from_token(token));
    if (bad == kAllFinite && bad_in_chunk != kAllFinite) bad = token + bad_in_chunk;
  }
  return bad;
}

}  // namespace agentforge
