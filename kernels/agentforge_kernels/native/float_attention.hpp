// Window attention over caches of float32, bfloat16 or int8, for the heads that share keys.
// Included once for each level (plan_floats.hpp).
//
// Keys lie in blocks of 16 slots, [block][head width][16 slots]: a block's 16 scores are sums over vectors of slots,
// and no vector has to be added up across its lanes. Values lie slot by slot, padded to whole vectors. int8 has a
// scale a slot and head: largest magnitude / 127.

AGENTFORGE_INLINE uint16_t to_bfloat16(float x) {
  if (x != x) return 0x7fc0;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// NaN when one of them is NaN: it then shows in the scores.
AGENTFORGE_INLINE float largest_magnitude(const float* x, int64_t width) {
  float most = kSmallestMagnitude;
  for (int64_t i = 0; i < width; ++i) {
    const float magnitude = x[i] < 0 ? -x[i] : x[i];
    most = magnitude > most || magnitude != magnitude ? magnitude : most;
  }
  return most;
}
// As quantize_int8 of the package rounds: to the nearest whole number, ties to even.
AGENTFORGE_INLINE int8_t to_int8(float x, float factor) {
  const float rounded = (x * factor + 12582912.0f) - 12582912.0f;
  return rounded >= -127.0f && rounded <= 127.0f ? static_cast<int8_t>(rounded) : int8_t{0};
}

// Rotary position of one head (halves convention).
static void rotate_body(const float* in, const float* cos, const float* sin, int64_t width, float* out) {
  const int64_t half = width / 2;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Lanes low = load(in + i), high = load(in + half + i);
    store(out + i, low * load(cos + i) + -high * load(sin + i));
    store(out + half + i, high * load(cos + half + i) + low * load(sin + half + i));
  }
  for (; i < half; ++i) {
    out[i] = in[i] * cos[i] + -in[i + half] * sin[i];
    out[i + half] = in[i + half] * cos[i + half] + in[i] * sin[i + half];
  }
}

static void store_body(const HeadCache& cache, int64_t type, int64_t slot, const float* key,
                                  const float* value, int64_t width) {
  const int64_t first = slot / kLanes * kLanes * width + slot % kLanes, row = slot * round_up(width, kLanes);
  if (type == kCacheFloat32) {
    float* const keys = reinterpret_cast<float*>(cache.keys) + first;
    for (int64_t i = 0; i < width; ++i) keys[i * kLanes] = key[i];
    std::memcpy(reinterpret_cast<float*>(cache.values) + row, value, static_cast<size_t>(width) * 4);
  } else if (type == kCacheBfloat16) {
    uint16_t* const keys = reinterpret_cast<uint16_t*>(cache.keys) + first;
    uint16_t* const values = reinterpret_cast<uint16_t*>(cache.values) + row;
    for (int64_t i = 0; i < width; ++i) keys[i * kLanes] = to_bfloat16(key[i]);
    for (int64_t i = 0; i < width; ++i) values[i] = to_bfloat16(value[i]);
  } else {
    int8_t* const keys = reinterpret_cast<int8_t*>(cache.keys) + first;
    int8_t* const values = reinterpret_cast<int8_t*>(cache.values) + row;
    const float most_key = largest_magnitude(key, width), most_value = largest_magnitude(value, width);
    cache.key_scale[slot] = most_key / 127.0f;
    cache.value_scale[slot] = most_value / 127.0f;
    for (int64_t i = 0; i < width; ++i) keys[i * kLanes] = to_int8(key[i], 127.0f / most_key);
    for (int64_t i = 0; i < width; ++i) values[i] = to_int8(value[i], 127.0f / most_value);
  }
}

// Weighted values of slots [begin, end), added to out[0 .. 16 Chunks): two chains of sums for each vector.
template <int Chunks, typename T>
AGENTFORGE_INLINE void weigh_values(const T* values, int64_t row, const float* weights, int64_t begin, int64_t end,
                                    float* out) {
  Lanes even[Chunks]{}, odd[Chunks]{};
  int64_t slot = begin;
  for (values += slot * row; slot + 2 <= end; slot += 2, values += 2 * row) {
    const Lanes a = all(weights[slot]), b = all(weights[slot + 1]);
    for (int i = 0; i < Chunks; ++i) {
      even[i] += a * load_lanes(values + i * kLanes);
      odd[i] += b * load_lanes(values + row + i * kLanes);
    }
  }
  if (slot < end)
    for (int i = 0; i < Chunks; ++i) even[i] += all(weights[slot]) * load_lanes(values + i * kLanes);
  for (int i = 0; i < Chunks; ++i) store(out + i * kLanes, load(out + i * kLanes) + (even[i] + odd[i]));
}

// Scores of 16 slots for one query.
template <typename T>
AGENTFORGE_INLINE Lanes score_block(const T* block, const float* q, int64_t width) {
  Lanes a{}, b{}, c{}, d{};
  int64_t i = 0;
  for (; i + 4 <= width; i += 4) {
    const T* const k = block + i * kLanes;
    a += load_lanes(k) * all(q[i]);
    b += load_lanes(k + 16) * all(q[i + 1]);
    c += load_lanes(k + 32) * all(q[i + 2]);
    d += load_lanes(k + 48) * all(q[i + 3]);
  }
  for (; i < width; ++i) a += load_lanes(block + i * kLanes) * all(q[i]);
  return (a + b) + (c + d);
}

// Scores to weights of sum 1 (but for the factor that is returned), in place; slots behind `seen` become 0.
AGENTFORGE_INLINE float softmax(float* scores, int64_t seen, const float* value_scale) {
  const int64_t padded = round_up(seen, kLanes);
  for (int64_t slot = seen; slot < padded; ++slot) scores[slot] = -INFINITY;
  Lanes most = load(scores);
  for (int64_t slot = kLanes; slot < padded; slot += kLanes) {
    const Lanes score = load(scores + slot);
    most = score > most ? score : most;
  }
  float lanes[kLanes];
  store(lanes, most);
  float largest = lanes[0];
  for (int i = 1; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  Lanes total{};
  for (int64_t slot = 0; slot < padded; slot += kLanes) {
    const Lanes score = load(scores + slot);
    const Lanes power = score < all(-1e30f) ? Lanes{} : exponential(score - all(largest));
    total += power;
    store(scores + slot, value_scale ? power * load(value_scale + slot) : power);
  }
  return 1.0f / sum_of(total);
}

// A block of keys, then of values, serves all queries of all tokens before the next is read: both lie in the
// second-level cache, whose bandwidth bounds attention otherwise. What a query adds up, and in which order, does not
// depend on the other queries.
template <typename T>
AGENTFORGE_INLINE void attend_typed(const AttendCall& call, const T* keys, const T* values) {
  constexpr int64_t kValueSlots = 64;
  const int64_t width = call.width, row = round_up(width, kLanes), queries = call.tokens * call.heads;
  const int64_t most = call.seen + call.tokens - 1, padded = round_up(most, kLanes);
  const Lanes factor = all(1.0f / sqrtf(static_cast<float>(width)));
  const bool scaled = call.type == kCacheInt8;
  for (int64_t first = 0; first < padded; first += kLanes)
    for (int64_t query = 0; query < queries; ++query) {
      if (first >= call.seen + query / call.heads) continue;
      Lanes score = score_block(keys + first * width, call.q + query * width, width) * factor;
      if (scaled) score *= load(call.cache.key_scale + first);
      store(call.scores + query * padded + first, score);
    }
  for (int64_t query = 0; query < queries; ++query) {
    call.inverse[query] = softmax(call.scores + query * padded, call.seen + query / call.heads,
                                  scaled ? call.cache.value_scale : nullptr);
    for (int64_t i = 0; i < row; i += kLanes) store(call.sums + query * row + i, Lanes{});
  }
  for (int64_t first = 0; first < most; first += kValueSlots)
    for (int64_t query = 0; query < queries; ++query) {
      const int64_t end = smaller(first + kValueSlots, call.seen + query / call.heads);
      if (first >= end) continue;
      const float* const weights = call.scores + query * padded;
      for (int64_t start = 0; start < row; start += 4 * kLanes) {
        const T* const columns = values + start;
        float* const sums = call.sums + query * row + start;
        switch (smaller(4, (row - start) / kLanes)) {
          case 1: weigh_values<1>(columns, row, weights, first, end, sums); break;
          case 2: weigh_values<2>(columns, row, weights, first, end, sums); break;
          case 3: weigh_values<3>(columns, row, weights, first, end, sums); break;
          default: weigh_values<4>(columns, row, weights, first, end, sums);
        }
      }
    }
  for (int64_t query = 0; query < queries; ++query) {
    float* const out = call.out + query / call.heads * call.out_stride + query % call.heads * width;
    for (int64_t i = 0; i < width; ++i) out[i] = call.sums[query * row + i] * call.inverse[query];
  }
}

static void attend_body(const AttendCall& call) {
  if (call.type == kCacheFloat32)
    attend_typed(call, reinterpret_cast<const float*>(call.cache.keys),
                 reinterpret_cast<const float*>(call.cache.values));
  else if (call.type == kCacheBfloat16)
    attend_typed(call, reinterpret_cast<const uint16_t*>(call.cache.keys),
                 reinterpret_cast<const uint16_t*>(call.cache.values));
  else
    attend_typed(call, reinterpret_cast<const int8_t*>(call.cache.keys),
                 reinterpret_cast<const int8_t*>(call.cache.values));
}
