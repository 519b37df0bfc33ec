// Sparse ternary matvecs on 256-bit vpdpbusd.
#pragma once

#include "avx2_sparse.hpp"
#include "avxvnni.hpp"

#if AGENTFORGE_X86
#if defined(__clang__)
AGENTFORGE_TARGET_AVXVNNI
#else
AGENTFORGE_TARGET_AVX2
#endif
namespace agentforge::avxvnni {

static void block_matvec(const BlockTiles& weights, const int8_t* q, const int32_t* group_sums, float scale,
                         const Epilogue& epilogue, int64_t block_begin, int64_t block_end) {
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t first = weights.start[block];
    multiply_panel<kVex, true>(weights.tiles + first * kGroupBytes, weights.start[block + 1] - first, q,
                               weights.index + first, group_sums, 0, scale, epilogue, block * kPanelRows);
  }
}

// Columns whose lines (8 KB) stay in the first-level cache for the four passes over them.
constexpr int64_t kChunkColumns = 128;

// Adds columns [begin, end) of the list to a quarter of a block's rows: bytes 0..31 of each line at `lines`, of
// each 16 of them the lower eight or (kHigh) the upper eight. Interleaved as in avx512_sparse.hpp: 4
// permutations, then 6 ands and 8 vpdpbusd.
template <bool kHigh>
static AGENTFORGE_INLINE void add_columns(const uint8_t* lines, const ColumnList& list, int64_t begin,
                                          int64_t end, int32_t* rows) {
  const __m256i mask[3] = {_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0f), _mm256_set1_epi8(0x3f)};
  __m256i accumulators[2][kMasks];
  AGENTFORGE_UNROLL for (int part = 0; part < 2; ++part)
    AGENTFORGE_UNROLL for (int nested = 0; nested < kMasks; ++nested)
      accumulators[part][nested] = _mm256_setzero_si256();
  for (int64_t entry = begin; entry < end; entry += kColumnsAtOnce) {
    const int32_t* const offset = list.offset + entry;
    if constexpr (!kHigh) {  // the other passes find the lines in the cache
      AGENTFORGE_UNROLL for (int column = 0; column < 4; ++column)
        _mm_prefetch(reinterpret_cast<const char*>(lines) + offset[kColumnsAhead + column], _MM_HINT_T0);
    }
    const __m256i first = avx2::load_32(lines + offset[0]), second = avx2::load_32(lines + offset[1]);
    const __m256i third = avx2::load_32(lines + offset[2]), fourth = avx2::load_32(lines + offset[3]);
    const __m256i pairs[2] = {kHigh ? _mm256_unpackhi_epi8(first, second) : _mm256_unpacklo_epi8(first, second),
                              kHigh ? _mm256_unpackhi_epi8(third, fourth) : _mm256_unpacklo_epi8(third, fourth)};
    const __m256i codes[2] = {_mm256_unpacklo_epi16(pairs[0], pairs[1]), _mm256_unpackhi_epi16(pairs[0], pairs[1])};
    const __m256i words = _mm256_set1_epi32(load_unaligned<int32_t>(list.value + entry));
    AGENTFORGE_UNROLL for (int part = 0; part < 2; ++part) {
      AGENTFORGE_UNROLL for (int nested = 0; nested < 3; ++nested)
        dot4<kVex>(accumulators[part][nested], _mm256_and_si256(codes[part], mask[nested]), words);
      dot4<kVex>(accumulators[part][3], codes[part], words);
    }
  }
  AGENTFORGE_UNROLL for (int part = 0; part < 2; ++part) {
    __m256i sums[kMasks];
    separate_rows(sums, accumulators[part]);
    AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field)
      avx2::add_wide(rows + 64 * part + 16 * field, sums[field]);
  }
}

static void column_matvec(const ColumnMatvecCall& call) {
  for (int64_t block = call.block_begin; block < call.block_end; ++block) {
    const uint8_t* const lines = call.blocks + block * call.block_bytes;
    alignas(32) int32_t rows[kBlockRows] = {};
    for (int64_t begin = 0; begin < call.list->count; begin += kChunkColumns) {
      const int64_t end = smaller(begin + kChunkColumns, call.list->count);
      for (int64_t half = 0; half < 2; ++half) {
        add_columns<false>(lines + 32 * half, *call.list, begin, end, rows + 8 * half);
        add_columns<true>(lines + 32 * half, *call.list, begin, end, rows + 8 * half + 128);
      }
    }
    avx2::finish_block(call, block, rows);
  }
}

}  // namespace agentforge::avxvnni
AGENTFORGE_TARGET_END

namespace agentforge::avxvnni {

// Forced on a processor without AVX-VNNI (which only tests do), this level's sparse kernels are those of AVX2.
static const SparseKernels sparse_kernels =
    isa_reported(kAvxVnni)
        ? SparseKernels{avx2::sum_groups, block_matvec, avx2::list_columns, column_matvec}
        : avx2::sparse_kernels;

}  // namespace agentforge::avxvnni
#endif
