// The float work of a plan between its matrix products: norms, attention, memory, small dense layers, for each level
// of instruction set. The order of sums does not depend on the level and no multiply-add is fused: levels differ in
// the last bits of nothing.
#pragma once

#include "isa.hpp"

namespace agentforge::floats {

typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;

static inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

enum CacheType : int64_t { kCacheFloat32 = 0, kCacheBfloat16 = 1, kCacheInt8 = 2 };
constexpr int64_t cache_bytes(int64_t type) { return type == kCacheFloat32 ? 4 : type == kCacheBfloat16 ? 2 : 1; }

// The cache of one sequence and one head of keys.
struct HeadCache {
  char* keys;          // [round_up(window, 16) / 16][width][16]
  char* values;        // [window][round_up(width, 16)]
  float* key_scale;    // [round_up(window, 16)], int8 only
  float* value_scale;
};

// Tokens of one sequence, one after the other, and the heads that share keys.
struct AttendCall {
  HeadCache cache;
  int64_t type;
  const float* q;  // [tokens][heads][width], turned already
  float* out;      // [tokens], out_stride floats apart: [heads][width]
  int64_t out_stride;
  float* scores;   // scratch: [tokens * heads][round_up(seen + tokens - 1, 16)]
  float* sums;     // scratch: [tokens * heads][round_up(width, 16)]
  float* inverse;  // scratch: [tokens * heads]
  int64_t tokens;
  int64_t heads;
  int64_t width;
  int64_t seen;  // slots the first token sees; each later one sees one more
};

struct DenseFloat {
  const void* blocks;  // [ceil(rows / 64)][columns][64], float or bfloat16
  const float* bias;    // [rows] or null
  const float* residual;
  int64_t rows;
  int64_t columns;
  bool sigmoid;
  bool halves;
};

struct MemoryCall {
  const float* key;  // [width]
  const float* query;
  const float* value;
  const float* chunk_map;  // [width][width]
  float* map;
  float* momentum;
  float* out;    // [width]
  float* error;  // [width] scratch
  int64_t width;
  float theta, eta, keep, error_limit;
};

struct FloatKernels {
  void (*norm)(const float* x, const float* weight, float epsilon, int64_t width, float* out);
  void (*dense)(const DenseFloat& layer, const float* x, float* out, int64_t begin, int64_t end);
  void (*rotate)(const float* in, const float* cos, const float* sin, int64_t width, float* out);
  void (*attend)(const AttendCall& call);
  void (*store)(const HeadCache& cache, int64_t type, int64_t slot, const float* key, const float* value,
                int64_t width);
  void (*remember)(const MemoryCall& call);
  void (*blend)(float* mixed, const float* gate, const float* read, int64_t width);
  void (*activate)(const float* gate, const float* up, float* out, int64_t width, bool squared_relu);
};

#define AGENTFORGE_FLOAT_LEVEL 0
namespace portable {
#include "float_level.hpp"
}
#undef AGENTFORGE_FLOAT_LEVEL
#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX2
#define AGENTFORGE_FLOAT_LEVEL 1
namespace avx2 {
#include "float_level.hpp"
}
#undef AGENTFORGE_FLOAT_LEVEL
AGENTFORGE_TARGET_END
AGENTFORGE_TARGET_AVX512VNNI
#define AGENTFORGE_FLOAT_LEVEL 2
namespace avx512 {
#include "float_level.hpp"
}
#undef AGENTFORGE_FLOAT_LEVEL
AGENTFORGE_TARGET_END
#endif

static inline const FloatKernels& float_kernels() {
#if AGENTFORGE_X86
  const int level = current_isa();
  if (level >= kAvx512Vnni) return avx512::kernels;
  if (level >= kAvx2) return avx2::kernels;
#endif
  return portable::kernels;
}

}  // namespace agentforge::floats
