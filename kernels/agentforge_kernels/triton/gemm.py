# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Dense ternary matrix times many vectors: prefill.

Plane ``j`` of a group of 32 bytes is a slab of 32 consecutive columns, so unpacking is a shift and
a mask, and a slab is one int8 matrix instruction deep. On Turing, Triton compiles neither int8 nor
float16 products to matrix instructions (and a GTX 16xx has none), so there the products are float32
multiply-adds, exact because every partial sum is an integer that float32 holds.

Tokens and rows beyond the last read the last: no mask in the loop, and nothing of them is stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from agentforge_kernels.triton.packed_bytes import codes_of_plane
from agentforge_kernels.triton.tile_outputs import store_tile

EXACT_COLUMNS = tl.constexpr(65536)
"""Columns whose sum of codes times activations is at most ``2 * 128 * 65536 = 2^24``: float32 holds
every integer up to there, in any order of addition."""


@triton.jit(do_not_specialize=["tokens", "rows", "groups"])
def ternary_gemm_int8(
    q,
    activation_scale,
    activation_sum,
    codes,
    weight_scale,
    residual,
    output,
    tokens,
    rows,
    groups,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """A tile of outputs by int8 matrix units; grid ``[tiles of tokens, tiles of rows]``.

    A step is one group: 32 bytes of a row, four slabs of 32 columns.

    Args:
        q: int8 ``[tokens, 128 * groups]``.
        activation_scale: float32 ``[tokens]``.
        activation_sum: int32 ``[tokens]``.
        codes: uint8 ``[rows, 32 * groups]``: the stored form.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[tokens, rows]`` or ``None``.
        output: float32 ``[tokens, rows]``.
        tokens: Tokens.
        rows: Rows of the matrix.
        groups: Groups of 128 columns.
        BLOCK_TOKENS: Tokens of a tile, 16 or more.
        BLOCK_ROWS: Rows of a tile, 16 or more.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
        INSTRUCTION: As for ``dot4``.
    """
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    byte = tl.arange(0, 32)
    q_row = tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * (groups * 128)
    code_row = tl.minimum(row, rows - 1).to(tl.int64)[None, :] * (groups * 32)
    q_pointers = q + q_row + byte[None, :]
    code_pointers = codes + code_row + byte[:, None]
    total = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), tl.int32)
    for _ in range(0, groups):
        packed = tl.load(code_pointers)
        for plane in tl.static_range(4):
            slab = tl.load(q_pointers + 32 * plane)
            weight = codes_of_plane(packed, plane, INSTRUCTION)
            total = tl.dot(slab, weight, acc=total, out_dtype=tl.int32)
        code_pointers += 32
        q_pointers += 128
    store_tile(
        total,
        activation_scale,
        activation_sum,
        weight_scale,
        residual,
        output,
        tl.program_id(0) * BLOCK_TOKENS,
        tl.program_id(1) * BLOCK_ROWS,
        tokens,
        rows,
        BLOCK_TOKENS,
        BLOCK_ROWS,
        SCALE_PER_ROW,
    )


@triton.jit(do_not_specialize=["tokens", "rows", "groups"])
def ternary_gemm_float32(
    q,
    activation_scale,
    activation_sum,
    codes,
    weight_scale,
    residual,
    output,
    tokens,
    rows,
    groups,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
):
    """The same by float32 multiply-adds, for GPUs without int8 matrix units in Triton.

    Beyond ``EXACT_COLUMNS`` the sum goes over to int32. A step is one plane's slab or half of it:
    with all four planes in a step the compiler holds their operands in 255 registers and spills.
    So codes are read again for every plane, from the first-level cache.

    Args:
        q: As for :func:`ternary_gemm_int8`, like all but ``BLOCK_COLUMNS``.
        activation_scale: float32 ``[tokens]``.
        activation_sum: int32 ``[tokens]``.
        codes: uint8 ``[rows, 32 * groups]``.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[tokens, rows]`` or ``None``.
        output: float32 ``[tokens, rows]``.
        tokens: Tokens.
        rows: Rows of the matrix.
        groups: Groups of 128 columns.
        BLOCK_TOKENS: Tokens of a tile, 16 or more.
        BLOCK_ROWS: Rows of a tile, 16 or more.
        BLOCK_COLUMNS: Columns a step: 16 or 32.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
    """
    STEPS_A_PLANE: tl.constexpr = 32 // BLOCK_COLUMNS
    STEPS_A_GROUP: tl.constexpr = 128 // BLOCK_COLUMNS
    EXACT_STEPS: tl.constexpr = EXACT_COLUMNS // BLOCK_COLUMNS
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_COLUMNS)
    q_row = tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * (groups * 128)
    code_row = tl.minimum(row, rows - 1).to(tl.int64)[None, :] * (groups * 32)
    q_pointers = q + q_row + column[None, :]
    code_pointers = codes + code_row + column[:, None]
    total = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), tl.int32)
    steps = groups * STEPS_A_GROUP
    for begin in range(0, steps, EXACT_STEPS):
        partial = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), tl.float32)
        for step in range(begin, tl.minimum(begin + EXACT_STEPS, steps)):
            plane = step // STEPS_A_PLANE % 4
            byte = step // STEPS_A_GROUP * 32 + step % STEPS_A_PLANE * BLOCK_COLUMNS
            slab = tl.load(q_pointers + step * BLOCK_COLUMNS)
            packed = tl.load(code_pointers + byte)
            weight = (packed >> (2 * plane).to(tl.uint8)) & 3
            partial = tl.dot(
                slab.to(tl.float32), weight.to(tl.float32), acc=partial, input_precision="ieee"
            )
        total += partial.to(tl.int32)
    store_tile(
        total,
        activation_scale,
        activation_sum,
        weight_scale,
        residual,
        output,
        tl.program_id(0) * BLOCK_TOKENS,
        tl.program_id(1) * BLOCK_ROWS,
        tokens,
        rows,
        BLOCK_TOKENS,
        BLOCK_ROWS,
        SCALE_PER_ROW,
    )
