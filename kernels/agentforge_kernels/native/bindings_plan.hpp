// Python entry points of plans: made once, then one call a token. Tensors arrive as addresses (bindings_dense.hpp);
// a plan itself is a number for Python, which destroys it.
#pragma once

#include <nanobind/nanobind.h>

#include "bindings_dense.hpp"
#include "plan.hpp"

namespace agentforge {

// `shape`: the fields of PlanShape as 64-bit numbers in their order; the threshold as the bits of a double.
AGENTFORGE_ENTRY uintptr_t plan_create(uintptr_t shape, uintptr_t records, uintptr_t sections, int64_t section_count) {
  const int64_t* const f = pointer<const int64_t>(shape);
  double threshold;
  std::memcpy(&threshold, f + 19, sizeof threshold);
  const auto at = [f](int index) { return reinterpret_cast<float*>(f[index]); };
  const auto table = [f](int index) { return reinterpret_cast<char* const*>(f[index]); };
  const auto scales = [f](int index) { return reinterpret_cast<float* const*>(f[index]); };
  const PlanShape made = {f[0],      at(1),      at(2),      at(3), at(4), at(5), at(6),  at(7),  at(8), at(9),
                          table(10), table(11),  scales(12), scales(13),   f[14], f[15],  f[16],  at(17), at(18),
                          static_cast<float>(threshold), f[20]};
  return reinterpret_cast<uintptr_t>(
      new Plan(made, pointer<const int64_t>(records), pointer<const int64_t>(sections), section_count));
}

AGENTFORGE_ENTRY void plan_destroy(uintptr_t plan) { delete pointer<Plan>(plan); }

AGENTFORGE_ENTRY int64_t plan_read(uintptr_t plan, int64_t count, uintptr_t ids, uintptr_t sequence,
                                   uintptr_t position, uintptr_t steps, int threads) {
  const LongCall long_call(INT64_MAX);
  return pointer<Plan>(plan)->read({count, pointer<const int32_t>(ids), pointer<const int32_t>(sequence),
                                    pointer<const int32_t>(position)},
                                   pointer<int32_t>(steps), threads);
}

AGENTFORGE_ENTRY int64_t plan_head(uintptr_t plan, int64_t count, int threads) {
  const LongCall long_call(INT64_MAX);
  return pointer<Plan>(plan)->head(count, threads);
}

AGENTFORGE_ENTRY void plan_time_steps(uintptr_t plan, uintptr_t spent) {
  pointer<Plan>(plan)->time_steps(spent ? pointer<int64_t>(spent) : nullptr);
}

// `options`: temperature, top-p, penalty as bits of doubles, top-k, forbidden tokens and how many, stop tokens and how
// many. `place`: token, sequence, position, tokens at most, tokens seen so far.
static inline SamplerOptions sampler_options(uintptr_t options) {
  const int64_t* const f = pointer<const int64_t>(options);
  double numbers[3];
  std::memcpy(numbers, f, sizeof numbers);
  return {numbers[0], numbers[1], numbers[2], f[3], reinterpret_cast<const int32_t*>(f[4]), f[5],
          reinterpret_cast<const int32_t*>(f[6]), f[7]};
}

AGENTFORGE_ENTRY int64_t plan_generate(uintptr_t plan, uintptr_t options, uintptr_t place, uintptr_t uniforms,
                                       uintptr_t logits, int64_t vocab_size, uintptr_t seen, uintptr_t chosen,
                                       uintptr_t steps, int threads) {
  const LongCall long_call(INT64_MAX);
  const int64_t* const f = pointer<const int64_t>(place);
  return pointer<Plan>(plan)->generate(sampler_options(options), static_cast<int32_t>(f[0]),
                                       static_cast<int32_t>(f[1]), static_cast<int32_t>(f[2]), f[3],
                                       pointer<const double>(uniforms), pointer<const float>(logits), vocab_size,
                                       pointer<int32_t>(seen), f[4], pointer<int32_t>(chosen),
                                       pointer<int32_t>(steps), threads);
}

AGENTFORGE_ENTRY int64_t sample(uintptr_t logits, int64_t count, uintptr_t options, uintptr_t seen,
                                int64_t seen_count, double uniform) {
  return Sampler().choose(pointer<const float>(logits), count, sampler_options(options),
                          pointer<const int32_t>(seen), seen_count, uniform);
}

static inline void bind_plan(nanobind::module_& module) {
  namespace nb = nanobind;
  module.def("plan_create", &plan_create, nb::arg("shape"), nb::arg("records"), nb::arg("sections"),
             nb::arg("section_count"), "A plan from its records; the result is for the other functions.");
  module.def("plan_destroy", &plan_destroy, nb::arg("plan"), "Free a plan.");
  module.def("plan_read", &plan_read, nb::arg("plan"), nb::arg("count"), nb::arg("ids"), nb::arg("sequence"),
             nb::arg("position"), nb::arg("steps"), nb::arg("threads"),
             "Run tokens up to their answers; returns the first token that met NaN or infinity, or -1.");
  module.def("plan_generate", &plan_generate, nb::arg("plan"), nb::arg("options"), nb::arg("place"),
             nb::arg("uniforms"), nb::arg("logits"), nb::arg("vocab_size"), nb::arg("seen"), nb::arg("chosen"),
             nb::arg("steps"), nb::arg("threads"),
             "Read a token, choose the next, and so on; how many were chosen, or -1 - that after NaN or infinity.");
  module.def("sample", &sample, nb::arg("logits"), nb::arg("count"), nb::arg("options"), nb::arg("seen"),
             nb::arg("seen_count"), nb::arg("uniform"), "Choose one token from float32 logits.");
  module.def("plan_time_steps", &plan_time_steps, nb::arg("plan"), nb::arg("spent"),
             "Add up the nanoseconds of every record in `spent` (64-bit numbers); 0: no more.");
  module.def("plan_head", &plan_head, nb::arg("plan"), nb::arg("count"), nb::arg("threads"),
             "Logits of the first rows of `answer`; returns the first row that met NaN or infinity, or -1.");
}

}  // namespace agentforge
