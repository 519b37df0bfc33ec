"""The checked-in configurations of the sparse and int8 kernels; read through ``config_table``.

The first line that holds is taken, so large shapes come first. Counted, not timed (see there). What
decided:

* Block-sparse: 16 of a tile's 64 rows a program, so that 2,560 rows are 160 programs. Eight tokens
  a program take 96 registers, four 62; four where matrix units take over beyond eight tokens.
* Block-sparse, matrix units: 32 tokens, not 64: each warp unpacks the weights for itself, and 64
  tokens put all warps side by side along them (410 instructions for 32 products, not 154 for 16).
* Activation-sparse: 512 columns a program; 2,560 x 6,912 weights are 70 programs.
* int8: more rows a thread with more tokens, where loads of activations would bound the loop: 0.31
  instructions a weight and token with four rows and eight tokens (106 registers), of 0.25 possible.
  Eight together only on Turing, where they stand in for matrix units.
* int8, matrix units: 64 tokens a tile on Ampere only; on Hopper and Blackwell Triton would emit
  warp-group or tensor-memory instructions, which the PTX executor cannot check.
"""

from __future__ import annotations

from agentforge_kernels.triton.configs import (
    ActivationSparseConfig,
    BlockSparseConfig,
    BlockSparseGemmConfig,
    Entry,
    Int8GemmConfig,
    Int8GemvConfig,
)
from agentforge_kernels.triton.devices import Family

TURING: tuple[Family, ...] = ("turing",)
NEWER: tuple[Family, ...] = ("ampere", "hopper", "blackwell", "rdna3")
WAVE32: tuple[Family, ...] = (*TURING, *NEWER)
# A wave of CDNA has 64 threads: half the warps for the same block.
CDNA: tuple[Family, ...] = ("cdna",)

SPARSE_TABLE: tuple[Entry, ...] = (
    Entry("block_sparse", TURING, BlockSparseConfig(4, 16, 32, tokens=8), columns=2048),
    Entry("block_sparse", TURING, BlockSparseConfig(2, 16, 16, tokens=8)),
    Entry("block_sparse", NEWER, BlockSparseConfig(4, 16, 32, tokens=4), columns=2048),
    Entry("block_sparse", NEWER, BlockSparseConfig(2, 16, 16, tokens=4)),
    Entry("block_sparse", CDNA, BlockSparseConfig(2, 16, 32, tokens=4), columns=2048),
    Entry("block_sparse", CDNA, BlockSparseConfig(1, 16, 16, tokens=4)),
    Entry("block_sparse_gemm", NEWER, BlockSparseGemmConfig(4, 32, 8, num_stages=3), tokens=32),
    Entry("block_sparse_gemm", NEWER, BlockSparseGemmConfig(4, 16, 8, num_stages=3)),
    Entry("block_sparse_gemm", CDNA, BlockSparseGemmConfig(4, 16, 8, num_stages=2)),
    Entry("activation_sparse", WAVE32, ActivationSparseConfig(2, 512, 32, 8)),
    Entry("activation_sparse", CDNA, ActivationSparseConfig(1, 512, 32, 8)),
    Entry("int8_gemv", TURING, Int8GemvConfig(4, 16, 8, 4, tokens=8), tokens=8),
    Entry("int8_gemv", WAVE32, Int8GemvConfig(4, 16, 8, 2, tokens=4), tokens=4),
    Entry("int8_gemv", WAVE32, Int8GemvConfig(4, 16, 8, 1, tokens=2)),
    Entry("int8_gemv", CDNA, Int8GemvConfig(2, 16, 8, 2, tokens=4), tokens=4),
    Entry("int8_gemv", CDNA, Int8GemvConfig(2, 16, 8, 1, tokens=2)),
    Entry("int8_gemm", ("ampere",), Int8GemmConfig(8, 64, 128, 64, num_stages=3), tokens=64),
    Entry("int8_gemm", NEWER, Int8GemmConfig(4, 32, 64, 64, num_stages=3), tokens=32),
    Entry("int8_gemm", NEWER, Int8GemmConfig(4, 16, 64, 64, num_stages=3)),
    Entry("int8_gemm", CDNA, Int8GemmConfig(4, 16, 64, 64, num_stages=2)),
)
