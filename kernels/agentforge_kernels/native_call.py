"""The shortest way from a tensor into the extension, for a matrix used again and again.

A 512 x 512 matvec is 1 us, and a call that checks its arguments one by one is several. What cannot
change (addresses, sizes, scale) is bound once; what can is looked at in one condition, and when
anything is unusual the call declines and the ordinary way, slower and with words, takes over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.native import extension
from agentforge_kernels.native.threads import shares_openmp

Call = Callable[[object, Tensor | None, float, Tensor | None, Tensor | None], Tensor | None]
"""``(x, norm_weight, epsilon, residual, bias)`` to float32 ``[..., rows]``; ``None``: declined."""
Product = Callable[[int, int, int, float, int, int, int], int]
"""Addresses and numbers ``(x, element type, norm weight, epsilon, tokens, residual, output)``:
fills the output and answers the first token that holds NaN or infinity, or -1."""

ELEMENT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""The extension's numbers for the dtypes of activations."""
_CPU = torch.device("cpu")


class SparseProduct(NamedTuple):
    """A product over a sparse form, which pays for calls of up to ``most_tokens`` tokens."""

    product: Product
    most_tokens: int


def bind(rows: int, columns: int, dense: Product, sparse: Sequence[SparseProduct] = ()) -> Call:
    """A call that quantises and multiplies by one matrix.

    Args:
        rows: Of the matrix.
        columns: Of the matrix.
        dense: Its product, :func:`dense_product`.
        sparse: Faster products for few tokens, the one for the fewest first.

    Returns:
        The call, for use when nobody watches (:func:`is_watched`). It declines (``None``) when a
        gradient is wanted and for any argument that is not contiguous, on the CPU and of matching
        shape. It raises :class:`KernelInputError` for NaN and infinity in ``x``. ``bias`` is
        float32 ``[rows]``, added last.
    """
    element_type = ELEMENT_TYPES.get
    empty, float32, strided = torch.empty, torch.float32, torch.strided
    most_tokens = sparse[-1].most_tokens if sparse else 0

    def call(
        x: object,
        norm_weight: Tensor | None,
        epsilon: float,
        residual: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor | None:
        if type(x) is not Tensor or not x.is_cpu or x.layout is not strided or x.is_neg():
            return None
        kind = element_type(x.dtype)
        shape = x.shape
        if kind is None or not shape or shape[-1] != columns or not x.is_contiguous():
            return None
        tokens = x.numel() // columns
        if tokens == 0 or (x.requires_grad and torch.is_grad_enabled()):
            return None
        norm_address = added_address = 0
        if norm_weight is not None:
            if (
                not _fits(norm_weight, columns)
                or norm_weight.ndim != 1
                or not 0.0 <= epsilon < 1e30
            ):
                return None
            norm_address = norm_weight.data_ptr()
        if residual is not None:
            if not _fits(residual, tokens * rows) or residual.shape[:-1] != shape[:-1]:
                return None
            added_address = residual.data_ptr()
        if bias is not None:
            if not _fits(bias, rows):
                return None
            if tokens == 1 and residual is None:
                added_address, bias = bias.data_ptr(), None
        output = empty((*shape[:-1], rows), dtype=float32, device=_CPU)
        product = dense
        if tokens <= most_tokens:
            for few, most in sparse:
                if tokens <= most:
                    product = few
                    break
        bad = product(
            x.data_ptr(), kind, norm_address, epsilon, tokens, added_address, output.data_ptr()
        )
        if bad >= 0:
            raise KernelInputError("x", f"NaN or infinity in token {bad}", "finite values")
        assert bad == -1, "a weight that was checked has changed"
        return output if bias is None else output.add_(bias)

    return call


def dense_product(panels: Tensor, scale: Tensor, rows: int, columns: int) -> Product:
    """The product with a matrix in ``panels``, quantised on the way.

    Args:
        panels: Layout of the native backend; kept alive by the product.
        scale: float32 ``[1]`` or ``[rows]``; kept alive too, and not to be resized.
        rows: Of the matrix.
        columns: Of the matrix.
    """
    linear, threads = _extension().dense_linear_fused, _threads()
    panels_address, scale_address, per_row = panels.data_ptr(), scale.data_ptr(), scale.numel() > 1

    def product(
        x: int, kind: int, norm: int, epsilon: float, tokens: int, added: int, output: int
    ) -> int:
        bad: int = linear(
            x, kind, norm, epsilon, tokens, panels_address, scale_address, per_row, added, output,
            rows, columns, threads(),
        )  # fmt: skip
        return bad

    return _kept(product, panels, scale)


def block_sparse_product(
    tiles: Tensor, index: Tensor, start: Tensor, scale: Tensor, rows: int, columns: int
) -> Product:
    """The product over stored tiles.

    Args:
        tiles: uint8 ``[count, 256]`` in the native order; kept alive like all tensors here.
        index: int32 ``[count]``.
        start: int32 ``[row blocks + 1]``.
        scale: float32 ``[1]`` or ``[rows]``.
        rows: Of the matrix.
        columns: Of the matrix.
    """
    linear, threads = _extension().block_sparse_linear_fused, _threads()
    addresses = tiles.data_ptr(), index.data_ptr(), start.data_ptr(), tiles.shape[0]
    scale_address, per_row = scale.data_ptr(), scale.numel() > 1

    def product(
        x: int, kind: int, norm: int, epsilon: float, tokens: int, added: int, output: int
    ) -> int:
        bad: int = linear(
            x, kind, norm, epsilon, tokens, *addresses, scale_address, per_row, added, output,
            rows, columns, threads(),
        )  # fmt: skip
        return bad

    return _kept(product, tiles, index, start, scale)


def activation_sparse_product(blocks: Tensor, scale: Tensor, rows: int, columns: int) -> Product:
    """The product over columns whose activation is not zero.

    Args:
        blocks: Layout ``column_blocks`` of the native backend; kept alive.
        scale: float32 ``[1]`` or ``[rows]``; kept alive.
        rows: Of the matrix.
        columns: Of the matrix.
    """
    linear, threads = _extension().activation_sparse_linear_fused, _threads()
    blocks_address, scale_address, per_row = blocks.data_ptr(), scale.data_ptr(), scale.numel() > 1

    def product(
        x: int, kind: int, norm: int, epsilon: float, tokens: int, added: int, output: int
    ) -> int:
        bad: int = linear(
            x, kind, norm, epsilon, tokens, blocks_address, scale_address, per_row, added, output,
            rows, columns, threads(),
        )  # fmt: skip
        return bad

    return _kept(product, blocks, scale)


def is_watched() -> bool:
    """Whether a compiler, dispatch mode, function transform or tracer has to see each operation."""
    return bool(
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state()
    )


def _extension() -> Any:
    assert extension is not None
    return extension


def _threads() -> Callable[[], int]:
    return torch.get_num_threads if shares_openmp() else lambda: 1


def _kept(product: Product, *tensors: Tensor) -> Product:
    """Ties the tensors to the product that holds their addresses."""
    product.tensors = tensors  # type: ignore[attr-defined]
    return product


def _fits(tensor: Tensor, values: int) -> bool:
    return (
        type(tensor) in (Tensor, Parameter)
        and tensor.dtype == torch.float32
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and tensor.numel() == values
        and not (tensor.requires_grad and torch.is_grad_enabled())
    )
