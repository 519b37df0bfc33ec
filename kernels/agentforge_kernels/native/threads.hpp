// Fork-join on the OpenMP runtime torch already runs. No pool, no spinning of our own: two spinning
// pools in one process cost up to 10x (measured: 16.4 ms against 1.5 ms a decoded token).
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include "common.hpp"

namespace agentforge {

// Calls body(part, parts) once for every part, on `threads` threads; in place when that is one.
// The runtime may grant fewer threads than asked: `parts` is what it granted.
// The body must not throw: memory is reserved before the fork.
template <typename Body>
static inline void fork_join(int threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    body(static_cast<int64_t>(omp_get_thread_num()), static_cast<int64_t>(omp_get_num_threads()));
    return;
  }
#else
  (void)threads;
#endif
  body(int64_t{0}, int64_t{1});
}

// Waits for all parts of the fork_join in progress; `parts` is what its body was given.
static inline void wait_for_all(int64_t parts) {
#ifdef _OPENMP
  if (parts > 1) {
#pragma omp barrier
  }
#else
  (void)parts;
#endif
}

// Threads worth forking for `work` units when a thread should have at least `least` of them.
static inline int useful_threads(int threads, int64_t work, int64_t least, int64_t most_parts) {
  const int64_t useful = smaller(smaller(threads, most_parts), work / least);
  return useful < 1 ? 1 : static_cast<int>(useful);
}

}  // namespace agentforge
