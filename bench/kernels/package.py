"""What the benchmark needs of the package: imported once the extension to measure is chosen."""

from __future__ import annotations

from agentforge_kernels.arena import place_consecutively
from agentforge_kernels.format import pack
from agentforge_kernels.native_backend import NativeBackend
from agentforge_kernels.ops import ternary_linear
from agentforge_kernels.prepared import prepare
from agentforge_kernels.sparse import to_block_sparse, to_columns

__all__ = [
    "NativeBackend",
    "pack",
    "place_consecutively",
    "prepare",
    "ternary_linear",
    "to_block_sparse",
    "to_columns",
]
