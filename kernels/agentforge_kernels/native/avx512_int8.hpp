// int8 matmul, AVX-512 with VNNI: the layout and the correction are in pack_lanes.hpp.
#pragma once

#include "avx512_dense.hpp"
#include "pack_lanes.hpp"

#if AGENTFORGE_X86
AGENTFORGE_TARGET_AVX512VNNI
namespace agentforge::avx512 {

// One token, one panel at a time: 16 loads and 16 vpdpbusd a group, each step with accumulators of its own. It
// waits for memory, not for them: 50,257 x 512 weights are 26 MB.
static void int8_matvec(const uint8_t* panels, int64_t groups, const int8_t* q, int32_t sum, float scale,
                        const Epilogue& epilogue, int64_t panel_begin, int64_t panel_end) {
  const __m512i excess = _mm512_set1_epi32(int8_excess(sum));
  const uint8_t* weights = panels + panel_begin * groups * kInt8GroupBytes;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    __m512i accumulators[4][4];  // [step][line]
    AGENTFORGE_UNROLL for (int step = 0; step < 4; ++step) {
      AGENTFORGE_UNROLL for (int line = 0; line < 4; ++line) accumulators[step][line] = _mm512_setzero_si512();
    }
    const int8_t* values = q;
    const uint8_t* const end = weights + groups * kInt8GroupBytes;
    for (; weights < end; weights += kInt8GroupBytes, values += kGroupColumns) {
      AGENTFORGE_UNROLL for (int step = 0; step < 4; ++step) {
        const __m512i words = broadcast_word(values + kLineColumns * step);
        AGENTFORGE_UNROLL for (int line = 0; line < 4; ++line) {
          const uint8_t* const at = weights + kStepBytes * step + kLineBytes * line;
          _mm_prefetch(reinterpret_cast<const char*>(at) + kPrefetchBytes, _MM_HINT_T0);
          dot4(accumulators[step][line], _mm512_loadu_si512(at), words);
        }
      }
    }
    __m512i sums[4];
    AGENTFORGE_UNROLL for (int line = 0; line < 4; ++line)
      sums[line] = _mm512_sub_epi32(
          _mm512_add_epi32(_mm512_add_epi32(accumulators[0][line], accumulators[1][line]),
                           _mm512_add_epi32(accumulators[2][line], accumulators[3][line])),
          excess);
    finish_panel(epilogue, panel * kPanelRows, sums, scale);
  }
}

// 64 rows x T tokens: a step of four columns is 4 loads and 4 T vpdpbusd. Small tiles have a second set of
// accumulators for every other step, to hide the latency.
template <int T>
static void int8_tile(const TileCall& call) {
  constexpr int kSets = T <= 2 ? 2 : 1;
  __m512i accumulators[kSets][4][T];
  AGENTFORGE_UNROLL for (int set = 0; set < kSets; ++set) {
    AGENTFORGE_UNROLL for (int line = 0; line < 4; ++line) {
      AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
        accumulators[set][line][token] = _mm512_setzero_si512();
    }
  }
  const uint8_t* weights = call.weights;
  const uint8_t* const end = weights + call.groups * kInt8GroupBytes;
  const int32_t* words = call.words;
  const char* next = reinterpret_cast<const char*>(call.prefetch);
  const int64_t move = call.prefetch_step;
  for (; weights < end; weights += kInt8GroupBytes, words += 4 * T) {
    AGENTFORGE_UNROLL for (int step = 0; step < 4; ++step) {
      const int set = step % kSets;
      __m512i codes[4];
      AGENTFORGE_UNROLL for (int line = 0; line < 4; ++line) {
        _mm_prefetch(next, _MM_HINT_T0);
        next += move;
        codes[line] = _mm512_loadu_si512(weights + kStepBytes * step + kLineBytes * line);
      }
      AGENTFORGE_UNROLL for (int token = 0; token < T; ++token)
        dot4_panel(accumulators[set][0][token], accumulators[set][1][token], accumulators[set][2][token],
                   accumulators[set][3][token], codes, words + step * T + token);
    }
  }
  AGENTFORGE_UNROLL for (int token = 0; token < T; ++token) {
    __m512i sums[4];
    AGENTFORGE_UNROLL for (int line = 0; line < 4; ++line)
      sums[line] = kSets == 1 ? accumulators[0][line][token]
                              : _mm512_add_epi32(accumulators[0][line][token], accumulators[kSets - 1][line][token]);
    finish_token(call, token, sums, int8_excess(call.sum[token]));
  }
}

static const DenseKernels int8_kernels = {
    quantize_row,
    int8_matvec,
    6,
    {nullptr, int8_tile<1>, int8_tile<2>, int8_tile<3>, int8_tile<4>, int8_tile<5>, int8_tile<6>},
    {nullptr, pack_tokens<1>, pack_tokens<2>, pack_tokens<3>, pack_tokens<4>, pack_tokens<5>,
     pack_tokens<6>},
    nullptr, 0, 0, 0, kInt8GroupBytes};

}  // namespace agentforge::avx512
AGENTFORGE_TARGET_END
#endif
