// The native extension of agentforge_kernels: one translation unit, one header a concept.
//
//   common, isa, threads, workspace     ground shared by all
//   dense_kernels, sparse_kernels       the slots of a level of instruction set,
//   dispatch, sparse_dispatch           and who fills them
//   portable, avx2, avxvnni, avx512_*   kernels of one level: dense ternary, *_int8, *_sparse
//   amx_matmul                          several tokens with AMX tiles; the rest of that level is AVX-512's
//   pack, pack_columns, pack_lanes      stored forms to the layouts kernels read
//   quantize, dense, block_sparse,      drivers: work over tokens, panels, column blocks and threads
//   activation_sparse
//   plan_floats, plan                   a whole model in one call a token
//   limits                              the machine's own limits, for the benchmark
//   bindings_*                          Python entry points (raw pointers)

#include <nanobind/nanobind.h>

#include "bindings_bench.hpp"
#include "bindings_dense.hpp"
#include "bindings_plan.hpp"
#include "bindings_sparse.hpp"

namespace agentforge {

static bool force_isa(int level, bool even_if_unreported) {
  if (level < -1 || level >= kIsaLevels) return false;
  if (level >= 0 && !AGENTFORGE_X86 && level != kPortable) return false;
  if (level == kAmxInt8 && !AGENTFORGE_AMX) return false;
  if (level >= 0 && !isa_reported(level) && !even_if_unreported) return false;
  forced_isa.store(level);
  return true;
}

static uintptr_t openmp_address() {
#ifdef _OPENMP
  return reinterpret_cast<uintptr_t>(&omp_get_num_threads);
#else
  return 0;
#endif
}

static void bind_isa(nanobind::module_& module) {
  namespace nb = nanobind;
  module.def("isa", &current_isa, "Level of instruction set in use: 0 portable, 1 avx2, 2 avxvnni, 3 avx512vnni, 4 amxint8.");
  module.def("best_isa", &best_isa, "Highest level this processor and operating system report.");
  module.def(
      "isa_reported", [](int level) { return level >= 0 && level < kIsaLevels && isa_reported(level); },
      nb::arg("level"), "Whether processor and operating system report a level.");
  module.def(
      "isa_name", [](int level) { return level >= 0 && level < kIsaLevels ? isa_name(level) : "unknown"; },
      nb::arg("level"), "Name of a level.");
  module.def("force_isa", &force_isa, nb::arg("level"), nb::arg("even_if_unreported") = false,
             "Use this level (-1: the best reported). False, and nothing changed, when it is not reported; "
             "even_if_unreported is for processors whose hypervisor hides the bit (else: illegal instruction).");
  module.def("openmp_address", &openmp_address,
             "Address of omp_get_num_threads as this extension sees it; 0 when built without OpenMP.");
}

}  // namespace agentforge

NB_MODULE(_extension, module) {
  nanobind::set_leak_warnings(false);
  agentforge::bind_isa(module);
  agentforge::bind_dense(module);
  agentforge::bind_bench(module);
  agentforge::bind_sparse(module);
  agentforge::bind_plan(module);
}
