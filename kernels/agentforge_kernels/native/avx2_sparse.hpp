// Sparse ternary matvecs, AVX2.
#pragma once

#include "avx2.hpp"
#include "sparse_kernels.hpp"

#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX2
namespace agentforge::avx2 {

// vpsadbw adds eight unsigned bytes: activations moved up by 128.
static void sum_groups(const int8_t* q, int64_t groups, int32_t* sums, int64_t stride) {
  const __m128i raise = _mm_set1_epi8(static_cast<char>(0x80)), zero = _mm_setzero_si128();
  const __m128i raised = _mm_set1_epi32(128 * static_cast<int32_t>(kGroupColumns));
  for (int64_t group = 0; group < groups; ++group) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + group * kGroupColumns));
    const __m128i halves = _mm_sad_epu8(_mm_xor_si128(values, raise), zero);
    const __m128i total = _mm_add_epi32(halves, _mm_unpackhi_epi64(halves, halves));
    _mm_storeu_si32(sums + group * stride, _mm_sub_epi32(total, raised));
  }
}

static void block_matvec(const BlockTiles& weights, const int8_t* q, const int32_t* group_sums, float scale,
                         const Epilogue& epilogue, int64_t block_begin, int64_t block_end) {
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t first = weights.start[block];
    multiply_panel<true>(weights.tiles + first * kGroupBytes, weights.start[block + 1] - first, q,
                         weights.index + first, group_sums, 0, scale, epilogue, block * kPanelRows);
  }
}

static int64_t list_columns(const int8_t* q, int64_t columns, ColumnList& list) {
  int64_t count = 0;
  for (int64_t begin = 0; begin < columns; begin += 64) {
    const __m256i zero = _mm256_setzero_si256();
    const uint32_t low = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(load_32(q + begin), zero)));
    const uint32_t high =
        static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(load_32(q + begin + 32), zero)));
    uint64_t nonzero = ~(static_cast<uint64_t>(high) << 32 | low);
    if (columns - begin < 64) nonzero &= (uint64_t{1} << (columns - begin)) - 1;
    for (; nonzero; nonzero &= nonzero - 1, ++count) {
      const int64_t column = begin + __builtin_ctzll(nonzero);
      list.offset[count] = static_cast<int32_t>(kLineBytes * column);
      list.value[count] = q[column];
    }
  }
  return count;
}

// Complete sums of codes of one block of 256 rows to outputs.
static void finish_block(const ColumnMatvecCall& call, int64_t block, const int32_t* rows) {
  const int64_t first_row = block * kBlockRows;
  const int64_t count = smaller(kBlockRows, call.epilogue->rows - first_row);
  for (int64_t row = 0; row < count; row += 8)
    finish_8_rows(*call.epilogue, first_row + row,
                  _mm256_sub_epi32(load_32(rows + row), _mm256_set1_epi32(call.sum)), call.scale);
}

// Columns of a segment: 16 pairs of fourfold products, as in the dense matvec.
constexpr int64_t kColumnSegment = 32;

static AGENTFORGE_INLINE void add_wide(int32_t* rows, __m256i sums) {
  __m256i* const at = reinterpret_cast<__m256i*>(rows);
  _mm256_store_si256(at, _mm256_add_epi32(_mm256_load_si256(at), sums));
}

// Adds columns [begin, end) of the list to half the rows of a block: bytes 0..31 of each line at `lines`, rows
// 64 part + 16 field + (0..7) at rows[64 part + 16 field]. Two columns are interleaved byte by byte for
// vpmaddubsw: an int16 lane is one row of a byte's four.
template <bool kPrefetch>
static AGENTFORGE_INLINE void add_columns(const uint8_t* lines, const ColumnList& list, int64_t begin,
                                          int64_t end, int32_t* rows) {
  NarrowSums narrow[2];
  AGENTFORGE_UNROLL for (int parts = 0; parts < 2; ++parts)
    AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field)
      narrow[parts].field[field] = _mm256_setzero_si256();
  for (int64_t entry = begin; entry < end; entry += 2) {
    const int32_t* const offset = list.offset + entry;
    if constexpr (kPrefetch) {
      _mm_prefetch(reinterpret_cast<const char*>(lines) + offset[kColumnsAhead], _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(lines) + offset[kColumnsAhead + 1], _MM_HINT_T0);
    }
    const __m256i x = _mm256_set1_epi16(load_unaligned<int16_t>(list.value + entry));
    const __m256i first = load_32(lines + offset[0]), second = load_32(lines + offset[1]);
    add_half_line(narrow[0], _mm256_unpacklo_epi8(first, second), x);
    add_half_line(narrow[1], _mm256_unpackhi_epi8(first, second), x);
  }
  AGENTFORGE_UNROLL for (int parts = 0; parts < 2; ++parts)
    AGENTFORGE_UNROLL for (int field = 0; field < 4; ++field) {
      const __m256i sums = narrow[parts].field[field], zero = _mm256_setzero_si256();
      const int shift = field % 2 ? 18 : 16;
      int32_t* const at = rows + 128 * parts + 16 * field;
      add_wide(at, _mm256_srai_epi32(_mm256_unpacklo_epi16(zero, sums), shift));
      add_wide(at + 64, _mm256_srai_epi32(_mm256_unpackhi_epi16(zero, sums), shift));
    }
}

static void column_matvec(const ColumnMatvecCall& call) {
  for (int64_t block = call.block_begin; block < call.block_end; ++block) {
    const uint8_t* const lines = call.blocks + block * call.block_bytes;
    alignas(32) int32_t rows[kBlockRows] = {};
    for (int64_t begin = 0; begin < call.list->count; begin += kColumnSegment) {
      const int64_t end = smaller(begin + kColumnSegment, call.list->count);
      add_columns<true>(lines, *call.list, begin, end, rows);
      add_columns<false>(lines + 32, *call.list, begin, end, rows + 8);
    }
    finish_block(call, block, rows);
  }
}

static const SparseKernels sparse_kernels = {sum_groups, block_matvec, list_columns, column_matvec};

}  // namespace agentforge::avx2
AGENTFORGE_TARGET_END
#endif
