// Driver of the block-sparse ternary matmul: only tiles (64 rows x 16 columns) that are not zero are stored and
// read. A row block is a panel with gaps, so the dense kernels multiply its tiles; what differs is which
// activations a tile meets, how many of them a row block has (threads share tiles, not rows), and the excess of
// codes over weights, which is the sum of the activations met.
#pragma once

#include "dense.hpp"
#include "sparse_dispatch.hpp"

namespace agentforge {

// Tiles in the panels layout from their stored form, or back: it is its own inverse. Stored: word r of a tile is
// its row r, byte b of it holds column 4 field + b. Panels: pack.hpp.
static inline void exchange_tiles(const uint8_t* tiles, int64_t count, uint8_t* out) {
  for (int64_t tile = 0; tile < count; ++tile, tiles += kGroupBytes, out += kGroupBytes)
    for (int64_t lane = 0; lane < kLineLanes; ++lane) {
      uint32_t words[4];
      for (int64_t line = 0; line < 4; ++line)
        words[line] = load_unaligned<uint32_t>(tiles + line * kLineBytes + 4 * lane);
      exchange_fields(words);
      for (int64_t line = 0; line < 4; ++line) store_word(out + line * kLineBytes + 4 * lane, words[line]);
    }
}

// What is wrong with the index of tiles, if anything.
enum TileFault : int { kNoFault = 0, kStartFault = 1, kIndexFault = 2 };

// Whether `start` divides `count` tiles among the row blocks, no block with more tiles than there are groups, and
// every index is a group. A quarter of a cycle a tile, where multiplying it takes 14 or more.
static inline TileFault find_fault(const BlockTiles& weights, int64_t count, int64_t blocks, int64_t groups) {
  if (weights.start[0] != 0 || weights.start[blocks] != count) return kStartFault;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t tiles = int64_t{weights.start[block + 1]} - weights.start[block];
    if (tiles < 0 || tiles > groups) return kStartFault;
  }
  const uint32_t largest = static_cast<uint32_t>(groups - 1);
  uint32_t signs = 0;  // set when an index, or its distance from the largest, is negative
  for (int64_t tile = 0; tile < count; ++tile) {
    const uint32_t index = static_cast<uint32_t>(weights.index[tile]);
    signs |= index | (largest - index);
  }
  return signs >> 31 ? kIndexFault : kNoFault;
}

// Tokens side by side in the group sums of a tile of tokens: kMostTileTokens rounded up to a vector.
constexpr int64_t kSumTokens = 8;

struct BlockSparseCall {
  const DenseKernels* kernels;
  const SparseKernels* sparse;
  BlockTiles weights;
  int64_t rows;
  int64_t columns;
  int64_t tokens;
  Epilogue epilogue;
  int threads;

  int64_t panel_count() const { return ceil_div(rows, kPanelRows); }
  int64_t groups() const { return ceil_div(columns, kGroupColumns); }
  int64_t macs() const { return tokens * weights.start[panel_count()] * kPanelRows * kGroupColumns; }

  // Parts of nearly equal work: tiles, and one more a row block for its outputs.
  int64_t first_panel(int64_t part, int64_t parts) const {
    const int64_t panels = panel_count(), wanted = part_begin(weights.start[panels] + panels, part, parts);
    int64_t low = 0, high = panels;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (weights.start[middle] + middle < wanted) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // Sums of the activations of every group: [tile][group][kSumTokens].
  int64_t note_bytes(int64_t tiles) const { return round_up(tiles * groups() * kSumTokens * 4, 64); }
  void note_tile(const int8_t* q, int64_t stride, int64_t tile, int64_t count, char* notes) const {
    int32_t* const sums = sums_of(notes, tile);
    for (int64_t token = 0; token < count; ++token)
      sparse->sum_groups(q + token * stride, groups(), sums + token, kSumTokens);
  }

  // After the sums of outputs: the excess of every token, which also waits between runs of tiles.
  static int64_t carry_bytes(int64_t tokens) { return tokens * (kPanelRows + kSumTokens) * 4; }
  inline void multiply_tiles(const TileGrid& grid, const PackedTokens& packed, char* carry, int64_t panel_begin,
                             int64_t panel_end, int64_t tile_begin, int64_t tile_end) const;

 private:
  int32_t* sums_of(char* notes, int64_t tile) const {
    return reinterpret_cast<int32_t*>(notes) + tile * groups() * kSumTokens;
  }
};

// Adds the group sums of a run of tiles to the excess of four tokens. Where a tile has fewer tokens, the rest is
// any number: unsigned, because that may overflow.
static AGENTFORGE_INLINE void add_sums_of_four(const int32_t* sums, const int32_t* index, int64_t count,
                                               int32_t* excess) {
  typedef uint32_t Tokens __attribute__((vector_size(16)));
  Tokens total;
  std::memcpy(&total, excess, sizeof total);
  for (int64_t tile = 0; tile < count; ++tile) {
    Tokens added;
    std::memcpy(&added, sums + index[tile] * kSumTokens, sizeof added);
    total += added;
  }
  std::memcpy(excess, &total, sizeof total);
}

static inline void add_group_sums(const int32_t* sums, const int32_t* index, int64_t count, int64_t tokens,
                                  int32_t* excess) {
  for (int64_t token = 0; token < tokens; token += 4) add_sums_of_four(sums + token, index, count, excess + token);
}

// Order: row block, run of tiles (16 KB of weights), tile of tokens; as the dense matmul.
inline void BlockSparseCall::multiply_tiles(const TileGrid& grid, const PackedTokens& packed, char* carry,
                                            int64_t panel_begin, int64_t panel_end, int64_t tile_begin,
                                            int64_t tile_end) const {
  const PrefetchShares shares(tile_end - tile_begin);
  const int64_t first_token = grid.first_token(tile_begin);
  int32_t* const sums = reinterpret_cast<int32_t*>(carry);
  int32_t* const excess = sums + (grid.first_token(tile_end) - first_token) * kPanelRows;  // [tile][kSumTokens]
  int32_t offset[kMostBlockGroups];
  TileCall tile_call;
  tile_call.offset = offset;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t first = weights.start[panel], end = weights.start[panel + 1];
    std::memset(excess, 0, static_cast<size_t>((tile_end - tile_begin) * kSumTokens) * 4);
    tile_call.row = panel * kPanelRows;
    int64_t run = first;
    do {  // once for a row block without tiles: its outputs are zero, or the residual
      const int32_t* const index = weights.index + run;
      tile_call.weights = weights.tiles + run * kGroupBytes;
      tile_call.groups = smaller(kMostBlockGroups, end - run);
      tile_call.first = run == first;
      tile_call.last = run + tile_call.groups == end;
      const uint8_t* const next_run = tile_call.weights + tile_call.groups * kGroupBytes;
      int64_t offset_tokens = 0;  // tokens of a tile that `offset` is right for
      for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
        const int64_t begin = grid.first_token(tile), count = grid.first_token(tile + 1) - begin;
        if (count != offset_tokens) {
          for (int64_t group = 0; group < tile_call.groups; ++group)
            offset[group] = static_cast<int32_t>(4 * count) * index[group];
          offset_tokens = count;
        }
        const Epilogue moved = epilogue.from_token(begin);
        int32_t* const own_excess = excess + (tile - tile_begin) * kSumTokens;
        add_group_sums(sums_of(packed.notes, tile), index, tile_call.groups, count, own_excess);
        tile_call.words = packed.words + begin * packed.words_per_token;
        tile_call.carry = sums + (begin - first_token) * kPanelRows;
        tile_call.scale = packed.scale + begin;
        tile_call.sum = own_excess;
        tile_call.epilogue = &moved;
        shares.set(tile_call, tile - tile_begin, next_run, tile_call.groups * kGroupBytes);
        kernels->tile[count](tile_call);
      }
      run += tile_call.groups;
    } while (run < end);
  }
}

static inline int64_t multiply_token(const BlockSparseCall& call, const QuantizedInput& input) {
  int32_t* const sums = reinterpret_cast<int32_t*>(Workspace::of_this_thread().reserve(call.groups() * 4));
  call.sparse->sum_groups(input.q, call.groups(), sums, 1);
  const int threads =
      useful_threads(call.threads, call.macs(), least_macs_per_thread(call.threads), call.panel_count());
  fork_join(threads, [&](int64_t part, int64_t parts) {
    call.sparse->block_matvec(call.weights, input.q, sums, input.scale[0], call.epilogue,
                              call.first_panel(part, parts), call.first_panel(part + 1, parts));
  });
  return input.scale[0] == input.scale[0] ? kAllFinite : 0;
}

// The weights' index must be without fault. Returns the first token whose scale is NaN (its outputs are NaN), or
// kAllFinite.
static inline int64_t multiply(const BlockSparseCall& call, const QuantizedInput& input) {
  if (call.tokens == 1 && call.groups() <= kMostMatvecGroups) return multiply_token(call, input);
  const int64_t bytes_a_token = 16 * call.groups() + 4 * call.groups() * kSumTokens / call.kernels->tile_tokens;
  const int64_t most_tokens = round_up(larger(kMostPackedBytes / bytes_a_token, 1), call.kernels->tile_tokens);
  int64_t bad = kAllFinite;
  for (int64_t token = 0; token < call.tokens; token += most_tokens) {
    BlockSparseCall chunk = call;
    chunk.tokens = smaller(most_tokens, call.tokens - token);
    chunk.epilogue = call.epilogue.from_token(token);
    const int64_t bad_in_chunk = multiply_tokens(chunk, input.from_token(token));
    if (bad == kAllFinite && bad_in_chunk != kAllFinite) bad = token + bad_in_chunk;
  }
  return bad;
}

}  // namespace agentforge
