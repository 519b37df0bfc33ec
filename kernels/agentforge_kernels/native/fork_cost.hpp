// When a second thread pays: measured once on this machine, not guessed.
//
// A fork and join of two waiting threads takes 0.5 to 1 us, and one core multiplies 0.2 to 0.5 million
// pairs in that time, depending on the machine; with more threads or slower kernels the balance
// moves. So the first call that may use n threads times n-thread forks and one small matvec (60 us).
#pragma once

#include <atomic>
#include <chrono>

#include "dispatch.hpp"
#include "threads.hpp"

namespace agentforge {

constexpr int kMostMeasuredThreads = 64;

static inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Shortest of `rounds` runs of `work`: what it takes when nothing disturbs.
template <typename Work>
static inline double shortest_seconds(int rounds, const Work& work) {
  double shortest = 1e9;
  for (int round = 0; round < rounds; ++round) {
    const double start = seconds_now();
    work();
    const double taken = seconds_now() - start;
    if (taken < shortest) shortest = taken;
  }
  return shortest;
}

// Multiply-accumulates a second, one thread, one token, weights in the first-level cache.
static inline double measured_macs_per_second(const DenseKernels& kernels) {
  constexpr int64_t kGroups = 64;
  alignas(64) static uint8_t panel[kGroups * kGroupBytes];
  alignas(64) static int8_t q[kGroups * kGroupColumns];
  float scale = 1.0f, output[kPanelRows];
  const Epilogue epilogue = {&scale, false, nullptr, output, kPanelRows};
  const double taken = shortest_seconds(
      8, [&] { kernels.matvec(panel, kGroups, q, 0, 1.0f, epilogue, 0, 1); });
  return static_cast<double>(kPanelRows * kGroups * kGroupColumns) / (taken > 1e-8 ? taken : 1e-8);
}

// Multiply-accumulates a thread must have for a fork to pay: twice what one core does during a fork and
// join (at once that, two threads take as long as one, and weights may have to change caches).
static inline int64_t least_macs_per_thread(int threads) {
  if (threads < 2) return INT64_MAX;
  static std::atomic<int64_t> known[kIsaLevels][kMostMeasuredThreads + 1];
  std::atomic<int64_t>& slot = known[current_isa()][smaller(threads, kMostMeasuredThreads)];
  int64_t least = slot.load(std::memory_order_relaxed);
  if (least == 0) {
    std::atomic<int64_t> visits{0};
    const double fork = shortest_seconds(32, [&] {
      fork_join(threads, [&](int64_t, int64_t) { visits.fetch_add(1, std::memory_order_relaxed); });
    });
    // Bounds: 0.3 us (no machine forks faster) and 20 us (a disturbed measurement).
    const double bounded = fork < 3e-7 ? 3e-7 : fork > 2e-5 ? 2e-5 : fork;
    least = larger(1, static_cast<int64_t>(2.0 * bounded * measured_macs_per_second(dense_kernels())));
    slot.store(least, std::memory_order_relaxed);
  }
  return least;
}

}  // namespace agentforge
