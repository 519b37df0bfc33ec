// Ternary matmul of several tokens by table lookup: no multiplication and no unpacking. For processors
// whose multiply-add is narrow (the portable level).
//
// With the fields of a block exchanged (pack.hpp), a byte holds the codes of four columns of one row, so it can
// take 81 values. For four columns
// and T tokens, a table holds the 81 signed sums of their activations, T int16 side by side, at the index
// the byte itself is. A row then costs one vector addition a byte: 4 T multiply-adds. (The method of the
// four Russians, Arlazarov et al. 1970; T-MAC, https://arxiv.org/abs/2407.00088, looks up rows instead of
// tokens.) Building a table takes 120 vector additions, so it serves all rows of a thread's part.
//
// Plain loops that compilers turn into 128-bit additions on any 64-bit processor. Measured on Zen 4 with
// SSE2, 16 tokens: 112 GMAC/s at 2560 x 2560 against 28 for the matvec of portable.hpp token by token.
#pragma once

#include "dense_kernels.hpp"
#include "pack.hpp"

AGENTFORGE_OPTIMIZE_MORE
namespace agentforge {

namespace lookup {

constexpr int64_t kTables = 4;          // the four bytes of a row's word
constexpr int64_t kTableIndices = 256;  // a byte
// Entries from table to table: the largest index is 170 (four codes 2); three empty entries more make
// the tables start in different sets of the first-level cache.
constexpr int64_t kTableDistance = 174;
constexpr int64_t kBlockRows = 4096;  // rows whose sums wait in the second-level cache
constexpr int kMostTokens = 16;
constexpr int64_t kTableEntries = (kTables - 1) * kTableDistance + kTableIndices;

// Largest magnitude that int16 sums may reach: the sum of the largest magnitudes of the tables added.
constexpr int32_t kMostNarrow = 32767;

// Activations of one group of columns, tokens side by side (zeros from `tokens` on). Returns a bound of
// the magnitude of sums over four columns, added up for the four tables: at most 4 * 4 * 128.
template <int T>
static AGENTFORGE_INLINE int32_t turn_group(const int8_t* q, int64_t stride, int64_t tokens,
                                            int16_t (&x)[kGroupColumns][T]) {
  for (int t = 0; t < T; ++t) {
    alignas(16) int8_t row[kGroupColumns] = {};
    if (t < tokens) std::memcpy(row, q + t * stride, sizeof row);
    for (int column = 0; column < kGroupColumns; ++column) x[column][t] = row[column];
  }
  int32_t bound = 0;
  for (int byte = 0; byte < kTables; ++byte) {
    int16_t magnitude[T] = {};
    for (int column = byte; column < kGroupColumns; column += 4)
      for (int t = 0; t < T; ++t)
        magnitude[t] = static_cast<int16_t>(magnitude[t] + (x[column][t] < 0 ? -x[column][t] : x[column][t]));
    int16_t largest = 0;
    for (int t = 0; t < T; ++t) largest = magnitude[t] > largest ? magnitude[t] : largest;
    bound += largest;
  }
  return bound;
}

// The sums of the four columns of one byte (codes of column 4 c + byte at bits 2 c of the index).
template <int T>
static AGENTFORGE_INLINE void build_table(const int16_t (&x)[kGroupColumns][T], int64_t byte,
                                          int16_t* __restrict table) {
  const int16_t* const column[4] = {x[byte], x[4 + byte], x[8 + byte], x[12 + byte]};
  table = static_cast<int16_t*>(__builtin_assume_aligned(table, 2 * T));
  alignas(64) int16_t three[T], two[T], one[T];  // sums of columns 3, of 3 and 2, of 3 to 1
  for (int third = 0; third < 3; ++third) {
    for (int t = 0; t < T; ++t) three[t] = static_cast<int16_t>((third - 1) * column[3][t]);
    for (int second = 0; second < 3; ++second) {
      for (int t = 0; t < T; ++t) two[t] = static_cast<int16_t>(three[t] + (second - 1) * column[2][t]);
      for (int first = 0; first < 3; ++first) {
        for (int t = 0; t < T; ++t) one[t] = static_cast<int16_t>(two[t] + (first - 1) * column[1][t]);
        int16_t* entry = table + (64 * third + 16 * second + 4 * first) * T;
        for (int t = 0; t < T; ++t) entry[t] = static_cast<int16_t>(one[t] - column[0][t]);
        for (int t = 0; t < T; ++t) entry[T + t] = one[t];
        for (int t = 0; t < T; ++t) entry[2 * T + t] = static_cast<int16_t>(one[t] + column[0][t]);
      }
    }
  }
}

typedef uint32_t Words __attribute__((vector_size(16)));

// A block of a panel to one word a row: byte b of it holds columns 4 c + b at bits 2 c.
static AGENTFORGE_INLINE void words_of_rows(const uint8_t* block, uint32_t (&rows)[kPanelRows]) {
  for (int64_t lane = 0; lane < kLineLanes; lane += 4) {
    Words words[4];
    for (int line = 0; line < 4; ++line)
      std::memcpy(&words[line], block + line * kLineBytes + 4 * lane, sizeof(Words));
    exchange_fields(words);
    for (int quarter = 0; quarter < 4; ++quarter)
      std::memcpy(rows + quarter * kLineLanes + lane, &words[quarter], sizeof(Words));
  }
}

// Adds one block (64 rows, 16 columns) to sums [64][T].
template <int T>
static AGENTFORGE_INLINE void add_block(const uint8_t* block, const int16_t* __restrict tables,
                                        int16_t* __restrict sums) {
  for (int line = 0; line < 4; ++line) __builtin_prefetch(block + kGroupBytes + kLineBytes * line);
  alignas(64) uint32_t rows[kPanelRows];
  words_of_rows(block, rows);
  for (int64_t row = 0; row < kPanelRows; ++row) {
    const uint32_t word = rows[row];
    const int16_t* const entry[kTables] = {
        tables + (word & 0xff) * T, tables + (kTableDistance + (word >> 8 & 0xff)) * T,
        tables + (2 * kTableDistance + (word >> 16 & 0xff)) * T,
        tables + (3 * kTableDistance + (word >> 24)) * T};
    const int16_t* const a = static_cast<const int16_t*>(__builtin_assume_aligned(entry[0], 2 * T));
    const int16_t* const b = static_cast<const int16_t*>(__builtin_assume_aligned(entry[1], 2 * T));
    const int16_t* const c = static_cast<const int16_t*>(__builtin_assume_aligned(entry[2], 2 * T));
    const int16_t* const d = static_cast<const int16_t*>(__builtin_assume_aligned(entry[3], 2 * T));
    int16_t* const out = static_cast<int16_t*>(__builtin_assume_aligned(sums + row * T, 2 * T));
    int16_t total[T];
    for (int t = 0; t < T; ++t) total[t] = static_cast<int16_t>(out[t] + a[t] + b[t] + c[t] + d[t]);
    std::memcpy(out, total, sizeof total);
  }
}

static AGENTFORGE_INLINE void widen(int16_t* __restrict narrow, int32_t* __restrict wide, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    wide[i] += narrow[i];
    narrow[i] = 0;
  }
}

// One token's sums of `count` successive rows to its outputs (plain loops, so that they vectorise).
static AGENTFORGE_INLINE void finish_rows(const Epilogue& epilogue, int64_t row, const int32_t* sums,
                                          int64_t count, float activation_scale) {
  float* const output = epilogue.output + row;
  if (epilogue.scale_per_row) {
    const float* const weight_scale = epilogue.weight_scale + row;
    for (int64_t i = 0; i < count; ++i)
      output[i] = static_cast<float>(sums[i]) * (activation_scale * weight_scale[i]);
  } else {
    const float scale = activation_scale * epilogue.weight_scale[0];
    for (int64_t i = 0; i < count; ++i) output[i] = static_cast<float>(sums[i]) * scale;
  }
  if (!epilogue.residual) return;
  const float* const residual = epilogue.residual + row;
  for (int64_t i = 0; i < count; ++i) output[i] = output[i] + residual[i];
}

// Up to T tokens from `token` times panels [panel_begin, panel_end), at most kBlockRows rows.
template <int T>
static AGENTFORGE_INLINE void multiply_block(const MatmulCall& call, int64_t token, int64_t panel_begin,
                                             int64_t panel_end) {
  const int64_t tokens = smaller(T, call.tokens - token);
  const int64_t panels = panel_end - panel_begin, count = panels * kPanelRows * T;
  const int8_t* const q = call.q + token * call.q_stride;
  int32_t* const wide = reinterpret_cast<int32_t*>(call.scratch);  // [rows][T]
  int16_t* const narrow = reinterpret_cast<int16_t*>(wide + kBlockRows * kMostTokens);
  int16_t* const tables = narrow + kBlockRows * kMostTokens;
  std::memset(wide, 0, static_cast<size_t>(count) * sizeof *wide);
  std::memset(narrow, 0, static_cast<size_t>(count) * sizeof *narrow);

  int32_t reached = 0;  // bound of the magnitudes in `narrow`
  for (int64_t group = 0; group < call.groups; ++group) {
    alignas(64) int16_t x[kGroupColumns][T];
    const int32_t bound = turn_group<T>(q + group * kGroupColumns, call.q_stride, tokens, x);
    for (int64_t byte = 0; byte < kTables; ++byte)
      build_table<T>(x, byte, tables + byte * kTableDistance * T);
    if (reached + bound > kMostNarrow) {
      widen(narrow, wide, count);
      reached = 0;
    }
    reached += bound;
    for (int64_t panel = 0; panel < panels; ++panel)
      add_block<T>(call.panels + ((panel_begin + panel) * call.groups + group) * kGroupBytes, tables,
                   narrow + panel * kPanelRows * T);
  }
  widen(narrow, wide, count);

  alignas(64) int32_t turned[T][kPanelRows];
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int32_t* const sums = wide + panel * kPanelRows * T;
    for (int64_t row = 0; row < kPanelRows; ++row)
      for (int t = 0; t < T; ++t) turned[t][row] = sums[row * T + t];
    const int64_t row = (panel_begin + panel) * kPanelRows;
    const int64_t rows = smaller(kPanelRows, call.epilogue->rows - row);
    for (int64_t t = 0; t < tokens; ++t)
      finish_rows(call.epilogue->from_token(token + t), row, turned[t], rows, call.scale[token + t]);
  }
}

constexpr int64_t kScratchBytes =
    round_up(kBlockRows * kMostTokens * 6 + kTableEntries * kMostTokens * 2, 64);

static void multiply(const MatmulCall& call) {
  constexpr int64_t block_panels = kBlockRows / kPanelRows;
  for (int64_t panel = call.panel_begin; panel < call.panel_end; panel += block_panels) {
    const int64_t end = smaller(panel + block_panels, call.panel_end);
    for (int64_t token = 0; token < call.tokens; token += kMostTokens) {
      if (call.tokens - token <= kMostTokens / 2) multiply_block<kMostTokens / 2>(call, token, panel, end);
      else multiply_block<kMostTokens>(call, token, panel, end);
    }
  }
}

}  // namespace lookup
}  // namespace agentforge
AGENTFORGE_OPTIMIZE_END
