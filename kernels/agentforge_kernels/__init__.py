"""Ternary kernels for 1.58-bit models; usable without the rest of Agent Forge.

A weight is quantised and packed once, then multiplied by activations that are quantised to int8 on
the way; every backend gives the same bits:

    trits, scale = quantize_weights(linear.weight)
    output = ternary_linear(x, pack(trits, scale))

or, in the place of a ``torch.nn.Linear``, ``TernaryLinear.from_linear(linear)``. Which backend
computes is chosen by device, or by ``AGENTFORGE_KERNELS=auto|triton|native|reference``;
:func:`explain` says which and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentforge_kernels.backend import Activations
from agentforge_kernels.dispatch import explain
from agentforge_kernels.errors import BackendUnavailableError, KernelInputError
from agentforge_kernels.format import PackedTernary, pack, quantize_weights, unpack
from agentforge_kernels.int8 import Int8Weight, quantize_int8
from agentforge_kernels.linear import TernaryLinear, prepare_model
from agentforge_kernels.ops import (
    int8_linear,
    quantize_activations,
    ternary_linear,
    ternary_linear_activation_sparse,
    ternary_linear_block_sparse,
)
from agentforge_kernels.prepared import PreparedTernary, prepare, prepare_in_order
from agentforge_kernels.pruning import kept_tiles, weights_of_tiles
from agentforge_kernels.sparse import (
    BlockSparseTernary,
    ColumnTernary,
    from_block_sparse,
    from_columns,
    to_block_sparse,
    to_columns,
    zero_tile_share,
)
from agentforge_kernels.training import ste_ternary_linear, ste_ternary_linears

if TYPE_CHECKING:
    from agentforge_kernels.files import load_tensors, save_tensors

__all__ = [
    "Activations",
    "BackendUnavailableError",
    "BlockSparseTernary",
    "ColumnTernary",
    "Int8Weight",
    "KernelInputError",
    "PackedTernary",
    "PreparedTernary",
    "TernaryLinear",
    "explain",
    "from_block_sparse",
    "from_columns",
    "int8_linear",
    "kept_tiles",
    "load_tensors",
    "pack",
    "prepare",
    "prepare_in_order",
    "prepare_model",
    "quantize_activations",
    "quantize_int8",
    "quantize_weights",
    "save_tensors",
    "ste_ternary_linear",
    "ste_ternary_linears",
    "ternary_linear",
    "ternary_linear_activation_sparse",
    "ternary_linear_block_sparse",
    "to_block_sparse",
    "to_columns",
    "unpack",
    "weights_of_tiles",
    "zero_tile_share",
]


def __getattr__(name: str) -> Any:
    """Files only when they are wanted: they bring the safetensors package with them."""
    if name in ("load_tensors", "save_tensors"):
        from agentforge_kernels import files

        return getattr(files, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
