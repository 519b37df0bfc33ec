// Norm, small dense layers, Titans memory, gate and activation, for one token. Included once for each level
// (plan_floats.hpp).

static void norm_body(const float* x, const float* weight, float epsilon, int64_t width, float* out) {
  const float mean = dot(x, x, width) / static_cast<float>(width);
  const float factor = 1.0f / sqrtf(mean + epsilon);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(out + i, load(x + i) * all(factor) * load(weight + i));
  for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

// Rows of panels [begin, end). Weights come from the third-level cache, which the machine prefetches too late by
// itself: 8 KB ahead.
template <typename T>
AGENTFORGE_INLINE void dense_typed(const DenseFloat& layer, const T* blocks, const float* x, float* out,
                                   int64_t begin, int64_t end) {
  constexpr int64_t kAhead = (8 << 10) / static_cast<int64_t>(sizeof(T));
  for (int64_t row = begin * kPanelRows; row < smaller(end * kPanelRows, layer.rows); row += kPanelRows) {
    const T* w = blocks + row * layer.columns;
    Lanes a{}, b{}, c{}, d{};
    for (int64_t column = 0; column < layer.columns; ++column, w += kPanelRows) {
      for (size_t byte = 0; byte < kPanelRows * sizeof(T); byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(w + kAhead) + byte);
      const Lanes value = all(x[column]);
      a += load_lanes(w) * value;
      b += load_lanes(w + 16) * value;
      c += load_lanes(w + 32) * value;
      d += load_lanes(w + 48) * value;
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

static void dense_body(const DenseFloat& layer, const float* x, float* out, int64_t begin, int64_t end) {
  if (layer.halves)
    dense_typed(layer, static_cast<const uint16_t*>(layer.blocks), x, out, begin, end);
  else
    dense_typed(layer, static_cast<const float*>(layer.blocks), x, out, begin, end);
}

// Momentum, write and read in one pass over the maps, which are larger than the first-level cache.
static void remember_body(const MemoryCall& call) {
  const int64_t n = call.width;
  float squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    call.error[i] = call.value[i] - dot(call.chunk_map + i * n, call.key, n);
    squares += call.error[i] * call.error[i];
  }
  const float length = sqrtf(squares);
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

static void blend_body(float* mixed, const float* gate, const float* read, int64_t width) {
  for (int64_t i = 0; i < width; ++i) mixed[i] += gate[i] * (read[i] - mixed[i]);
}

static void activate_body(const float* gate, const float* up, float* out, int64_t width,
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
