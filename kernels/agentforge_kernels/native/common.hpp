// What every kernel of this extension shares: element types, the float epilogue, small integer helpers.
//
// Rules for all headers of this translation unit:
//  * `-ffp-contract=off`: results are bit-equal to the reference, so no fused multiply-add may appear.
//  * Functions between AGENTFORGE_TARGET_* and AGENTFORGE_TARGET_END are compiled for that instruction
//    set. They are `static` and use no std:: templates: an inline function instantiated there would be
//    emitted with wide instructions and could be picked by the linker for the portable path as well.
//  * Pointers that come from tensors may have any alignment: unaligned loads only (free when the
//    address happens to be aligned).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define AGENTFORGE_X86 1
#include <immintrin.h>
#else
#define AGENTFORGE_X86 0
#endif

// AMX tiles: GCC 11, clang 12; only Linux is asked for the permission to use them (isa.hpp).
#define AGENTFORGE_AMX 0
#if AGENTFORGE_X86 && defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxint8intrin.h>)
#undef AGENTFORGE_AMX
#define AGENTFORGE_AMX 1
#endif
#endif

// Sections compiled for one instruction set. GCC and clang spell them differently.
#define AGENTFORGE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define AGENTFORGE_TARGET(isa) \
  AGENTFORGE_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define AGENTFORGE_TARGET_END AGENTFORGE_PRAGMA(clang attribute pop)
#define AGENTFORGE_UNROLL AGENTFORGE_PRAGMA(clang loop unroll(full))
#define AGENTFORGE_OPTIMIZE_MORE
#define AGENTFORGE_OPTIMIZE_END
#else
#define AGENTFORGE_TARGET(isa) AGENTFORGE_PRAGMA(GCC push_options) AGENTFORGE_PRAGMA(GCC target(isa))
#define AGENTFORGE_TARGET_END AGENTFORGE_PRAGMA(GCC pop_options)
#define AGENTFORGE_UNROLL AGENTFORGE_PRAGMA(GCC unroll 16)
#define AGENTFORGE_OPTIMIZE_MORE AGENTFORGE_PRAGMA(GCC push_options) AGENTFORGE_PRAGMA(GCC optimize("O3"))
#define AGENTFORGE_OPTIMIZE_END AGENTFORGE_PRAGMA(GCC pop_options)
#endif
#define AGENTFORGE_TARGET_AVX2 AGENTFORGE_TARGET("avx2,fma,f16c")
#define AGENTFORGE_TARGET_AVXVNNI AGENTFORGE_TARGET("avx2,fma,f16c,avxvnni")
#define AGENTFORGE_TARGET_AVX512VNNI \
  AGENTFORGE_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#define AGENTFORGE_TARGET_AMXINT8 \
  AGENTFORGE_TARGET("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
// Entry points: one copy of a call, although Python and the benchmark both make it.
#define AGENTFORGE_ENTRY static __attribute__((noinline))
#define AGENTFORGE_INLINE inline __attribute__((always_inline))

namespace agentforge {

// The panels layout (pack.hpp): panels of 64 rows, groups of 16 columns, blocks of 256 bytes: four lines of
// four columns, in each 16 lanes of 32 bits, whose bytes hold four rows each.
constexpr int64_t kPanelRows = 64;
constexpr int64_t kGroupColumns = 16;
constexpr int64_t kGroupBytes = kPanelRows * kGroupColumns / 4;
constexpr int64_t kLineBytes = kGroupBytes / 4;
constexpr int64_t kLineColumns = 4;
constexpr int64_t kLineLanes = kPanelRows / 4;
constexpr int64_t kStoredColumns = 128;  // stored rows and int8 activations are padded to this

constexpr float kSmallestMagnitude = 1e-5f;  // lower bound of an activation maximum before it divides
constexpr uint32_t kMagnitudeBits = 0x7fffffffu;
constexpr uint32_t kInfinityBits = 0x7f800000u;  // magnitude bits at or above: infinity or NaN

constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
constexpr int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Where part `index` of `parts` nearly equal parts of `count` items begins (index == parts: the end).
constexpr int64_t part_begin(int64_t count, int64_t index, int64_t parts) { return count * index / parts; }

template <typename T>
static inline T load_unaligned(const void* address) {
  T value;
  std::memcpy(&value, address, sizeof(T));
  return value;
}

static inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// 127 / maximum in the reference's two roundings: torch computes `number / tensor` as
// number * (1 / tensor). One division instead differs in the last bit, and once in 10^6 values in q.
static inline float inverse_step(float maximum) { return 127.0f * (1.0f / maximum); }

// Accumulators to outputs, for the tokens and rows a kernel is given. The order of float operations is
// the contract of reference.py: scale = activation_scale * weight_scale; y = float(acc) * scale;
// y += residual. Each is rounded on its own.
struct Epilogue {
  const float* weight_scale;  // one float, or one a row when scale_per_row
  bool scale_per_row;
  const float* residual;  // [tokens][rows] or null
  float* output;          // [tokens][rows]
  int64_t rows;           // real rows: bound of a store and distance between tokens

  // The same epilogue with `token` as its first token.
  Epilogue from_token(int64_t token) const {
    Epilogue moved = *this;
    if (moved.residual) moved.residual += token * rows;
    moved.output += token * rows;
    return moved;
  }
};

// One row of the epilogue's first token; `accumulator` already corrected by the sum of activations.
static inline void finish_row(const Epilogue& epilogue, int64_t row, int32_t accumulator, float activation_scale) {
  const float scale = activation_scale * epilogue.weight_scale[epilogue.scale_per_row ? row : 0];
  float y = static_cast<float>(accumulator) * scale;
  if (epilogue.residual) y = y + epilogue.residual[row];
  epilogue.output[row] = y;
}

}  // namespace agentforge
