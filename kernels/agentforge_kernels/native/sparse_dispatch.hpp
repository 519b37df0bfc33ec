// The tables of sparse and int8 kernels of each level of instruction set.
#pragma once

#include "amx_matmul.hpp"
#include "avx2_int8.hpp"
#include "avx2_sparse.hpp"
#include "avx512_int8.hpp"
#include "avx512_sparse.hpp"
#include "avxvnni_int8.hpp"
#include "avxvnni_sparse.hpp"
#include "isa.hpp"
#include "portable_int8.hpp"
#include "portable_sparse.hpp"

namespace agentforge {

static inline const SparseKernels& sparse_kernels_of(int level) {
#if AGENTFORGE_X86
  switch (level) {
    case kAmxInt8:
    case kAvx512Vnni: return avx512::sparse_kernels;
    case kAvxVnni: return avxvnni::sparse_kernels;
    case kAvx2: return avx2::sparse_kernels;
    default: break;
  }
#else
  (void)level;
#endif
  return portable::sparse_kernels;
}

static inline const DenseKernels& int8_kernels_of(int level) {
#if AGENTFORGE_X86
  switch (level) {
#if AGENTFORGE_AMX
    case kAmxInt8: return amx::int8_kernels;
#endif
    case kAvx512Vnni: return avx512::int8_kernels;
    case kAvxVnni: return avxvnni::int8_kernels;
    case kAvx2: return avx2::int8_kernels;
    default: break;
  }
#else
  (void)level;
#endif
  return portable::int8_kernels;
}

static inline const SparseKernels& sparse_kernels() { return sparse_kernels_of(current_isa()); }
static inline const DenseKernels& int8_kernels() { return int8_kernels_of(current_isa()); }

}  // namespace agentforge
