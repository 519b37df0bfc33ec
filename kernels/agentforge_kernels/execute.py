"""One operation on real tensors, run by the backend of their device.

Tensors are ``[tokens, columns]`` and weights stored ones; :mod:`agentforge_kernels.ops` has checked
them. :mod:`agentforge_kernels.custom_ops` makes torch operators of these functions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agentforge_kernels import dispatch
from agentforge_kernels.backend import Activations
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import padded
from agentforge_kernels.layouts import column_layout, dense_layout, int8_layout


def quantize_activations(
    x: Tensor, norm_weight: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``q``, scale and sum of floating tokens ``[tokens, columns]``."""
    if x.shape[0] == 0:
        return empty_activations(x)
    q, scale, total = dispatch.backend_for(x.device).quantize_activations(x, norm_weight, epsilon)
    refuse_bad_tokens(scale, "x")
    return q, scale, total


def ternary_linear(
    x: Tensor,
    norm_weight: Tensor | None,
    epsilon: float,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    columns: int,
) -> Tensor:
    """Floating tokens times a dense matrix; NaN is looked for before multiplying."""
    if x.shape[0] == 0:
        return empty_output(x, codes.shape[0])
    backend = dispatch.backend_for(x.device)
    activations = backend.quantize_activations(x, norm_weight, epsilon)
    refuse_bad_tokens(activations.scale, "x")
    laid_out = dense_layout(codes, columns, backend)
    return backend.ternary_linear(
        activations, *laid_out, weight_scale, residual, codes.shape[0], columns
    )


def ternary_linear_on_gpu(
    x: Tensor,
    norm_weight: Tensor | None,
    epsilon: float,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    columns: int,
) -> Tensor:
    """As on the CPU, in one fused call; NaN is looked for only when asked to (it has to wait)."""
    rows = codes.shape[0]
    if x.shape[0] == 0:
        return empty_output(x, rows)
    backend = dispatch.backend_for(x.device)
    if dispatch.checks_finite(x.device):
        refuse_bad_tokens(backend.quantize_activations(x, norm_weight, epsilon).scale, "x")
    laid_out = dense_layout(codes, columns, backend)
    return backend.ternary_linear_fused(
        x, norm_weight, epsilon, *laid_out, weight_scale, residual, rows, columns
    )


def ternary_linear_quantized(
    q: Tensor,
    scale: Tensor,
    total: Tensor,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    columns: int,
) -> Tensor:
    """Quantised tokens times a dense matrix."""
    if q.shape[0] == 0:
        return empty_output(q, codes.shape[0])
    refuse_bad_tokens(scale, "x.scale")
    backend = dispatch.backend_for(q.device)
    laid_out = dense_layout(codes, columns, backend)
    activations = Activations(q, scale, total)
    return backend.ternary_linear(
        activations, *laid_out, weight_scale, residual, codes.shape[0], columns
    )


def ternary_linear_block_sparse(
    q: Tensor,
    scale: Tensor,
    total: Tensor,
    tiles: Tensor,
    index: Tensor,
    start: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    rows: int,
    columns: int,
) -> Tensor:
    """Quantised tokens times the stored tiles."""
    if q.shape[0] == 0:
        return empty_output(q, rows)
    refuse_bad_tokens(scale, "x.scale")
    activations = Activations(q, scale, total)
    return dispatch.backend_for(q.device).ternary_linear_block_sparse(
        activations, tiles, index, start, weight_scale, residual, rows, columns
    )


def ternary_linear_activation_sparse(
    q: Tensor,
    scale: Tensor,
    total: Tensor,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    rows: int,
) -> Tensor:
    """Quantised tokens times the columns whose activation is not zero."""
    if q.shape[0] == 0:
        return empty_output(q, rows)
    refuse_bad_tokens(scale, "x.scale")
    backend = dispatch.backend_for(q.device)
    laid_out = column_layout(codes, rows, backend)
    activations = Activations(q, scale, total)
    return backend.ternary_linear_activation_sparse(
        activations, *laid_out, weight_scale, residual, rows, codes.shape[0]
    )


def int8_linear(
    q: Tensor,
    scale: Tensor,
    total: Tensor,
    weight: Tensor,
    row_scale: Tensor,
    residual: Tensor | None,
) -> Tensor:
    """Quantised tokens times an int8 weight."""
    rows, columns = weight.shape
    if q.shape[0] == 0:
        return empty_output(q, rows)
    refuse_bad_tokens(scale, "x.scale")
    backend = dispatch.backend_for(q.device)
    laid_out = int8_layout(weight, backend)
    activations = Activations(q, scale, total)
    return backend.int8_linear(activations, *laid_out, row_scale, residual, rows, columns)


def refuse_bad_tokens(scale: Tensor, argument: str) -> None:
    """Raise :class:`KernelInputError` naming the first token whose scale is NaN or infinite.

    Reads one number a token, and on a GPU only when asked to (``dispatch.checks_finite``).
    """
    if not dispatch.checks_finite(scale.device):
        return
    # A sum is NaN or infinite when any part of it is; the single number of one token is cheaper.
    if math.isfinite(scale.item() if scale.numel() == 1 else scale.sum().item()):
        return
    bad = (~torch.isfinite(scale)).nonzero()
    if bad.numel():
        raise KernelInputError(argument, f"NaN or infinity in token {int(bad[0])}", "finite values")


def empty_activations(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``q``, scale and sum of ``x``, not filled in."""
    tokens, columns = x.shape
    return (
        x.new_empty((tokens, padded(columns)), dtype=torch.int8),
        x.new_empty((tokens,), dtype=torch.float32),
        x.new_empty((tokens,), dtype=torch.int32),
    )


def empty_output(x: Tensor, rows: int) -> Tensor:
    """Output of ``x`` times a matrix of ``rows``, not filled in."""
    return x.new_empty((x.shape[0], rows), dtype=torch.float32)
