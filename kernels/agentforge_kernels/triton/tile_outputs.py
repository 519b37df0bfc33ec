# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Outputs of a matrix kernel's tile, few registers at a time."""

from __future__ import annotations

import triton
import triton.language as tl

from agentforge_kernels.triton.epilogue import scales_of_rows, store_scaled
from agentforge_kernels.triton.token_pointers import from_token


@triton.jit
def store_tile(
    total,
    activation_scale,
    activation_sum,
    weight_scale,
    residual,
    output,
    first_token,
    first_row,
    tokens,
    rows,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
):
    """The program's tile to outputs, a quarter of its tokens after the other.

    The next quarter's residuals cannot be loaded before the last one's outputs are stored, so only
    a quarter of them is in registers: 80 instead of 156 for 64 x 128, three programs on a
    multiprocessor of compute capability 8.0 instead of one.

    Args:
        total: int32 ``[BLOCK_TOKENS, BLOCK_ROWS]``.
        activation_scale: float32 ``[tokens]``.
        activation_sum: int32 ``[tokens]``, subtracted, or ``None``.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[tokens, rows]`` or ``None``.
        output: float32 ``[tokens, rows]``.
        first_token: Token of the tile's first outputs.
        first_row: Their row.
        tokens: Tokens.
        rows: Rows of the matrix.
        BLOCK_TOKENS: Tokens of a tile, a multiple of four.
        BLOCK_ROWS: Rows of a tile.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
    """
    QUARTER: tl.constexpr = BLOCK_TOKENS // 4
    row = first_row + tl.arange(0, BLOCK_ROWS)
    row_scale = scales_of_rows(weight_scale, row, rows, SCALE_PER_ROW)
    first, second = _halves(total, BLOCK_TOKENS, BLOCK_ROWS)
    quarters = _halves(first, BLOCK_TOKENS // 2, BLOCK_ROWS)
    quarters = quarters + _halves(second, BLOCK_TOKENS // 2, BLOCK_ROWS)
    for i in tl.static_range(4):
        first_of_quarter = first_token + i * QUARTER
        token = tl.arange(0, QUARTER)
        present = first_of_quarter + token < tokens
        scale = tl.load(activation_scale + first_of_quarter + token, mask=present, other=0.0)
        sums = quarters[i]
        if activation_sum is not None:
            correction = tl.load(activation_sum + first_of_quarter + token, mask=present, other=0)
            sums -= correction[:, None]
        token_output, token_residual = from_token(output, residual, first_of_quarter, rows)
        store_scaled(
            sums,
            scale[:, None] * row_scale[None, :],
            token_residual,
            token_output,
            token[:, None] * rows + row[None, :],
            present[:, None] & (row < rows)[None, :],
        )


@triton.jit
def _halves(tile, TOKENS: tl.constexpr, ROWS: tl.constexpr):
    """A tile's first and second half of tokens; stays in registers."""
    return tl.split(tl.permute(tl.reshape(tile, (2, TOKENS // 2, ROWS)), (1, 2, 0)))
