# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""From exact integers to float32 outputs, in the order of operations of the contract."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_outputs(
    total,
    activation_scale,
    weight_scale,
    residual,
    output,
    row,
    offset,
    inside,
    SCALE_PER_ROW: tl.constexpr,
):
    """``output = float(total) * (activation_scale * weight_scale) + residual``.

    Launch with ``enable_fp_fusion=False``: a fused multiply-add rounds once where the contract
    rounds twice.

    Args:
        total: Accumulators, int32 (or whole numbers in float32), any shape.
        activation_scale: float32, broadcast against ``total``.
        weight_scale: Pointer to float32: one, or one a row.
        residual: Pointer to float32 like ``output``, or ``None``.
        output: Pointer to float32.
        row: Weight row of each element, broadcast against ``total``.
        offset: Position of each element in ``output`` and ``residual``.
        inside: Which elements exist.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
    """
    if SCALE_PER_ROW:
        # Rows outside read the scale of row 0: no mask, and their result is not stored.
        scale = activation_scale * tl.load(weight_scale + tl.where(inside, row, 0))
    else:
        scale = activation_scale * tl.load(weight_scale)
    store_scaled(total, scale, residual, output, offset, inside)


@triton.jit
def store_scaled(total, scale, residual, output, offset, inside):
    """``output = float(total) * scale + residual``, every operation rounded once.

    Args:
        total: As for :func:`store_outputs`.
        scale: float32, the activation's times the weight's, broadcast against ``total``.
        residual: As for :func:`store_outputs`.
        output: As for :func:`store_outputs`.
        offset: As for :func:`store_outputs`.
        inside: As for :func:`store_outputs`.
    """
    result = total.to(tl.float32) * scale
    if residual is not None:
        result += tl.load(residual + offset, mask=inside, other=0.0)
    tl.store(output + offset, result, mask=inside)


@triton.jit
def scales_of_rows(weight_scale, row, rows, SCALE_PER_ROW: tl.constexpr):
    """float32 scale of each row of a tile, loaded once a row instead of once an output.

    Args:
        weight_scale: Pointer to float32: one, or one a row.
        row: Weight rows, one-dimensional; those beyond ``rows`` get the last one's scale.
        rows: Rows of the matrix.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
    """
    if SCALE_PER_ROW:
        scales = tl.load(weight_scale + tl.minimum(row, rows - 1))
    else:
        scales = tl.load(weight_scale) + tl.zeros_like(row).to(tl.float32)
    return scales
