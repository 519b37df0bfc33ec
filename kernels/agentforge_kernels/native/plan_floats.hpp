// The float work of a plan between its matrix products: norms, attention, memory, small dense layers. Written once
// with vectors of 16 floats and compiled for each level of instruction set; results differ between levels in their
// last bits only (the order of sums does not depend on the level, no multiply-add is fused).
#pragma once

#include "isa.hpp"

namespace agentforge::floats {

typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;

AGENTFORGE_INLINE Lanes load(const float* p) {
  Lanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
AGENTFORGE_INLINE void store(float* p, Lanes v) { std::memcpy(p, &v, sizeof v); }
AGENTFORGE_INLINE Lanes all(float x) { return x - Lanes{}; }
// Lanes i and i + Width together, in lanes i; what the others hold means nothing.
#if defined(__clang__)
#define AGENTFORGE_FOLD(v, width)                                                                                \
  (v + __builtin_shufflevector(v, v, width, width + 1, width + 2, width + 3, width + 4, width + 5, width + 6,    \
                               width + 7, 0, 0, 0, 0, 0, 0, 0, 0))
#else
#define AGENTFORGE_FOLD(v, width)                                                                                \
  (v + __builtin_shuffle(v, IntLanes{width, width + 1, width + 2, width + 3, width + 4, width + 5, width + 6,    \
                                     width + 7, 0, 0, 0, 0, 0, 0, 0, 0}))
#endif
AGENTFORGE_INLINE float sum_of(Lanes v) {
  v = AGENTFORGE_FOLD(v, 8);
  v = AGENTFORGE_FOLD(v, 4);
  v = AGENTFORGE_FOLD(v, 2);
  v = AGENTFORGE_FOLD(v, 1);
  return v[0];
}
#undef AGENTFORGE_FOLD

AGENTFORGE_INLINE float dot(const float* a, const float* b, int64_t n) {
  Lanes total{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) total += load(a + i) * load(b + i);
  float rest = 0;
  for (; i < n; ++i) rest += a[i] * b[i];
  return sum_of(total) + rest;
}

// e^x for x <= 0 or small, relative error under 2e-7: 2^k times a polynomial of the remainder (Cephes' expf).
AGENTFORGE_INLINE Lanes exponential(Lanes x) {
  x = x < all(-87.0f) ? all(-87.0f) : x;
  x = x > all(88.0f) ? all(88.0f) : x;
  const Lanes shifted = x * all(1.44269504088896341f) + all(12582912.0f);  // rounds to whole numbers
  const Lanes whole = shifted - all(12582912.0f);
  const Lanes r = (x - whole * all(0.693359375f)) - whole * all(-2.12194440e-4f);
  Lanes y = all(1.9875691500e-4f);
  y = y * r + all(1.3981999507e-3f);
  y = y * r + all(8.3334519073e-3f);
  y = y * r + all(4.1665795894e-2f);
  y = y * r + all(1.6666665459e-1f);
  y = y * r + all(5.0000001201e-1f);
  y = (y * r) * r + r + all(1.0f);
  const IntLanes exponent = (__builtin_convertvector(whole, IntLanes) + 127) << 23;
  Lanes power;
  std::memcpy(&power, &exponent, sizeof power);
  return y * power;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// ---- What one level offers -----------------------------------------------------------------------

struct DenseFloat {
  const float* blocks;  // [ceil(rows / 64)][columns][64]
  const float* bias;    // [rows] or null
  const float* residual;
  int64_t rows;
  int64_t columns;
  bool sigmoid;
};

struct AttendCall {
  const float* q;  // [heads][width], turned already
  const float* keys;
  const float* values;  // [window][kv_heads * width]
  float* out;           // [heads][width]
  float* scores;        // [round_up(seen, 16)] scratch
  int64_t heads;
  int64_t kv_heads;
  int64_t width;
  int64_t seen;  // slots that hold something
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
  void (*dense)(const DenseFloat& layer, const float* x, float* out);
  void (*attend)(const AttendCall& call);
  void (*remember)(const MemoryCall& call);
  void (*blend)(float* mixed, const float* gate, const float* read, int64_t width);
  void (*activate)(const float* gate, const float* up, float* out, int64_t width, bool squared_relu);
};

// ---- Bodies --------------------------------------------------------------------------------------

AGENTFORGE_INLINE void norm_body(const float* x, const float* weight, float epsilon, int64_t width, float* out) {
  const float mean = dot(x, x, width) / static_cast<float>(width);
  const float factor = 1.0f / std::sqrt(mean + epsilon);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(out + i, load(x + i) * all(factor) * load(weight + i));
  for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

AGENTFORGE_INLINE void dense_body(const DenseFloat& layer, const float* x, float* out) {
  for (int64_t row = 0; row < layer.rows; row += kPanelRows) {
    const float* w = layer.blocks + row * layer.columns;
    Lanes a{}, b{}, c{}, d{};
    for (int64_t column = 0; column < layer.columns; ++column, w += kPanelRows) {
      const Lanes value = all(x[column]);
      a += load(w) * value;
      b += load(w + 16) * value;
      c += load(w + 32) * value;
      d += load(w + 48) * value;
    }
    float sums[kPanelRows];
    store(sums, a);
    store(sums + 16, b);
    store(sums + 32, c);
    store(sums + 48, d);
    const int64_t count = smaller(kPanelRows, layer.rows - row);
    for (int64_t i = 0; i < count; ++i) {
      float y = sums[i];
      if (layer.residual) y += layer.residual[row + i];
      if (layer.bias) y += layer.bias[row + i];
      out[row + i] = layer.sigmoid ? sigmoid(y) : y;
    }
  }
}

AGENTFORGE_INLINE void attend_body(const AttendCall& call) {
  const int64_t row = call.kv_heads * call.width, shared = call.heads / call.kv_heads;
  const float factor = 1.0f / std::sqrt(static_cast<float>(call.width));
  const int64_t padded = round_up(call.seen, kLanes);
  for (int64_t head = 0; head < call.heads; ++head) {
    const float* const q = call.q + head * call.width;
    const float* const keys = call.keys + head / shared * call.width;
    const float* const values = call.values + head / shared * call.width;
    float largest = -INFINITY;
    for (int64_t slot = 0; slot < call.seen; ++slot) {
      const float score = dot(q, keys + slot * row, call.width) * factor;
      call.scores[slot] = score;
      largest = score > largest ? score : largest;
    }
    for (int64_t slot = call.seen; slot < padded; ++slot) call.scores[slot] = -INFINITY;
    Lanes total{};
    for (int64_t slot = 0; slot < padded; slot += kLanes) {
      const Lanes score = load(call.scores + slot);
      const Lanes power = score < all(-1e30f) ? Lanes{} : exponential(score - all(largest));
      store(call.scores + slot, power);
      total += power;
    }
    const float inverse = 1.0f / sum_of(total);
    float* const out = call.out + head * call.width;
    int64_t i = 0;
    for (; i + kLanes <= call.width; i += kLanes) {
      Lanes sum{};
      for (int64_t slot = 0; slot < call.seen; ++slot)
        sum += all(call.scores[slot]) * load(values + slot * row + i);
      store(out + i, sum * all(inverse));
    }
    for (; i < call.width; ++i) {
      float sum = 0;
      for (int64_t slot = 0; slot < call.seen; ++slot) sum += call.scores[slot] * values[slot * row + i];
      out[i] = sum * inverse;
    }
  }
}

// Momentum, write and read in one pass over the maps, which are larger than the first-level cache.
AGENTFORGE_INLINE void remember_body(const MemoryCall& call) {
  const int64_t n = call.width;
  float squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    call.error[i] = call.value[i] - dot(call.chunk_map + i * n, call.key, n);
    squares += call.error[i] * call.error[i];
  }
  const float length = std::sqrt(squares);
  const float shrink = length > call.error_limit ? call.error_limit / length : 1.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float write = call.theta * (call.error[i] * shrink);
    float* const momentum = call.momentum + i * n;
    float* const map = call.map + i * n;
    Lanes total{};
    int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
      const Lanes m = load(momentum + j) * all(call.eta) + all(write) * load(call.key + j);
      const Lanes w = load(map + j) * all(call.keep) + m;
      store(momentum + j, m);
      store(map + j, w);
      total += w * load(call.query + j);
    }
    float rest = 0;
    for (; j < n; ++j) {
      momentum[j] = momentum[j] * call.eta + write * call.key[j];
      map[j] = map[j] * call.keep + momentum[j];
      rest += map[j] * call.query[j];
    }
    call.out[i] = sum_of(total) + rest;
  }
}

AGENTFORGE_INLINE void blend_body(float* mixed, const float* gate, const float* read, int64_t width) {
  for (int64_t i = 0; i < width; ++i) mixed[i] += gate[i] * (read[i] - mixed[i]);
}

AGENTFORGE_INLINE void activate_body(const float* gate, const float* up, float* out, int64_t width,
                                     bool squared_relu) {
  if (squared_relu) {
    for (int64_t i = 0; i < width; ++i) {
      const float g = gate[i] > 0 ? gate[i] : 0;
      out[i] = g * g * up[i];
    }
  } else {
    for (int64_t i = 0; i < width; ++i) out[i] = gate[i] * sigmoid(gate[i]) * up[i];
  }
}

#define AGENTFORGE_FLOAT_LEVEL                                                                             \
  static void norm(const float* x, const float* weight, float epsilon, int64_t width, float* out) {        \
    norm_body(x, weight, epsilon, width, out);                                                              \
  }                                                                                                         \
  static void dense(const DenseFloat& layer, const float* x, float* out) { dense_body(layer, x, out); }     \
  static void attend(const AttendCall& call) { attend_body(call); }                                         \
  static void remember(const MemoryCall& call) { remember_body(call); }                                     \
  static void blend(float* mixed, const float* gate, const float* read, int64_t width) {                    \
    blend_body(mixed, gate, read, width);                                                                   \
  }                                                                                                         \
  static void activate(const float* gate, const float* up, float* out, int64_t width, bool squared_relu) { \
    activate_body(gate, up, out, width, squared_relu);                                                      \
  }                                                                                                         \
  static const FloatKernels kernels = {norm, dense, attend, remember, blend, activate};

namespace portable {
AGENTFORGE_FLOAT_LEVEL
}
#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX2
namespace avx2 {
AGENTFORGE_FLOAT_LEVEL
}
AGENTFORGE_TARGET_END
AGENTFORGE_TARGET_AVX512VNNI
namespace avx512 {
AGENTFORGE_FLOAT_LEVEL
}
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
