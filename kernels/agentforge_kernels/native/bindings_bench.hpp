// For the benchmark: an entry point called many times inside, because Python's 0.1 us a call would be a
// tenth of the smallest matmul; and the machine's limits, measured by the same clock.
#pragma once

#include <nanobind/nanobind.h>

#include <tuple>

#include "bindings_dense.hpp"
#include "limits.hpp"

namespace agentforge {

// Seconds of `repeats` calls of an entry point. Its argument number kWeights, an address, moves on by
// `stride` bytes a call and begins again after `copies` calls: matrices of a model, one after the other.
template <auto kEntry, int kWeights>
struct Repeated;

template <typename Result, typename... Arguments, Result (*kEntry)(Arguments...), int kWeights>
struct Repeated<kEntry, kWeights> {
  static double seconds(Arguments... arguments, int64_t copies, int64_t stride, int64_t repeats) {
    std::tuple<Arguments...> call(arguments...);
    uintptr_t& weights = std::get<kWeights>(call);
    const uintptr_t first = weights;
    int64_t copy = 0;
    const double start = seconds_now();
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
      weights = first + static_cast<uintptr_t>(copy * stride);
      std::apply(kEntry, call);
      copy = copy + 1 < copies ? copy + 1 : 0;
    }
    return seconds_now() - start;
  }
};

// Binds `repeat_<name>(*arguments of the entry point, copies, stride, repeats)`, positional.
template <auto kEntry, int kWeights>
static inline void bind_repeated(nanobind::module_& module, const char* name) {
  module.def(name, &Repeated<kEntry, kWeights>::seconds,
             "Seconds of `repeats` calls; the address of the weights moves on by `stride` bytes a call, "
             "through `copies` copies.");
}

static inline void bind_bench(nanobind::module_& module) {
  namespace nb = nanobind;
  bind_repeated<&quantize, 0>(module, "repeat_quantize");
  bind_repeated<&dense_linear, 5>(module, "repeat_dense_linear");
  bind_repeated<&dense_linear_fused, 5>(module, "repeat_dense_linear_fused");
  module.def(
      "measure_read",
      [](uintptr_t address, int64_t bytes, int64_t prefetch, int threads, int64_t repeats) {
        return seconds_of_reading(pointer<const char>(address), bytes, prefetch, threads, repeats);
      },
      nb::arg("address"), nb::arg("bytes"), nb::arg("prefetch"), nb::arg("threads"), nb::arg("repeats"),
      "Seconds of reading `bytes` (rounded down to 512 a thread) `repeats` times, prefetching `prefetch` "
      "bytes ahead (0: not at all).");
  module.def("measure_multiply", &seconds_of_multiplying, nb::arg("multiplies"), nb::arg("threads"),
             nb::arg("tokens") = 1,
             "Seconds of so many int8 multiply-accumulates in registers, with the instruction the level in "
             "use multiplies so many tokens with; 0 where no such instruction is known.");
}

}  // namespace agentforge
