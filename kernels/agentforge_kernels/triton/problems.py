"""One call of an operation on drawn tensors: what is tuned, benchmarked and tested on a device.

A problem runs through the backend, as a user's call does, so the kernel that answers is the one its
number of tokens leads to. Without a GPU it runs under ``verify.interpreter.interpreted()``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agentforge_kernels.backend import Activations, Backend
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import PackedTernary, pack, padded
from agentforge_kernels.reference_backend import ReferenceBackend
from agentforge_kernels.sparse import tile_grid, to_block_sparse, to_columns
from agentforge_kernels.triton import block_sparse, int8
from agentforge_kernels.triton.backend import TritonBackend
from agentforge_kernels.triton.configs import CONFIG_TYPES
from agentforge_kernels.triton.devices import Family, int8_matrix_units
from agentforge_kernels.triton.fused import MOST_FUSED_COLUMNS
from agentforge_kernels.triton.launch import SMALL_BATCH_TOKENS

ZERO_SHARE = {"block_sparse": 0.75, "block_sparse_gemm": 0.75, "activation_sparse": 0.9}
"""Zero tiles, zero activations, where the operation is one that skips them."""
EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Problem:
    """A call and what it costs at least.

    Attributes:
        operation: Key of ``configs.CONFIG_TYPES``.
        rows: Rows of the matrix; 1 for ``quantize``, which has none.
        columns: Columns.
        tokens: Tokens.
        zero_share: Share of zero tiles or activations, 0 to 1.
        run: Makes the call on the device; returns its tensors, new ones.
        expect: The same by the reference on the CPU.
        bytes: Device memory that has to be read and written.
        products: int8 multiplications.
    """

    operation: str
    rows: int
    columns: int
    tokens: int
    zero_share: float
    run: Callable[[], tuple[Tensor, ...]]
    expect: Callable[[], tuple[Tensor, ...]]
    bytes: int
    products: int


def tokens_of(operation: str, family: Family) -> tuple[int, int | None]:
    """Fewest and most tokens with which an operation is used; most ``None``: any number.

    Args:
        operation: Key of ``configs.CONFIG_TYPES``.
        family: Of the GPU.

    Returns:
        ``(1, 0)`` where it never is: matrix units on Turing.
    """
    small = SMALL_BATCH_TOKENS[family]
    units = int8_matrix_units(family)
    tiles, head = block_sparse.MOST_GEMV_TOKENS, int8.MOST_GEMV_TOKENS
    return {
        "gemv": (1, 1),
        "small_batch": (2, small),
        "gemm": (small + 1, None),
        "quantize": (1, None),
        "fused": (1, 1),
        "block_sparse": (1, tiles if units else None),
        "block_sparse_gemm": (tiles + 1, None) if units else (1, 0),
        "activation_sparse": (1, None),
        "int8_gemv": (1, head if units else None),
        "int8_gemm": (head + 1, None) if units else (1, 0),
    }[operation]


def make_problem(
    operation: str,
    rows: int,
    columns: int,
    tokens: int,
    device: torch.device,
    family: Family,
    *,
    norm: bool = False,
    residual: bool = False,
    zero_share: float | None = None,
    seed: int = 0,
) -> Problem:
    """Draw the tensors of a call.

    Args:
        operation: Key of ``configs.CONFIG_TYPES``.
        rows: Rows of the matrix.
        columns: Columns.
        tokens: Tokens.
        device: Where it runs; the CPU for the interpreter.
        family: Of the GPU.
        norm: Normalise before quantising (``quantize`` and ``fused``). The result may then differ
            from the reference by one step of ``q``.
        residual: Add a residual (not ``quantize``).
        zero_share: Instead of :data:`ZERO_SHARE`.
        seed: Of all numbers.

    Raises:
        KernelInputError: An unknown operation, or tokens or columns with which another kernel
            would answer.
    """
    if operation not in CONFIG_TYPES:
        raise KernelInputError("operation", operation, ", ".join(CONFIG_TYPES))
    fewest, most = tokens_of(operation, family)
    if tokens < fewest or (most is not None and tokens > most):
        allowed = "none" if most == 0 else f"{fewest} to {'any number' if most is None else most}"
        raise KernelInputError("tokens", tokens, f"{allowed} for {operation} on {family}")
    if operation == "fused" and columns > MOST_FUSED_COLUMNS:
        raise KernelInputError("columns", columns, f"up to {MOST_FUSED_COLUMNS} for fused")
    zeros = ZERO_SHARE.get(operation, 0.0) if zero_share is None else zero_share
    draw = _Draw(rows, columns, tokens, device, zeros, seed, norm, residual)
    backend = TritonBackend(family)
    if operation == "quantize":
        run, expect, size = _quantize(draw, backend)
    elif operation == "fused":
        run, expect, size = _fused(draw, backend)
    elif operation.startswith("block_sparse"):
        run, expect, size = _block_sparse(draw, backend)
    elif operation == "activation_sparse":
        run, expect, size = _activation_sparse(draw, backend)
    elif operation.startswith("int8"):
        run, expect, size = _int8(draw, backend)
    else:
        run, expect, size = _dense(draw, backend)
    return Problem(
        operation,
        1 if operation == "quantize" else rows,
        columns,
        tokens,
        zeros,
        run,
        expect,
        *size,
    )


_Run = Callable[[], tuple[Tensor, ...]]
_Made = tuple[_Run, _Run, tuple[int, int]]
_REFERENCE = ReferenceBackend()


class _Draw:
    """Numbers on the CPU, copies of them on the device."""

    def __init__(
        self,
        rows: int,
        columns: int,
        tokens: int,
        device: torch.device,
        zeros: float,
        seed: int,
        norm: bool,
        residual: bool,
    ) -> None:
        self.rows, self.columns, self.tokens, self.zeros = rows, columns, tokens, zeros
        self.device = device
        self._generator = torch.Generator().manual_seed(seed)
        self.norm = torch.rand(columns, generator=self._generator) + 0.5 if norm else None
        self.residual = torch.randn(tokens, rows, generator=self._generator) if residual else None
        # Bytes of a call beside weights and activations: scales, outputs, residual.
        self.rest = 4 * rows + 4 * tokens * rows * (2 if residual else 1)
        self.activation_bytes = tokens * (padded(columns) + 8)

    def x(self, zeros: float = 0.0) -> Tensor:
        x = torch.randn(self.tokens, self.columns, generator=self._generator)
        absent = torch.rand(x.shape, generator=self._generator) < zeros
        return x.masked_fill_(absent, 0.0)

    def activations(self, zeros: float = 0.0) -> Activations:
        return _REFERENCE.quantize_activations(self.x(zeros))

    def row_scale(self) -> Tensor:
        return torch.rand(self.rows, generator=self._generator) + 0.01

    def ternary(self, zero_tiles: float = 0.0) -> PackedTernary:
        size = (self.rows, self.columns)
        trits = torch.randint(-1, 2, size, generator=self._generator, dtype=torch.int8)
        if zero_tiles:
            kept = torch.rand(tile_grid(*size), generator=self._generator) >= zero_tiles
            trits *= kept.repeat_interleave(64, 0).repeat_interleave(16, 1)[: size[0], : size[1]]
        return pack(trits, self.row_scale())

    def int8(self) -> Tensor:
        size = (self.rows, self.columns)
        return torch.randint(-128, 128, size, generator=self._generator, dtype=torch.int8)

    def there(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def maybe(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(self.device)

    def activations_there(self, activations: Activations) -> Activations:
        return Activations(*(part.to(self.device) for part in activations))


def _dense(draw: _Draw, backend: Backend) -> _Made:
    here, packed = draw.activations(), draw.ternary()
    activations, residual = draw.activations_there(here), draw.maybe(draw.residual)
    codes, scale = draw.there(packed.codes), draw.there(packed.scale)
    size = (draw.rows, draw.columns)
    return (
        lambda: (backend.ternary_linear(activations, codes, "rows", scale, residual, *size),),
        lambda: (
            _REFERENCE.ternary_linear(
                here, packed.codes, "rows", packed.scale, draw.residual, *size
            ),
        ),
        (
            packed.codes.numel() + draw.activation_bytes + draw.rest,
            draw.tokens * draw.rows * draw.columns,
        ),
    )


def _quantize(draw: _Draw, backend: Backend) -> _Made:
    here = draw.x()
    x, norm = draw.there(here), draw.maybe(draw.norm)
    return (
        lambda: tuple(backend.quantize_activations(x, norm, EPSILON)),
        lambda: tuple(_REFERENCE.quantize_activations(here, draw.norm, EPSILON)),
        (4 * here.numel() + draw.activation_bytes, 0),
    )


def _fused(draw: _Draw, backend: Backend) -> _Made:
    here, packed = draw.x(), draw.ternary()
    x, norm, residual = draw.there(here), draw.maybe(draw.norm), draw.maybe(draw.residual)
    codes, scale = draw.there(packed.codes), draw.there(packed.scale)
    size = (draw.rows, draw.columns)
    return (
        lambda: (
            backend.ternary_linear_fused(x, norm, EPSILON, codes, "rows", scale, residual, *size),
        ),
        lambda: (
            _REFERENCE.ternary_linear_fused(
                here, draw.norm, EPSILON, packed.codes, "rows", packed.scale, draw.residual, *size
            ),
        ),
        (packed.codes.numel() + 4 * here.numel() + draw.rest, draw.rows * draw.columns),
    )


def _block_sparse(draw: _Draw, backend: Backend) -> _Made:
    here, sparse = draw.activations(), to_block_sparse(draw.ternary(draw.zeros))
    activations, residual = draw.activations_there(here), draw.maybe(draw.residual)
    stored = (sparse.tiles, sparse.index, sparse.start, sparse.scale)
    tiles, index, start, scale = (draw.there(tensor) for tensor in stored)
    size = (draw.rows, draw.columns)
    return (
        lambda: (
            backend.ternary_linear_block_sparse(
                activations, tiles, index, start, scale, residual, *size
            ),
        ),
        lambda: (_REFERENCE.ternary_linear_block_sparse(here, *stored, draw.residual, *size),),
        (
            260 * sparse.count + 4 * len(sparse.start) + draw.activation_bytes + draw.rest,
            draw.tokens * sparse.count * 1024,
        ),
    )


def _activation_sparse(draw: _Draw, backend: Backend) -> _Made:
    here, form = draw.activations(draw.zeros), to_columns(draw.ternary())
    activations, residual = draw.activations_there(here), draw.maybe(draw.residual)
    codes, scale = draw.there(form.codes), draw.there(form.scale)
    size = (draw.rows, draw.columns)
    # Each token reads its own columns; those that several need may come from a cache, once.
    active = int((here.q != 0).sum())
    read = int((here.q != 0).any(dim=0).sum())
    return (
        lambda: (
            backend.ternary_linear_activation_sparse(
                activations, codes, "columns", scale, residual, *size
            ),
        ),
        lambda: (
            _REFERENCE.ternary_linear_activation_sparse(
                here, form.codes, "columns", form.scale, draw.residual, *size
            ),
        ),
        (read * form.codes.shape[1] + draw.activation_bytes + draw.rest, active * draw.rows),
    )


def _int8(draw: _Draw, backend: Backend) -> _Made:
    here, weight, row_scale = draw.activations(), draw.int8(), draw.row_scale()
    activations, residual = draw.activations_there(here), draw.maybe(draw.residual)
    laid_out, layout = backend.lay_out_int8(draw.there(weight))
    scale = draw.there(row_scale)
    size = (draw.rows, draw.columns)
    return (
        lambda: (backend.int8_linear(activations, laid_out, layout, scale, residual, *size),),
        lambda: (_REFERENCE.int8_linear(here, weight, "int8", row_scale, draw.residual, *size),),
        (
            weight.numel() + draw.activation_bytes + draw.rest,
            draw.tokens * draw.rows * draw.columns,
        ),
    )
