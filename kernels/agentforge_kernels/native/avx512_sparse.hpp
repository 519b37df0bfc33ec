// Sparse ternary matvecs, AVX-512 with VNNI.
#pragma once

#include "avx2_sparse.hpp"
#include "avx512_dense.hpp"
#include "sparse_kernels.hpp"

#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX512VNNI
namespace agentforge::avx512 {

static void block_matvec(const BlockTiles& weights, const int8_t* q, const int32_t* group_sums, float scale,
                         const Epilogue& epilogue, int64_t block_begin, int64_t block_end) {
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t first = weights.start[block];
    multiply_panel<true>(weights.tiles + first * kGroupBytes, weights.start[block + 1] - first, q,
                         weights.index + first, group_sums, 0, scale, epilogue, block * kPanelRows);
  }
}

// Entries are (column << 8 | value) at first: one compression for both.
static int64_t list_columns(const int8_t* q, int64_t columns, ColumnList& list) {
  __m512i position = _mm512_slli_epi32(
      _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 8);
  const __m512i advance = _mm512_set1_epi32(16 << 8);
  int64_t count = 0;
  for (int64_t column = 0; column < columns; column += 16) {
    const __m512i value =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q + column)));
    const __mmask16 nonzero = _mm512_mask_test_epi32_mask(columns_mask(columns - column), value, value);
    _mm512_storeu_si512(list.offset + count,
                        _mm512_maskz_compress_epi32(nonzero, _mm512_or_si512(position, value)));
    count += __builtin_popcount(nonzero);
    position = _mm512_add_epi32(position, advance);
  }
  for (int64_t entry = 0; entry < count; entry += 16) {
    const __m512i both = _mm512_loadu_si512(list.offset + entry);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(list.value + entry), _mm512_cvtepi32_epi8(both));
    _mm512_storeu_si512(list.offset + entry, _mm512_slli_epi32(_mm512_srli_epi32(both, 8), 6));
  }
  return count;
}

// Columns after which sums of codes scaled by up to 64 are brought back to their size: 2 * 64 * 128 * 65,536
// is 2^30.
constexpr int64_t kMostScaledColumns = 65536;

// Adds columns [begin, end) of the list to the sums of the 256 rows of one block.
//
// The lines of four columns are interleaved byte by byte, so that a 32-bit lane holds four columns of the same
// four rows: 8 permutations, then 12 ands and 16 vpdpbusd, for 1024 weights; dense takes 28 for as many.
static AGENTFORGE_INLINE void add_columns(const uint8_t* block, const ColumnList& list, int64_t begin,
                                          int64_t end, __m512i (&rows)[4][4]) {
  const __m512i masks[3] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0f), _mm512_set1_epi8(0x3f)};
  __m512i accumulators[4][4];  // [64 rows][nested mask]
  AGENTFORGE_UNROLL for (int part = 0; part < 4; ++part) {
    AGENTFORGE_UNROLL for (int nested = 0; nested < 4; ++nested)
      accumulators[part][nested] = _mm512_setzero_si512();
  }
  for (int64_t entry = begin; entry < end; entry += kColumnsAtOnce) {
    const int32_t* const offset = list.offset + entry;
    AGENTFORGE_UNROLL for (int column = 0; column < 4; ++column)
      _mm_prefetch(reinterpret_cast<const char*>(block) + offset[kColumnsAhead + column], _MM_HINT_T0);
    const __m512i words = broadcast_word(list.value + entry);
    const __m512i first = _mm512_loadu_si512(block + offset[0]), second = _mm512_loadu_si512(block + offset[1]);
    const __m512i third = _mm512_loadu_si512(block + offset[2]), fourth = _mm512_loadu_si512(block + offset[3]);
    const __m512i low_pairs[2] = {_mm512_unpacklo_epi8(first, second), _mm512_unpacklo_epi8(third, fourth)};
    const __m512i high_pairs[2] = {_mm512_unpackhi_epi8(first, second), _mm512_unpackhi_epi8(third, fourth)};
    const __m512i codes[4] = {_mm512_unpacklo_epi16(low_pairs[0], low_pairs[1]),
                              _mm512_unpackhi_epi16(low_pairs[0], low_pairs[1]),
                              _mm512_unpacklo_epi16(high_pairs[0], high_pairs[1]),
                              _mm512_unpackhi_epi16(high_pairs[0], high_pairs[1])};
    AGENTFORGE_UNROLL for (int part = 0; part < 4; ++part) {
      AGENTFORGE_UNROLL for (int nested = 0; nested < 3; ++nested)
        dot4(accumulators[part][nested], _mm512_and_si512(codes[part], masks[nested]), words);
      dot4(accumulators[part][3], codes[part], words);
    }
  }
  AGENTFORGE_UNROLL for (int part = 0; part < 4; ++part) {
    __m512i sums[4];
    separate_rows(sums, accumulators[part]);
    AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field)
      rows[part][field] = _mm512_add_epi32(rows[part][field], sums[field]);
  }
}

static void column_matvec(const ColumnMatvecCall& call) {
  for (int64_t block = call.block_begin; block < call.block_end; ++block) {
    const __m512i excess = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_set1_epi32(call.sum));
    __m512i rows[4][4];  // rows 64 * part + 16 * field
    AGENTFORGE_UNROLL for (int part = 0; part < 4; ++part) {
      AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field) rows[part][field] = excess;
    }
    for (int64_t begin = 0; begin < call.list->count; begin += kMostScaledColumns)
      add_columns(call.blocks + block * call.block_bytes, *call.list, begin,
                  smaller(begin + kMostScaledColumns, call.list->count), rows);
    const int64_t first_row = block * kBlockRows;
    for (int part = 0; part < 4 && first_row + kPanelRows * part < call.epilogue->rows; ++part)
      finish_panel(*call.epilogue, first_row + kPanelRows * part, rows[part], call.scale);
  }
}

static const SparseKernels sparse_kernels = {avx2::sum_groups, block_matvec, list_columns, column_matvec};

}  // namespace agentforge::avx512
AGENTFORGE_TARGET_END
#endif
