// Vectors of 16 floats and e^x on them. No #pragma once: plan_floats.hpp includes this once for each level of
// instruction set, inside its target section. GCC takes vectors apart for the target of the function they are written
// in, before it inlines: the same functions written once outside made attention 8 times slower.

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

// 16 floats from 16 numbers of a cache or a matrix.
AGENTFORGE_INLINE Lanes load_lanes(const float* p) { return load(p); }
AGENTFORGE_INLINE Lanes load_lanes(const uint16_t* p) {  // bfloat16: the upper half of a float
  typedef uint16_t Halves __attribute__((vector_size(32)));
  typedef uint32_t Words __attribute__((vector_size(64)));
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Lanes v;
  std::memcpy(&v, &words, sizeof v);
  return v;
}
// By hand: GCC 12 turns the conversion of a vector of bytes into 16 single ones (attention 6 times slower).
AGENTFORGE_INLINE Lanes load_lanes(const int8_t* p) {
#if AGENTFORGE_FLOAT_LEVEL == 2
  const __m512 v = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  Lanes lanes;
  std::memcpy(&lanes, &v, sizeof lanes);
  return lanes;
#elif AGENTFORGE_FLOAT_LEVEL == 1
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m256 v[2] = {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                       _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
  Lanes lanes;
  std::memcpy(&lanes, v, sizeof lanes);
  return lanes;
#else
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = static_cast<float>(p[i]);
  return load(lanes);
#endif
}
