// Dense ternary kernels on AVX2: vpmaddubsw multiplies unsigned codes with signed activations and adds
// neighbours into int16. Those are summed in int16 and widened before they can overflow:
//   a code is at most 2 and an activation at least -128, so a pair is in [-512, 508], and 64 of them are
//   in [-32768, 32512]: exactly int16. The bounds below follow from that; nothing ever saturates.
#pragma once

#include "avx2_quantize.hpp"
#include "dense_kernels.hpp"
#include "epilogue_avx2.hpp"

#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX2
namespace agentforge::avx2 {

static AGENTFORGE_INLINE __m256i load_32(const void* address) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(address));
}

// Neighbouring int16 added into int32.
static AGENTFORGE_INLINE __m256i widen_pairs(__m256i narrow) {
  return _mm256_madd_epi16(narrow, _mm256_set1_epi16(1));
}

// ---- One token -----------------------------------------------------------------------------------
// Row fields 0 and 2 (after a shift by four) are masked in place, and so are 1 and 3, which then count four
// times: 13 instructions for 32 bytes of weights instead of 15. In four groups the fourfold sums add 16 pairs
// of at most 4 * 512 = 2048: again exactly [-32768, 32512].

constexpr int64_t kMatvecSegment = 4;

// int16 sums of 8 lanes, by row field; 1 and 3 count four times.
struct NarrowSums {
  __m256i field[4];
};

alignas(32) static const uint32_t kFieldMasks[2][8] = {
    {0x03030303, 0x03030303, 0x03030303, 0x03030303, 0x03030303, 0x03030303, 0x03030303, 0x03030303},
    {0x0c0c0c0c, 0x0c0c0c0c, 0x0c0c0c0c, 0x0c0c0c0c, 0x0c0c0c0c, 0x0c0c0c0c, 0x0c0c0c0c, 0x0c0c0c0c}};

// Half a line: 8 lanes, 4 columns. In assembly, with one register for all products and the masks in memory:
// left to itself GCC spills three of the eight sums of a line.
static AGENTFORGE_INLINE void add_half_line(NarrowSums& sums, __m256i low, __m256i x) {
#if !defined(__clang__)
  __m256i product;
  __asm__(
      "vpand %7, %4, %5\n\tvpmaddubsw %6, %5, %5\n\tvpaddw %5, %0, %0\n\t"
      "vpand %8, %4, %5\n\tvpmaddubsw %6, %5, %5\n\tvpaddw %5, %1, %1\n\t"
      "vpsrlw $4, %4, %4\n\t"
      "vpand %7, %4, %5\n\tvpmaddubsw %6, %5, %5\n\tvpaddw %5, %2, %2\n\t"
      "vpand %8, %4, %5\n\tvpmaddubsw %6, %5, %5\n\tvpaddw %5, %3, %3"
      : "+&x"(sums.field[0]), "+&x"(sums.field[1]), "+&x"(sums.field[2]), "+&x"(sums.field[3]), "+&x"(low),
        "=&x"(product)
      : "x"(x), "m"(kFieldMasks[0]), "m"(kFieldMasks[1]));
#else
  const __m256i single = _mm256_set1_epi8(0x03), fourfold = _mm256_set1_epi8(0x0c);
  const __m256i high = _mm256_srli_epi16(low, 4);
  sums.field[0] = _mm256_add_epi16(sums.field[0], _mm256_maddubs_epi16(_mm256_and_si256(low, single), x));
  sums.field[1] = _mm256_add_epi16(sums.field[1], _mm256_maddubs_epi16(_mm256_and_si256(low, fourfold), x));
  sums.field[2] = _mm256_add_epi16(sums.field[2], _mm256_maddubs_epi16(_mm256_and_si256(high, single), x));
  sums.field[3] = _mm256_add_epi16(sums.field[3], _mm256_maddubs_epi16(_mm256_and_si256(high, fourfold), x));
#endif
}

// One token times `groups` groups of one panel. With kSparse, group i meets the activations of group index[i],
// whose sum is added to `excess`; without, groups follow each other and their sum is known.
template <bool kSparse>
static AGENTFORGE_INLINE void multiply_panel(const uint8_t* blocks, int64_t groups, const int8_t* q,
                                             const int32_t* index, const int32_t* group_sums, int32_t excess,
                                             float scale, const Epilogue& epilogue, int64_t row) {
  __m256i sums[8];  // 2 * row field + half
  for (int vector = 0; vector < 8; ++vector) sums[vector] = _mm256_setzero_si256();
  for (int64_t segment = 0; segment < groups; segment += kMatvecSegment) {
    const int64_t lines = 4 * smaller(kMatvecSegment, groups - segment);
    const uint8_t* codes = blocks + segment * kGroupBytes;
    const int8_t* x = q + segment * kGroupColumns;
    NarrowSums narrow[2];
    AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
      AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field)
        narrow[half].field[field] = _mm256_setzero_si256();
    for (int64_t line = 0; line < lines; ++line, codes += kLineBytes, x += kLineColumns) {
      if constexpr (kSparse) {
        if (line % 4 == 0) {
          x = q + int64_t{*index} * kGroupColumns;
          excess += group_sums[*index++];
        }
      }
      _mm_prefetch(reinterpret_cast<const char*>(codes) + 16 * kGroupBytes, _MM_HINT_T0);
      const __m256i word = _mm256_set1_epi32(load_unaligned<int32_t>(x));
      add_half_line(narrow[0], load_32(codes), word);
      add_half_line(narrow[1], load_32(codes + 32), word);
    }
    AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
      AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field) {
        const __m256i wide = widen_pairs(narrow[half].field[field]);
        sums[2 * field + half] =
            _mm256_add_epi32(sums[2 * field + half], field % 2 ? _mm256_srai_epi32(wide, 2) : wide);
      }
  }
  finish_panel(epilogue, row, sums, excess, scale);
}

static void matvec(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum, float scale,
                   const Epilogue& epilogue, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel)
    multiply_panel<false>(panels + panel * groups * kGroupBytes, groups, q, nullptr, nullptr, sum, scale,
                          epilogue, panel * kPanelRows);
}

// ---- Tiles of tokens -----------------------------------------------------------------------------
// 16 rows (one row field) times T tokens in int16; at T = 6 these are 12 of the 16 registers, and 2 codes, 1
// broadcast activation and 1 product fill the rest (the mask is read from memory). In 16 groups a sum adds 64
// pairs. A panel takes four passes over a block of columns that stays in the first-level cache.

constexpr int64_t kTileSegment = 16;

// Where the sums of 8 rows of one token wait: rows 16 * field + 8 * half of the panel.
static AGENTFORGE_INLINE __m256i* carry_of(const TileCall& call, int field, int half, int token) {
  return reinterpret_cast<__m256i*>(call.carry + token * kPanelRows + kLineLanes * field + 8 * half);
}

// Complete sums in `carry` to outputs. One function for all tiles: inlined into each it doubled the time
// to compile avxvnni.hpp (2.0 to 4.0 s) and made no tile measurably faster.
static void finish_tile(const TileCall& call, int tokens) {
  for (int token = 0; token < tokens; ++token) {
    const Epilogue epilogue = call.epilogue->from_token(token);
    const __m256i correction = _mm256_set1_epi32(call.sum[token]);
    for (int64_t row = 0; row < kPanelRows; row += 8) {
      const __m256i sums = load_32(call.carry + token * kPanelRows + row);
      finish_8_rows(epilogue, call.row + row, _mm256_sub_epi32(sums, correction), call.scale[token]);
    }
  }
}

// The codes at bits 2 * field of 32 bytes. In assembly, with the mask in memory: GCC gives it a
// register and spills a sum of the largest tile for it.
template <int field>
static AGENTFORGE_INLINE __m256i load_field(const uint8_t* address) {
#if defined(__clang__)
  return _mm256_and_si256(_mm256_srli_epi16(load_32(address), 2 * field), _mm256_set1_epi8(0x03));
#else
  struct Bytes {
    char bytes[32];
  };
  alignas(32) static const uint32_t mask[8] = {0x03030303, 0x03030303, 0x03030303, 0x03030303,
                                               0x03030303, 0x03030303, 0x03030303, 0x03030303};
  const Bytes& source = *reinterpret_cast<const Bytes*>(address);
  const Bytes& mask_bytes = *reinterpret_cast<const Bytes*>(mask);
  __m256i codes;
  if constexpr (field == 0)
    __asm__("vmovdqu %1, %0\n\tvpand %2, %0, %0" : "=x"(codes) : "m"(source), "m"(mask_bytes));
  else
    __asm__("vmovdqu %1, %0\n\tvpsrlw %3, %0, %0\n\tvpand %2, %0, %0"
            : "=x"(codes)
            : "m"(source), "m"(mask_bytes), "i"(2 * field));
  return codes;
#endif
}

// Both halves of 16 rows times four activations of one token. In assembly, with the broadcast, because
// GCC loads broadcasts early and spills sums for them.
static AGENTFORGE_INLINE void add_products(__m256i& first_sums, __m256i& second_sums, __m256i first,
                                           __m256i second, const void* four_activations) {
#if defined(__clang__)
  const __m256i x = _mm256_set1_epi32(load_unaligned<int32_t>(four_activations));
  first_sums = _mm256_add_epi16(first_sums, _mm256_maddubs_epi16(first, x));
  second_sums = _mm256_add_epi16(second_sums, _mm256_maddubs_epi16(second, x));
#else
  struct Word {
    char bytes[4];
  };
  __m256i x, product;
  __asm__(
      "vpbroadcastd %6, %2\n\t"
      "vpmaddubsw %2, %4, %3\n\t"
      "vpmaddubsw %2, %5, %2\n\t"
      "vpaddw %3, %0, %0\n\t"
      "vpaddw %2, %1, %1"
      : "+&x"(first_sums), "+&x"(second_sums), "=&x"(x), "=&x"(product)
      : "x"(first), "x"(second), "m"(*static_cast<const Word*>(four_activations)));
#endif
}

// One row field of a group: 16 rows x 16 columns, times T tokens.
template <int T, int field>
static AGENTFORGE_INLINE void add_group(__m256i (&sums)[2][T], const uint8_t* block, const int32_t* words) {
  for (int line = 0; line < 4; ++line, block += kLineBytes, words += T) {
    const __m256i first = load_field<field>(block), second = load_field<field>(block + 32);
    AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
      add_products(sums[0][token], sums[1][token], first, second, words + token);
  }
}

template <int T, int field>
static AGENTFORGE_INLINE void tile_pass(const TileCall& call) {
  alignas(32) __m256i sums[2][T];
  AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
    AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
      sums[half][token] =
          call.first ? _mm256_setzero_si256() : _mm256_loadu_si256(carry_of(call, field, half, token));
  const uint8_t* codes = call.weights;
  const uint8_t* prefetch = call.prefetch + field * call.prefetch_step;
  for (int64_t segment = 0; segment < call.groups; segment += kTileSegment) {
    __m256i narrow[2][T];
    AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
      AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half) narrow[half][token] = _mm256_setzero_si256();
    const int64_t end = smaller(segment + kTileSegment, call.groups);
    for (int64_t group = segment; group < end; ++group, codes += kGroupBytes) {
      const int32_t* const words = call.words + call.offset[group];
      _mm_prefetch(reinterpret_cast<const char*>(prefetch), _MM_HINT_T0);
      prefetch += 4 * call.prefetch_step;
      add_group<T, field>(narrow, codes, words);
    }
    AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
      AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
        sums[half][token] = _mm256_add_epi32(sums[half][token], widen_pairs(narrow[half][token]));
  }
  AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
    AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
      _mm256_storeu_si256(carry_of(call, field, half, token), sums[half][token]);
}

template <int T>
static void tile(const TileCall& call) {
  tile_pass<T, 0>(call);
  tile_pass<T, 1>(call);
  tile_pass<T, 2>(call);
  tile_pass<T, 3>(call);
  if (call.last) finish_tile(call, T);
}

static const DenseKernels dense_kernels = {
    quantize_row,
    matvec,
    6,
    {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>},
    {nullptr, pack_tokens_portable<1>, pack_tokens_portable<2>, pack_tokens_portable<3>,
     pack_tokens_portable<4>, pack_tokens_portable<5>, pack_tokens_portable<6>}};

}  // namespace agentforge::avx2
AGENTFORGE_TARGET_END
#endif
