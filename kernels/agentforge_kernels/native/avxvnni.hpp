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
// Codes are masked, not shifted: field f of a byte then counts 4^f times, so each field has its own
// sums, divided (exactly) once at the end. A step takes two vectors (16 rows) with 8 independent
// accumulators in the 16 registers there are: 8 sums, 4 masks, 2 codes, 1 activation, 1 masked code.
//
// 16 rows are one 64-byte line of a 256-byte block, so a panel takes four passes. They go over chunks of
// a page, which the first pass brings into the first-level cache; sums wait in memory in between.

constexpr int64_t kChunkGroups = 16;
constexpr int kFields = 4;

struct FieldSums {
  __m256i value[2][kFields];  // [vector of 8 rows][field]
};

template <Encoding encoding>
static AGENTFORGE_INLINE void add_chunk(const uint8_t* line, int64_t groups, const int8_t* q,
                                        const uint8_t* prefetch, FieldSums& waiting) {
  const __m256i mask[kFields] = {_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c), _mm256_set1_epi8(0x30),
                                 _mm256_set1_epi8(static_cast<char>(0xc0))};
  __m256i sums[2][kFields];
  AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
    AGENTFORGE_UNROLL for (int field = 0; field < kFields; ++field)
      sums[half][field] = waiting.value[half][field];
  for (int64_t group = 0; group < groups; ++group, line += kGroupBytes, q += kGroupColumns) {
    _mm_prefetch(reinterpret_cast<const char*>(prefetch) + group * kGroupBytes, _MM_HINT_T0);
    const __m256i first = avx2::load_32(line), second = avx2::load_32(line + 32);
    AGENTFORGE_UNROLL for (int field = 0; field < kFields; ++field) {
      dot4_halves<encoding>(sums[0][field], sums[1][field], _mm256_and_si256(first, mask[field]),
                            _mm256_and_si256(second, mask[field]), q + 4 * field);
    }
  }
  AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
    AGENTFORGE_UNROLL for (int field = 0; field < kFields; ++field)
      waiting.value[half][field] = sums[half][field];
}

static AGENTFORGE_INLINE __m256i merge_fields(const __m256i* sums) {
  return _mm256_add_epi32(_mm256_add_epi32(sums[0], _mm256_srai_epi32(sums[1], 2)),
                          _mm256_add_epi32(_mm256_srai_epi32(sums[2], 4), _mm256_srai_epi32(sums[3], 6)));
}

template <Encoding encoding>
static void matvec(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum, float scale,
                   const Epilogue& epilogue, int64_t panel_begin, int64_t panel_end) {
  const __m256i correction = _mm256_set1_epi32(sum);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const uint8_t* const blocks = panels + panel * groups * kGroupBytes;
    FieldSums sums[4];
    for (int line = 0; line < 4; ++line)
      for (int field = 0; field < kFields; ++field)
        sums[line].value[0][field] = sums[line].value[1][field] = _mm256_setzero_si256();
    for (int64_t group = 0; group < groups; group += kChunkGroups) {
      const uint8_t* const chunk = blocks + group * kGroupBytes;
      const int64_t count = smaller(kChunkGroups, groups - group);
      for (int line = 0; line < 4; ++line)
        add_chunk<encoding>(chunk + 64 * line, count, q + group * kGroupColumns,
                            chunk + count * kGroupBytes + 64 * line, sums[line]);
    }
    for (int line = 0; line < 4; ++line)
      for (int half = 0; half < 2; ++half)
        avx2::finish_8_rows(epilogue, panel * kPanelRows + 16 * line + 8 * half,
                            _mm256_sub_epi32(merge_fields(sums[line].value[half]), correction), scale);
  }
}

// ---- Tiles of tokens -----------------------------------------------------------------------------
// 16 rows times T tokens: 2 T accumulators (12 of the 16 registers at T = 6), 2 for codes shifted and
// masked from the first-level cache, one broadcast activation, one mask.

// One field of one group: 16 rows (64 bytes at `codes`) times T tokens.
template <Encoding encoding, int T, int field>
static AGENTFORGE_INLINE void add_field(__m256i (&sums)[2][T], const uint8_t* codes, const int32_t* words) {
  const __m256i first = avx2::load_field<field>(codes), second = avx2::load_field<field>(codes + 32);
  AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
    dot4_halves<encoding>(sums[0][token], sums[1][token], first, second, words + field * T + token);
}

template <Encoding encoding, int T>
static void tile(const TileCall& call) {
  for (int line = 0; line < 4; ++line) {
    __m256i sums[2][T];
    AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
      AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
        sums[half][token] = call.first ? _mm256_setzero_si256()
                                       : _mm256_loadu_si256(avx2::carry_of(call, line, half, token));
    const uint8_t* codes = call.weights + 64 * line;
    const uint8_t* prefetch = call.prefetch + line * call.prefetch_step;
    const int32_t* words = call.words;
    for (int64_t group = 0; group < call.groups; ++group, codes += kGroupBytes, words += 4 * T) {
      _mm_prefetch(reinterpret_cast<const char*>(prefetch), _MM_HINT_T0);
      prefetch += 4 * call.prefetch_step;
      add_field<encoding, T, 0>(sums, codes, words);
      add_field<encoding, T, 1>(sums, codes, words);
      add_field<encoding, T, 2>(sums, codes, words);
      add_field<encoding, T, 3>(sums, codes, words);
    }
    AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
      AGENTFORGE_UNROLL for (int half = 0; half < 2; ++half)
        _mm256_storeu_si256(avx2::carry_of(call, line, half, token), sums[half][token]);
  }
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
