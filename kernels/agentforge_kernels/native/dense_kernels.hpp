// The slots a level of instruction set fills for quantising and for the dense matmul, ternary or int8;
// the drivers (quantize.hpp, dense.hpp) split work over panels, tokens and threads and call them.
#pragma once

#include "common.hpp"

namespace agentforge {

enum ElementType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

static inline int64_t element_bytes(int type) { return type == kFloat32 ? 4 : 2; }

// Floating activations as the caller holds them.
struct FloatInput {
  const void* x;  // [tokens][columns], contiguous
  int type;       // ElementType
  int64_t columns;
  const float* norm_weight;  // RMSNorm first: [columns], or null
  double epsilon;

  const void* token(int64_t index) const {
    return static_cast<const char*>(x) + index * columns * element_bytes(type);
  }
  FloatInput from_token(int64_t index) const { return {token(index), type, columns, norm_weight, epsilon}; }
};

// One token to int8: q[0 .. padded_columns) (zeros from input.columns on), its sum, and the scale.
// padded_columns is a multiple of 64. The scale is NaN when the token holds NaN or infinity (q and sum are then any numbers).
using QuantizeRow = float (*)(const FloatInput& input, int64_t token, int64_t padded_columns, int8_t* q,
                              int32_t* sum);

// One token times panels [panel_begin, panel_end). `panels` is the whole matrix, `q` holds 16 * groups
// int8, `epilogue` starts at this token. At most kMostMatvecGroups groups, so that sums of codes scaled
// by up to 64 (masked where they stand in their byte) stay below 2^31: 2 * 64 * 128 * 65,536 = 1.07e9.
using DenseMatvec = void (*)(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum,
                             float scale, const Epilogue& epilogue, int64_t panel_begin,
                             int64_t panel_end);

// A register tile: one panel times T tokens over `groups` (at most kMostMatvecGroups) groups of columns.
// What waits in `carry` are sums of codes 0, 1, 2, so |sum| <= 256 * columns and 8 million columns are exact.
struct TileCall {
  const uint8_t* weights;    // first group of this panel and column block
  int64_t groups;            // groups in this column block
  const int32_t* words;      // activations [group][4][T]: four int8 of one token a word
  const int32_t* offset;     // [groups]: words from `words` to the activations of each group of weights
  int32_t* carry;            // [T][64] int32, 64-byte aligned: sums between column blocks
  bool first;                // first column block: start from zero instead of `carry`
  bool last;                 // last column block: finish into the epilogue instead of `carry`
  const float* scale;        // [T]
  const int32_t* sum;        // [T], of the activations the weights of this panel meet
  const Epilogue* epilogue;  // starts at the tile's first token
  int64_t row;               // first row of the panel
  // Weights wanted next, for four prefetches a group (any address is allowed; may be ignored): the
  // address advances by prefetch_step bytes each, 64 when one tile must fetch the whole next block.
  const uint8_t* prefetch;
  int64_t prefetch_step;
};
using DenseTile = void (*)(const TileCall& call);

// q [tokens][stride bytes] to words [count][tokens]; count is a multiple of 4.
using PackTokens = void (*)(const int8_t* q, int64_t stride, int64_t count, int32_t* words);

// Tokens times panels [panel_begin, panel_end). `q` holds 16 * groups int8 a token, `epilogue` starts at
// the first token.
struct MatmulCall {
  const uint8_t* panels;  // the whole matrix
  int64_t groups;
  const int8_t* q;
  int64_t q_stride;    // bytes between tokens
  const float* scale;  // [tokens]
  const int32_t* sum;  // [tokens]
  int64_t tokens;
  const Epilogue* epilogue;
  int64_t panel_begin;
  int64_t panel_end;
  char* scratch;  // this thread's own, 64-byte aligned: DenseKernels::matmul_scratch bytes
};
using DenseMatmul = void (*)(const MatmulCall& call);

constexpr int kMostTileTokens = 6;
constexpr int64_t kMostMatvecGroups = 4096;

struct DenseKernels {
  QuantizeRow quantize_row;
  DenseMatvec matvec;
  int tile_tokens;                        // tokens of the largest tile, 1..kMostTileTokens
  DenseTile tile[kMostTileTokens + 1];    // [T], T = 1..tile_tokens; [0] unused
  PackTokens pack[kMostTileTokens + 1];   // [T] likewise
  // Instead of tiles, from matmul_least_tokens on, where a level prepares something that serves all rows or all
  // tokens of a call.
  DenseMatmul matmul = nullptr;
  int64_t matmul_least_tokens = 0;
  int64_t matmul_tile_tokens = 0;  // tokens it takes at a time: where tokens are split among threads
  int64_t matmul_scratch = 0;      // bytes a thread
  int64_t group_bytes = kGroupBytes;  // 64 rows x 16 columns of weights as this table's kernels read them
  bool matmul_panels_first = false;  // threads share the panels, and tokens only where panels are too few
  int64_t matmul_most_groups = INT64_MAX;
};

// q [tokens][stride] to words [count][tokens], any instruction set.
template <int T>
static void pack_tokens_portable(const int8_t* q, int64_t stride, int64_t count, int32_t* words) {
  for (int64_t word = 0; word < count; ++word)
    for (int token = 0; token < T; ++token)
      words[word * T + token] = load_unaligned<int32_t>(q + token * stride + 4 * word);
}

}  // namespace agentforge
