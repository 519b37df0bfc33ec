"""Weights made ready for a backend: once, before the first call, in memory order when wanted.

Here the form a matrix is computed in is chosen as well. Every form gives the same bits, so the
choice is one of speed, by the measured :mod:`agentforge_kernels.thresholds`: tiles that are zero
are counted, and how many activations will be zero is what the caller expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from agentforge_kernels import dispatch, layouts, native_call, thresholds
from agentforge_kernels.arena import place_consecutively
from agentforge_kernels.backend import Backend
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import ZERO_WEIGHTS, PackedTernary
from agentforge_kernels.layouts import LaidOut, dense_layout
from agentforge_kernels.sparse import to_block_sparse, to_columns

_EIGHT_ZERO_BYTES = int.from_bytes(bytes([ZERO_WEIGHTS] * 8), "little")
"""Thirty-two weights 0; a tile is 32 such words, in whatever order a panel keeps them."""
_TILE_WORDS = 32


@dataclass(frozen=True, slots=True, eq=False)
class PreparedTernary:
    """A ternary matrix with its layout for one backend; made by :func:`prepare`, never saved.

    Attributes:
        packed: The stored form (compiled graphs and gradients read it).
        backend: Who computes.
        laid_out: The weight in that backend's order.
        form: In which form, and why, in a sentence.
        call: The short way into the native extension, where there is one.
    """

    packed: PackedTernary
    backend: Backend
    laid_out: LaidOut
    form: str
    call: native_call.Call | None = field(default=None, repr=False)


def prepare(packed: PackedTernary, *, zero_activations: float = 0.0) -> PreparedTernary:
    """Lay a matrix out for the backend of its device, in the form that is fastest.

    An operation given a :class:`PackedTernary` lays it out dense at its first call; here the time
    is spent, and an unavailable backend reported, when the caller chooses, and calls are shorter.

    Args:
        packed: The matrix.
        zero_activations: Share of its input that is expected to be exactly zero, 0 to 1, as behind
            a squared ReLU. A wrong guess costs time, not correctness.

    Raises:
        KernelInputError: A share outside 0 to 1; ``AGENTFORGE_KERNELS`` has a value that means
            nothing.
        BackendUnavailableError: The forced backend cannot run here.
    """
    if not 0.0 <= zero_activations <= 1.0:
        raise KernelInputError("zero_activations", zero_activations, "0 to 1")
    backend = dispatch.backend_for(packed.codes.device)
    laid_out = dense_layout(packed.codes, packed.columns, backend)
    if laid_out.layout != "panels":
        form = f"dense: sparse forms were not measured for the backend {backend.name}"
        return PreparedTernary(packed, backend, laid_out, form)
    # For real, even while a mode such as FakeTensorMode watches.
    with _disable_current_modes():
        # A copy, since its address is kept: nobody else can resize it or let it go.
        scale = packed.scale.detach().clone(memory_format=torch.contiguous_format)
        form, sparse = _sparse_products(packed, backend, laid_out.tensor, scale, zero_activations)
        dense = native_call.dense_product(laid_out.tensor, scale, packed.rows, packed.columns)
    call = native_call.bind(packed.rows, packed.columns, dense, sparse)
    return PreparedTernary(packed, backend, laid_out, form, call)


def prepare_in_order(
    matrices: Sequence[PackedTernary], zero_activations: Sequence[float] | None = None
) -> list[PreparedTernary]:
    """Lay matrices out one after the other in one block of memory, in the order of execution.

    A matrix of 512 x 512 is read before the processor's prefetcher has understood the pattern; what
    is prefetched beyond its end is then the next matrix (:mod:`agentforge_kernels.arena`). Matrices
    that are not on the CPU are prepared where they are.

    Args:
        matrices: In the order of execution.
        zero_activations: As for :func:`prepare`, one for each matrix.

    Raises:
        KernelInputError: As :func:`prepare`.
        BackendUnavailableError: As :func:`prepare`.
    """
    shares = [0.0] * len(matrices) if zero_activations is None else zero_activations
    movable: list[tuple[PackedTernary, Backend, LaidOut]] = []
    for packed in matrices:
        backend = dispatch.backend_for(packed.codes.device)
        laid_out = dense_layout(packed.codes, packed.columns, backend)
        if laid_out.layout == "panels":
            movable.append((packed, backend, laid_out))
    placed = place_consecutively([laid_out.tensor for _, _, laid_out in movable])
    for (packed, backend, laid_out), tensor in zip(movable, placed, strict=True):
        layouts.keep(packed.codes, packed.columns, backend, LaidOut(tensor, laid_out.layout))
    return [
        prepare(packed, zero_activations=share)
        for packed, share in zip(matrices, shares, strict=True)
    ]


def _sparse_products(
    packed: PackedTernary, backend: Backend, panels: Tensor, scale: Tensor, zero_activations: float
) -> tuple[str, list[native_call.SparseProduct]]:
    """The forms a matrix is computed in, in words, and the products of the sparse ones."""
    from agentforge_kernels.native_backend import NativeBackend

    assert isinstance(backend, NativeBackend)
    rows, columns, size = packed.rows, packed.columns, packed.codes.nbytes
    words = panels.view(torch.int64).view(-1, _TILE_WORDS)
    zero_tiles = float((words == _EIGHT_ZERO_BYTES).all(dim=1).double().mean())
    zeros = f"{zero_tiles:.0%} of the tiles and {zero_activations:.0%} of the activations are zero"
    left_out = thresholds.share_of_columns_left_out(zero_activations, rows)
    lost = thresholds.share_lost_to_a_call(size)
    columns_pay = thresholds.most_tokens(thresholds.ACTIVATION_SPARSE, size, left_out - lost)
    tiles_pay = thresholds.most_tokens(thresholds.BLOCK_SPARSE, size, zero_tiles - lost)
    forms = [(left_out, columns_pay, "columns"), (zero_tiles, tiles_pay, "tiles")]
    products: list[native_call.SparseProduct] = []
    names: list[str] = []
    for _, most_tokens, form in sorted(forms, reverse=True):  # the one that leaves out more first
        if most_tokens <= (products[-1].most_tokens if products else 0):
            continue
        if form == "columns":
            blocks, _ = backend.lay_out_columns(to_columns(packed).codes, rows)
            product = native_call.activation_sparse_product(blocks, scale, rows, columns)
        else:
            sparse = to_block_sparse(packed)
            tiles, _ = backend.lay_out_tiles(sparse.tiles)
            product = native_call.block_sparse_product(
                tiles, sparse.index, sparse.start, scale, rows, columns
            )
        products.append(native_call.SparseProduct(product, most_tokens))
        name = "activation-sparse" if form == "columns" else "block-sparse"
        names.append(f"{name} up to {most_tokens} token{'s' if most_tokens > 1 else ''}")
    if not products:
        return f"dense: {zeros}, too few for a sparse form to pay at {size:,} bytes", []
    return f"{', '.join(names)}, dense beyond: {zeros}, enough to pay at {size:,} bytes", products
