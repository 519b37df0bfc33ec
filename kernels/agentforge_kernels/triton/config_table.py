"""The checked-in configurations; the first line that holds is taken, so large shapes come first.

Chosen by what can be counted without a GPU (registers, occupancy, load width, instructions a
weight; see ``agentforge_kernels.verify``), not by timing: ``python -m agentforge_kernels.tune``
times. What decided:

* Matrix times vector: 32 words a step are whole lines of 128 bytes and the least waste at a row's
  end; with more memory bandwidth than threads to ask for it (tensor-core GPUs, long rows), 128
  words put a warp on one row and four times the loads in flight. Two rows a thread save a tenth of
  the instructions and need rows for all multiprocessors.
* Split columns: only where rows are too few for 100 multiprocessors and long.
* Many vectors: 64 x 128 is 32 matrix instructions in 113 (compute capability 8.0). Hopper and
  Blackwell stay below 64 tokens a tile: from there Triton emits warp-group instructions, which the
  PTX executor cannot check. Few tokens are bound by the codes' bytes: more stages, smaller tiles.
* Turing in float32: 64 x 128 is 1,024 multiply-adds of 1,232 instructions in 128 registers, with 96
  loads from shared memory, whose bandwidth would be the limit of smaller tiles.
"""

from __future__ import annotations

from agentforge_kernels.triton.configs import (
    Entry,
    FusedConfig,
    GemmConfig,
    GemvConfig,
    QuantizeConfig,
    SmallBatchConfig,
)
from agentforge_kernels.triton.devices import Family
from agentforge_kernels.triton.sparse_configs import SPARSE_TABLE

TURING: tuple[Family, ...] = ("turing",)
HOPPER_AND_LATER: tuple[Family, ...] = ("hopper", "blackwell")
NEWER: tuple[Family, ...] = ("ampere", "hopper", "blackwell", "rdna3")
WAVE32: tuple[Family, ...] = (*TURING, *NEWER)
# A wave of CDNA has 64 threads: half the warps for the same block.
CDNA: tuple[Family, ...] = ("cdna",)

TABLE: tuple[Entry, ...] = (
    Entry("gemv", TURING, GemvConfig(2, 8, 32, rows_per_thread=2), rows=8192, columns=1024),
    Entry("gemv", NEWER, GemvConfig(4, 4, 128, rows_per_thread=2), rows=8192, columns=2048),
    Entry("gemv", NEWER, GemvConfig(4, 4, 128), rows=512, columns=2048),
    Entry("gemv", NEWER, GemvConfig(4, 4, 128, split=4), columns=8192),
    Entry("gemv", NEWER, GemvConfig(4, 4, 128), columns=2048),
    Entry("gemv", WAVE32, GemvConfig(2, 8, 32)),
    Entry("gemv", CDNA, GemvConfig(2, 4, 128), rows=512, columns=2048),
    Entry("gemv", CDNA, GemvConfig(2, 4, 128, split=4), columns=8192),
    Entry("gemv", CDNA, GemvConfig(1, 8, 32)),
    Entry("small_batch", NEWER, SmallBatchConfig(4, 4, 128), columns=2048),
    Entry("small_batch", WAVE32, SmallBatchConfig(2, 8, 32)),
    Entry("small_batch", CDNA, SmallBatchConfig(1, 8, 32)),
    Entry("gemm", TURING, GemmConfig(8, 64, 128, num_stages=1, block_columns=32), tokens=64),
    Entry("gemm", TURING, GemmConfig(4, 32, 64, num_stages=1, block_columns=32)),
    Entry("gemm", ("ampere",), GemmConfig(8, 64, 128, num_stages=3), rows=2048, tokens=64),
    Entry("gemm", HOPPER_AND_LATER, GemmConfig(4, 32, 128, num_stages=3), tokens=32),
    Entry("gemm", ("ampere", "rdna3"), GemmConfig(4, 32, 64, num_stages=3), tokens=32),
    Entry("gemm", NEWER, GemmConfig(4, 16, 32, num_stages=5)),
    Entry("gemm", CDNA, GemmConfig(4, 32, 64, num_stages=2)),
    Entry("quantize", WAVE32, QuantizeConfig(4, 1024)),
    Entry("quantize", CDNA, QuantizeConfig(2, 1024)),
    Entry("fused", WAVE32, FusedConfig(4, 8), columns=2048),
    Entry("fused", WAVE32, FusedConfig(4, 16)),
    Entry("fused", CDNA, FusedConfig(2, 8), columns=2048),
    Entry("fused", CDNA, FusedConfig(2, 16)),
    *SPARSE_TABLE,
)
