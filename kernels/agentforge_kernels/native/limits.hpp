// What this machine can do at best: reading memory, and multiplying int8 in registers. The benchmark
// compares kernels with these, measured in the same run.
#pragma once

#include "amx_matmul.hpp"
#include "fork_cost.hpp"
#include "threads.hpp"

namespace agentforge {

// Bytes a reading loop takes at a time. Its loads are the widest of the level, its sums independent.
constexpr int64_t kReadStep = 512;
// Multiply instructions a round, each with its own sums: more than latency (5 cycles) times throughput (2
// a cycle) of any processor so far, and few enough for 16 registers.
constexpr int64_t kRoundInstructions = 12;

// What was read and multiplied ends here, so that the work cannot be left out.
static std::atomic<uint64_t> limit_sink{0};

static uint64_t read_portable(const char* begin, const char* end, int64_t /*prefetch*/) {
  uint64_t seen[8] = {};
  for (const char* at = begin; at < end; at += sizeof seen)
    for (int word = 0; word < 8; ++word) seen[word] |= load_unaligned<uint64_t>(at + 8 * word);
  uint64_t all = 0;
  for (const uint64_t word : seen) all |= word;
  return all;
}

}  // namespace agentforge

#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX2
namespace agentforge {

static uint64_t read_avx2(const char* begin, const char* end, int64_t prefetch) {
  __m256i seen[8];
  AGENTFORGE_UNROLL for (int i = 0; i < 8; ++i) seen[i] = _mm256_setzero_si256();
  for (const char* at = begin; at < end; at += 256) {
    if (prefetch)
      AGENTFORGE_UNROLL for (int i = 0; i < 4; ++i) _mm_prefetch(at + prefetch + 64 * i, _MM_HINT_T0);
    AGENTFORGE_UNROLL for (int i = 0; i < 8; ++i)
      seen[i] = _mm256_or_si256(seen[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32 * i)));
  }
  AGENTFORGE_UNROLL for (int i = 1; i < 8; ++i) seen[0] = _mm256_or_si256(seen[0], seen[i]);
  return static_cast<uint64_t>(_mm256_movemask_epi8(seen[0]));
}

// Pairs of products to int16, added to int16 sums, as the kernels of this level do.
static int64_t multiply_avx2(int64_t rounds) {
  const __m256i codes = _mm256_set1_epi8(1), values = _mm256_set1_epi8(1);
  __m256i sums[8];
  AGENTFORGE_UNROLL for (int i = 0; i < 8; ++i) sums[i] = _mm256_setzero_si256();
  for (int64_t round = 0; round < rounds; ++round) {
    AGENTFORGE_UNROLL for (int i = 0; i < 12; ++i) {
      __m256i products;
      __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
                       : "+x"(sums[i % 8]), "=&x"(products)
                       : "x"(codes), "x"(values));
    }
  }
  return 32;
}

}  // namespace agentforge
AGENTFORGE_TARGET_END

AGENTFORGE_TARGET_AVXVNNI
namespace agentforge {

static int64_t multiply_avxvnni(int64_t rounds) {
  const __m256i codes = _mm256_set1_epi8(1), values = _mm256_set1_epi8(1);
  __m256i sums[12];
  AGENTFORGE_UNROLL for (int i = 0; i < 12; ++i) sums[i] = _mm256_setzero_si256();
  for (int64_t round = 0; round < rounds; ++round) {
    AGENTFORGE_UNROLL for (int i = 0; i < 12; ++i)
      __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums[i]) : "x"(codes), "x"(values));
  }
  return 32;
}

}  // namespace agentforge
AGENTFORGE_TARGET_END

AGENTFORGE_TARGET_AVX512VNNI
namespace agentforge {

static uint64_t read_avx512(const char* begin, const char* end, int64_t prefetch) {
  __m512i seen[8];
  AGENTFORGE_UNROLL for (int i = 0; i < 8; ++i) seen[i] = _mm512_setzero_si512();
  for (const char* at = begin; at < end; at += 512) {
    if (prefetch)
      AGENTFORGE_UNROLL for (int i = 0; i < 8; ++i) _mm_prefetch(at + prefetch + 64 * i, _MM_HINT_T0);
    AGENTFORGE_UNROLL for (int i = 0; i < 8; ++i)
      seen[i] = _mm512_or_si512(seen[i], _mm512_loadu_si512(at + 64 * i));
  }
  AGENTFORGE_UNROLL for (int i = 1; i < 8; ++i) seen[0] = _mm512_or_si512(seen[0], seen[i]);
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(seen[0]));
}

static int64_t multiply_avx512(int64_t rounds) {
  const __m512i codes = _mm512_set1_epi8(1), values = _mm512_set1_epi8(1);
  __m512i sums[12];
  AGENTFORGE_UNROLL for (int i = 0; i < 12; ++i) sums[i] = _mm512_setzero_si512();
  for (int64_t round = 0; round < rounds; ++round) {
    AGENTFORGE_UNROLL for (int i = 0; i < 12; ++i)
      __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sums[i]) : "v"(codes), "v"(values));
  }
  return 64;
}

}  // namespace agentforge
AGENTFORGE_TARGET_END

#if AGENTFORGE_AMX
AGENTFORGE_TARGET_AMXINT8
namespace agentforge {

// Full tiles, whatever the tokens: a product of 16 tokens takes 16 cycles, one of 8 still 12.
static int64_t multiply_amx(int64_t rounds) {
  const amx::TileShapes shapes(amx::kTileTokens);
  shapes.load();
  for (int64_t round = 0; round < rounds; ++round) {
    AGENTFORGE_UNROLL for (int i = 0; i < kRoundInstructions / 4; ++i) {
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_release();
  return amx::kTileTokens * 16 * amx::kStepColumns;
}

}  // namespace agentforge
AGENTFORGE_TARGET_END
#endif
#endif

namespace agentforge {

struct LimitKernels {
  uint64_t (*read)(const char* begin, const char* end, int64_t prefetch);
  int64_t (*multiply)(int64_t rounds);  // returns multiply-accumulates of an instruction; or null
};

// Of the instruction that the level in use multiplies so many tokens with.
static inline LimitKernels limit_kernels(int64_t tokens) {
#if AGENTFORGE_X86
  switch (current_isa()) {
#if AGENTFORGE_AMX
    case kAmxInt8: return {read_avx512, tokens < amx::kLeastTokens ? multiply_avx512 : multiply_amx};
#endif
    case kAvx512Vnni: return {read_avx512, multiply_avx512};
    case kAvxVnni: return {read_avx2, isa_reported(kAvxVnni) ? multiply_avxvnni : nullptr};
    case kAvx2: return {read_avx2, multiply_avx2};
    default: break;
  }
#endif
  (void)tokens;
  return {read_portable, nullptr};
}

// Threads read a contiguous part each, again and again.
static inline double seconds_of_reading(const char* memory, int64_t bytes, int64_t prefetch, int threads,
                                        int64_t repeats) {
  const auto read = limit_kernels(1).read;
  const int64_t steps = bytes / kReadStep;
  const double start = seconds_now();
  fork_join(threads, [&](int64_t part, int64_t parts) {
    const char* const begin = memory + part_begin(steps, part, parts) * kReadStep;
    const char* const end = memory + part_begin(steps, part + 1, parts) * kReadStep;
    uint64_t seen = 0;
    for (int64_t repeat = 0; repeat < repeats; ++repeat) seen += read(begin, end, prefetch);
    limit_sink.fetch_add(seen, std::memory_order_relaxed);
  });
  return seconds_now() - start;
}

// `multiplies`: multiply-accumulates in all, shared by the threads, of a product of `tokens` tokens. Zero: no
// instruction known.
static inline double seconds_of_multiplying(int64_t multiplies, int threads, int64_t tokens) {
  const auto multiply = limit_kernels(tokens).multiply;
  if (!multiply) return 0.0;
  const int64_t a_round = multiply(1) * kRoundInstructions;
  const double start = seconds_now();
  fork_join(threads, [&](int64_t part, int64_t parts) {
    const int64_t rounds = ceil_div(multiplies, a_round);
    limit_sink.fetch_add(static_cast<uint64_t>(
        multiply(part_begin(rounds, part + 1, parts) - part_begin(rounds, part, parts))));
  });
  return seconds_now() - start;
}

}  // namespace agentforge
