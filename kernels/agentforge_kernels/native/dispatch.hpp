// One table of dense kernels a level of instruction set.
#pragma once

#include "amx_matmul.hpp"
#include "avx2.hpp"
#include "avx512_dense.hpp"
#include "avxvnni.hpp"
#include "isa.hpp"
#include "portable.hpp"

namespace agentforge {

static inline const DenseKernels& dense_kernels_of(int level) {
#if AGENTFORGE_X86
  switch (level) {
#if AGENTFORGE_AMX
    case kAmxInt8: return amx::dense_kernels;
#endif
    case kAvx512Vnni: return avx512::dense_kernels;
    case kAvxVnni: return avxvnni::dense_kernels;
    case kAvx2: return avx2::dense_kernels;
    default: break;
  }
#else
  (void)level;
#endif
  return portable::dense_kernels;
}

static inline const DenseKernels& dense_kernels() { return dense_kernels_of(current_isa()); }

}  // namespace agentforge
