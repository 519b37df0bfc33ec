// Dense ternary kernels on 256-bit vpdpbusd: unsigned codes times signed activations, four to an int32.
//
// The instruction has two encodings. VEX (AVX-VNNI: Alder Lake and later, Zen 5) is what this level is
// for. EVEX (AVX-512-VNNI with VL: Ice Lake, Zen 4) computes the same; it lets a processor without
// AVX-VNNI run this level when it is forced, so that the level is tested on more machines. The rest of
// the code is compiled for AVX2 alone: the encoding is the only difference.
#pragma once

#include "avx2.hpp"
#include "isa.hpp"

#if AGENTFORGE_X86
#if defined(__clang__)  // its assembler accepts an instruction only where the function's target has it
AGENTFORGE_TARGET_AVXVNNI
#define AGENTFORGE_HAS_EVEX_DOT 0
#else
AGENTFORGE_TARGET_AVX2
#define AGENTFORGE_HAS_EVEX_DOT 1
#endif
namespace agentforge::avxvnni {

enum Encoding { kVex, kEvex };

// sums[i] += four codes (0..255) times four activations (-128..127), exact in int32. Inline assembly
// because GCC 12 copies and spills the accumulator around the intrinsic.
template <Encoding encoding>
static AGENTFORGE_INLINE void dot4(__m256i& sums, __m256i codes, __m256i activations) {
#if AGENTFORGE_HAS_EVEX_DOT
  if constexpr (encoding == kVex)
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(codes), "x"(activations));
  else
    __asm__("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(codes), "x"(activations));
#else
  sums = _mm256_dpbusd_avx_epi32(sums, codes, activations);
#endif
}

// Both halves of 16 rows times the same four activations. One assembly statement, the broadcast
// included: left to itself GCC loads broadcasts early and spills accumulators for them.
template <Encoding encoding>
static AGENTFORGE_INLINE void dot4_halves(__m256i& first_sums, __m256i& second_sums, __m256i first,
                                          __m256i second, const void* four_activations) {
#if AGENTFORGE_HAS_EVEX_DOT
  struct Word {
    char bytes[4];
  };
  const Word& word = *static_cast<const Word*>(four_activations);
  __m256i x;
  if constexpr (encoding == kVex)
    __asm__("vpbroadcastd %5, %2\n\t%{vex%} vpdpbusd %2, %3, %0\n\t%{vex%} vpdpbusd %2, %4, %1"
            : "+&x"(first_sums), "+&x"(second_sums), "=&x"(x)
            : "x"(first), "x"(second), "m"(word));
  else
    __asm__("vpbroadcastd %5, %2\n\t%{evex%} vpdpbusd %2, %3, %0\n\t%{evex%} vpdpbusd %2, %4, %1"
            : "+&x"(first_sums), "+&x"(second_sums), "=&x"(x)
            : "x"(first), "x"(second), "m"(word));
#else
  const __m256i x = _mm256_set1_epi32(load_unaligned<int32_t>(four_activations));
  dot4<encoding>(first_sums, first, x);
  dot4<encoding>(second_sums, second, x);
#endif
}

// ---- One token -----------------------------------------------------------------------------------
// Nested masks, as in avx512_dense.hpp: a line (64 rows, 4 columns) is two vectors, each with an accumulator a
// mask. 8 accumulators, 3 masks, 1 line, 1 activation and 1 masked code of the 16 registers.

constexpr int kMasks = 4;

static AGENTFORGE_INLINE void separate_rows(__m256i (&sums)[kMasks], const __m256i (&nested)[kMasks]) {
  sums[0] = nested[0];
  sums[1] = _mm256_srai_epi32(_mm256_sub_epi32(nested[1], nested[0]), 2);
  sums[2] = _mm256_srai_epi32(_mm256_sub_epi32(nested[2], nested[1]), 4);
  sums[3] = _mm256_srai_epi32(_mm256_sub_epi32(nested[3], nested[2]), 6);
}

// One token times `groups` groups of one panel. With kSparse, group i meets the activations of group index[i],
// whose sum is added to `excess`; without, groups follow each other and their sum is known.
template <Encoding encoding, bool kSparse>
static AGENTFORGE_INLINE void multiply_panel(const uint8_t* line, int64_t groups, const int8_t* q,
                                             const int32_t* index, const int32_t* group_sums, int32_t excess,
                                             float scale, const Epilogue& epilogue, int64_t row) {
  const __m256i mask[3] = {_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0f), _mm256_set1_epi8(0x3f)};
  const uint8_t* const end = line + groups * kGroupBytes;
  __m256i accumulators[2][kMasks];
  AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
    AGENTFORGE_UNROLL for (int nested = 0; nested < kMasks; ++nested)
      accumulators[half][nested] = _mm256_setzero_si256();
  const int8_t* x = q;
  const uint8_t* group_end = line;
  for (; line < end; line += kLineBytes, x += kLineColumns) {
    if constexpr (kSparse) {
      if (line == group_end) {
        x = q + int64_t{*index} * kGroupColumns;
        excess += group_sums[*index++];
        group_end += kGroupBytes;
      }
    }
    _mm_prefetch(reinterpret_cast<const char*>(line) + 16 * kGroupBytes, _MM_HINT_T0);
    const __m256i first = avx2::load_32(line), second = avx2::load_32(line + 32);
    const __m256i word = _mm256_set1_epi32(load_unaligned<int32_t>(x));
    AGENTFORGE_UNROLL for (int nested = 0; nested < 3; ++nested) {
      dot4<encoding>(accumulators[0][nested], _mm256_and_si256(first, mask[nested]), word);
      dot4<encoding>(accumulators[1][nested], _mm256_and_si256(second, mask[nested]), word);
    }
    dot4<encoding>(accumulators[0][3], first, word);
    dot4<encoding>(accumulators[1][3], second, word);
  }
  __m256i sums[8];  // 2 * row field + half
  AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half) {
    __m256i fields[kMasks];
    separate_rows(fields, accumulators[half]);
    AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field) sums[2 * field + half] = fields[field];
  }
  avx2::finish_panel(epilogue, row, sums, excess, scale);
}

template <Encoding encoding>
static void matvec(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum, float scale,
                   const Epilogue& epilogue, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel)
    multiply_panel<encoding, false>(panels + panel * groups * kGroupBytes, groups, q, nullptr, nullptr, sum,
                                    scale, epilogue, panel * kPanelRows);
}

// ---- Tiles of tokens -----------------------------------------------------------------------------
// 16 rows (one row field) times T tokens: 2 T accumulators (12 of the 16 registers at T = 6), 2 for codes
// shifted and masked from the first-level cache, one broadcast activation, one mask. A panel takes four passes.

template <Encoding encoding, int T, int field>
static AGENTFORGE_INLINE void tile_pass(const TileCall& call) {
  __m256i sums[2][T];
  AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
    AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
      sums[half][token] = call.first ? _mm256_setzero_si256()
                                     : _mm256_loadu_si256(avx2::carry_of(call, field, half, token));
  const uint8_t* codes = call.weights;
  const uint8_t* prefetch = call.prefetch + field * call.prefetch_step;
  for (int64_t group = 0; group < call.groups; ++group) {
    const int32_t* words = call.words + call.offset[group];
    _mm_prefetch(reinterpret_cast<const char*>(prefetch), _MM_HINT_T0);
    prefetch += 4 * call.prefetch_step;
    for (int line = 0; line < 4; ++line, codes += kLineBytes, words += T) {
      const __m256i first = avx2::load_field<field>(codes), second = avx2::load_field<field>(codes + 32);
      AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
        dot4_halves<encoding>(sums[0][token], sums[1][token], first, second, words + token);
    }
  }
  AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
    AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
      _mm256_storeu_si256(avx2::carry_of(call, field, half, token), sums[half][token]);
}

template <Encoding encoding, int T>
static void tile(const TileCall& call) {
  tile_pass<encoding, T, 0>(call);
  tile_pass<encoding, T, 1>(call);
  tile_pass<encoding, T, 2>(call);
  tile_pass<encoding, T, 3>(call);
  if (call.last) avx2::finish_tile(call, T);
}

template <Encoding encoding>
static constexpr DenseKernels kernels_of() {
  return {avx2::quantize_row,
          matvec<encoding>,
          6,
          {nullptr, tile<encoding, 1>, tile<encoding, 2>, tile<encoding, 3>, tile<encoding, 4>,
           tile<encoding, 5>, tile<encoding, 6>},
          {nullptr, pack_tokens_portable<1>, pack_tokens_portable<2>, pack_tokens_portable<3>,
           pack_tokens_portable<4>, pack_tokens_portable<5>, pack_tokens_portable<6>}};
}

}  // namespace agentforge::avxvnni
AGENTFORGE_TARGET_END

namespace agentforge::avxvnni {

// Chosen when the extension is loaded: VEX where the processor reports AVX-VNNI.
#if AGENTFORGE_HAS_EVEX_DOT
static const DenseKernels dense_kernels =
    isa_reported(kAvxVnni) || !isa_reported(kAvx512Vnni) ? kernels_of<kVex>() : kernels_of<kEvex>();
#else
static const DenseKernels dense_kernels = kernels_of<kVex>();
#endif

}  // namespace agentforge::avxvnni
#endif
