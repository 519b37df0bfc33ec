"""The checked-in configurations; the first line that holds is taken, so large shapes come first.

Chosen by what can be counted without a GPU (registers, occupancy, load width, instructions a
weight; see ``agentforge_kernels.verify``), not by timing: ``python -m agentforge_kernels.tune``
times.
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

NVIDIA: tuple[Family, ...] = ("turing", "ampere", "hopper", "blackwell")
NOT_CDNA: tuple[Family, ...] = (*NVIDIA, "rdna3")
TENSOR: tuple[Family, ...] = ("ampere", "hopper", "blackwell", "rdna3")
# A wave of CDNA has 64 threads: half the warps for the same block.
CDNA: tuple[Family, ...] = ("cdna",)

TABLE: tuple[Entry, ...] = (
    Entry("gemv", NOT_CDNA, GemvConfig(4, 4, 128, rows_per_thread=4), rows=2048, columns=2048),
    Entry("gemv", NOT_CDNA, GemvConfig(4, 4, 128), columns=2048),
    Entry("gemv", NOT_CDNA, GemvConfig(2, 8, 32)),
    Entry("gemv", CDNA, GemvConfig(2, 4, 128, rows_per_thread=4), rows=2048, columns=2048),
    Entry("gemv", CDNA, GemvConfig(2, 4, 128), columns=2048),
    Entry("gemv", CDNA, GemvConfig(1, 8, 32)),
    Entry("small_batch", NOT_CDNA, SmallBatchConfig(4, 4, 128), columns=2048),
    Entry("small_batch", NOT_CDNA, SmallBatchConfig(2, 8, 32)),
    Entry("small_batch", CDNA, SmallBatchConfig(2, 4, 128), columns=2048),
    Entry("small_batch", CDNA, SmallBatchConfig(1, 8, 32)),
    Entry("gemm", ("turing",), GemmConfig(4, 32, 32, 32, num_stages=1)),
    Entry("gemm", TENSOR, GemmConfig(4, 64, 64, 32, num_stages=3), tokens=64),
    Entry("gemm", TENSOR, GemmConfig(4, 16, 64, 32, num_stages=3)),
    Entry("gemm", CDNA, GemmConfig(4, 32, 64, 32, num_stages=2)),
    Entry("quantize", NOT_CDNA, QuantizeConfig(4, 1024)),
    Entry("quantize", CDNA, QuantizeConfig(2, 1024)),
    Entry("fused", NOT_CDNA, FusedConfig(4, 16)),
    Entry("fused", CDNA, FusedConfig(2, 16)),
    *SPARSE_TABLE,
)
