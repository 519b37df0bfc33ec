# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"
# (tuples of accumulators that grow while the kernel is compiled)
"""RMSNorm, quantisation, matrix times vector, scale and residual in one launch, for one token.

At these sizes (up to 2,048 columns) the time goes into launches and their gaps, not into the
arithmetic: every program quantises the whole token again, in registers, and saves one launch and
the way of the int8 values through memory. Beyond, the quantiser's share in every program grows with
the columns, and separate kernels win.
"""

from __future__ import annotations

import triton
import triton.language as tl

from agentforge_kernels.triton.dot4 import dot4
from agentforge_kernels.triton.epilogue import store_outputs
from agentforge_kernels.triton.planes import plane_words
from agentforge_kernels.triton.quantize import (
    SMALL,
    inverse_root,
    largest_bits,
    round_to_int,
    step_and_scale,
)

MOST_FUSED_COLUMNS = 2048


@triton.jit(do_not_specialize=["rows", "groups"])
def fused_linear(
    x,
    norm_weight,
    codes,
    weight_scale,
    residual,
    output,
    rows,
    columns,
    groups,
    epsilon,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """``W (quantised norm(x)) + residual`` for one token; grid ``[ceil(rows / BLOCK_ROWS)]``.

    Args:
        x: float32, float16 or bfloat16 ``[columns]``.
        norm_weight: float32 ``[columns]``, or ``None`` for no norm.
        codes: int32 ``[rows, 8 * groups]``: the stored form as words.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[rows]`` or ``None``.
        output: float32 ``[rows]``.
        rows: Rows of the matrix.
        columns: Columns before padding.
        groups: Groups of 128 columns.
        epsilon: Of the norm.
        BLOCK_ROWS: Rows of a program.
        BLOCK_WORDS: Words of a whole row, rounded up to a power of two.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
        INSTRUCTION: As for ``dot4``.
    """
    word = tl.arange(0, BLOCK_WORDS)
    byte = tl.arange(0, 4)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_words = groups * 8
    # The codes are asked for first: they come from furthest away.
    pointers = codes + (tl.minimum(row, rows - 1)[:, None] * row_words + word[None, :])
    packed = tl.load(
        pointers, mask=(word < row_words)[None, :], other=0, eviction_policy="evict_first"
    )

    # Plane j of word i is columns 128 (i / 8) + 32 j + 4 (i % 8) and the three after.
    first_column = (word // 8 * 128 + word % 8 * 4)[:, None] + byte[None, :]
    bits = tl.zeros((BLOCK_WORDS, 4), tl.int32)
    squares = tl.zeros((BLOCK_WORDS, 4), tl.float32)
    small_squares = tl.zeros((BLOCK_WORDS, 4), tl.float32)
    planes = ()
    for plane in tl.static_range(4):
        column = first_column + 32 * plane
        u = tl.load(x + column, mask=column < columns, other=0.0).to(tl.float32)
        if norm_weight is not None:
            squares += u * u
            small_squares += (u * SMALL) * (u * SMALL)
            u *= tl.load(norm_weight + column, mask=column < columns, other=0.0)
        bits = tl.maximum(bits, largest_bits(u))
        planes = planes + (u,)
    inverse = 1.0
    if norm_weight is not None:
        inverse = inverse_root(_total(squares), _total(small_squares), columns, epsilon)
    step, scale = step_and_scale(tl.max(tl.max(bits, 1), 0), inverse)

    sums = tl.zeros((BLOCK_WORDS, 4), tl.int32)
    products = tl.zeros((BLOCK_ROWS, BLOCK_WORDS), tl.int32)
    for plane in tl.static_range(4):
        rounded = tl.where(step > 0.0, round_to_int(planes[plane] * step), 0)
        sums += rounded
        q = tl.sum((rounded & 255) << (8 * byte)[None, :], 1)
        products = dot4(q[None, :], plane_words(packed, plane), products, INSTRUCTION)
    store_outputs(
        tl.sum(products, 1) - _total(sums),
        scale,
        weight_scale,
        residual,
        output,
        row,
        row,
        row < rows,
        SCALE_PER_ROW,
    )


@triton.jit
def _total(values):
    return tl.sum(tl.sum(values, 1), 0)
