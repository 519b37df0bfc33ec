# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"
# (tuples of accumulators that grow while the kernel is compiled)
"""Dense ternary matrix times one vector of int8 activations: decoding, batch 1.

Bound by the bytes of the codes, so the loop must not need more time than they do. It reads codes
and activations as 128-bit loads of int32 words and has no barrier and no shared memory. Codes stay
0..2; the sum of the activations, known from the quantiser, is subtracted once a row:
``sum((c - 1) q) = sum(c q) - sum(q)``.

Ragged sizes cost little (0.86 instead of 0.77 instructions a weight on a GTX 1660): rows beyond the
matrix read its last row, words beyond a row's end count as zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

from agentforge_kernels.triton.epilogue import store_outputs
from agentforge_kernels.triton.planes import (
    add_group,
    first_plane_words,
    inside_or_first,
    join_planes,
)


@triton.jit
def _row_totals(
    q,
    codes,
    first_row,
    rows,
    row_words,
    begin,
    end,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    ROWS_PER_THREAD: tl.constexpr,
    EVEN: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """``sum(code * q)`` over words ``begin`` to ``end - 1`` of a row.

    Returns:
        A tuple of ``ROWS_PER_THREAD`` tensors int32 ``[BLOCK_ROWS]``, for rows
        ``first_row + i * BLOCK_ROWS``.
    """
    word = tl.arange(0, BLOCK_WORDS)
    # Two-dimensional although the same for all rows: so the activations are loaded in the layout of
    # the codes. One-dimensional pointers would send them through shared memory.
    q_word = first_plane_words(word)[None, :] + tl.zeros((BLOCK_ROWS, 1), tl.int32)
    pointers = ()
    even = ()
    odd = ()
    for i in tl.static_range(ROWS_PER_THREAD):
        row = first_row + i * BLOCK_ROWS
        if not EVEN:
            row = tl.minimum(row, rows - 1)
        pointers = pointers + (codes + (row[:, None] * row_words + word[None, :]),)
        even = even + (tl.zeros((BLOCK_ROWS, BLOCK_WORDS), tl.int32),)
        odd = odd + (tl.zeros((BLOCK_ROWS, BLOCK_WORDS), tl.int32),)

    for step in range(begin, end, BLOCK_WORDS):
        packed = ()
        if EVEN:
            q_pointers = q + (q_word + step * 4)
            for i in tl.static_range(ROWS_PER_THREAD):
                packed = packed + (tl.load(pointers[i] + step, eviction_policy="evict_first"),)
        else:
            inside = (step + word < end)[None, :]
            q_pointers = q + inside_or_first(inside, q_word + step * 4, word)
            for i in tl.static_range(ROWS_PER_THREAD):
                words = tl.load(
                    pointers[i] + step, mask=inside, other=0, eviction_policy="evict_first"
                )
                packed = packed + (words,)
        q0 = tl.load(q_pointers)
        q1 = tl.load(q_pointers + 8)
        q2 = tl.load(q_pointers + 16)
        q3 = tl.load(q_pointers + 24)
        new_even = ()
        new_odd = ()
        for i in tl.static_range(ROWS_PER_THREAD):
            a, b = add_group(packed[i], q0, q1, q2, q3, even[i], odd[i], INSTRUCTION)
            new_even = new_even + (a,)
            new_odd = new_odd + (b,)
        even = new_even
        odd = new_odd

    totals = ()
    for i in tl.static_range(ROWS_PER_THREAD):
        totals = totals + (tl.sum(join_planes(even[i], odd[i]), 1),)
    return totals


@triton.jit(do_not_specialize=["rows", "groups"])
def ternary_gemv(
    q,
    activation_scale,
    activation_sum,
    codes,
    weight_scale,
    residual,
    output,
    rows,
    groups,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    ROWS_PER_THREAD: tl.constexpr,
    EVEN: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """One token's output rows; grid ``[ceil(rows / (BLOCK_ROWS * ROWS_PER_THREAD))]``.

    Args:
        q: int32 ``[32 * groups]``: the int8 activations as words.
        activation_scale: float32 ``[1]``.
        activation_sum: int32 ``[1]``.
        codes: int32 ``[rows, 8 * groups]``: the stored form as words.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[rows]`` or ``None``.
        output: float32 ``[rows]``.
        rows: Rows of the matrix.
        groups: Groups of 128 columns. Given instead of the number of words, so that a row's length
            is a multiple of 32 bytes for the compiler, too: else there are no 128-bit loads.
        BLOCK_ROWS: Rows side by side.
        BLOCK_WORDS: Words of a row a step; a multiple of eight.
        ROWS_PER_THREAD: Rows that share a load of activations.
        EVEN: Rows and words are multiples of the blocks.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
        INSTRUCTION: As for ``dot4``.
    """
    first_row = tl.program_id(0) * (BLOCK_ROWS * ROWS_PER_THREAD) + tl.arange(0, BLOCK_ROWS)
    row_words = groups * 8
    totals = _row_totals(
        q,
        codes,
        first_row,
        rows,
        row_words,
        0,
        row_words,
        BLOCK_ROWS,
        BLOCK_WORDS,
        ROWS_PER_THREAD,
        EVEN,
        INSTRUCTION,
    )
    scale = tl.load(activation_scale)
    correction = tl.load(activation_sum)
    for i in tl.static_range(ROWS_PER_THREAD):
        row = first_row + i * BLOCK_ROWS
        store_outputs(
            totals[i] - correction,
            scale,
            weight_scale,
            residual,
            output,
            row,
            row,
            row < rows,
            SCALE_PER_ROW,
        )


@triton.jit(do_not_specialize=["rows", "groups"])
def ternary_gemv_split(
    q,
    codes,
    totals,
    rows,
    groups,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    ROWS_PER_THREAD: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """The same with a row's columns shared by ``SPLIT`` programs; for few rows of many columns.

    Integer sums do not depend on their order, so atomic additions stay exact. Grid
    ``[ceil(rows / (BLOCK_ROWS * ROWS_PER_THREAD)), SPLIT]``; :func:`finish_split` comes after.

    Args:
        q: As for :func:`ternary_gemv`.
        codes: As for :func:`ternary_gemv`.
        totals: int32 ``[rows]``, zero before the launch; receives ``sum(code * q)``.
        rows: Rows of the matrix.
        groups: Groups of 128 columns.
        BLOCK_ROWS: As for :func:`ternary_gemv`.
        BLOCK_WORDS: As for :func:`ternary_gemv`.
        ROWS_PER_THREAD: As for :func:`ternary_gemv`.
        SPLIT: Programs a row.
        EVEN: Words are a multiple of ``SPLIT * BLOCK_WORDS``, and rows of their block.
        INSTRUCTION: As for ``dot4``.
    """
    first_row = tl.program_id(0) * (BLOCK_ROWS * ROWS_PER_THREAD) + tl.arange(0, BLOCK_ROWS)
    row_words = groups * 8
    share = tl.cdiv(row_words, SPLIT * BLOCK_WORDS) * BLOCK_WORDS
    begin = tl.program_id(1) * share
    sums = _row_totals(
        q,
        codes,
        first_row,
        rows,
        row_words,
        begin,
        tl.maximum(tl.minimum(begin + share, row_words), begin),
        BLOCK_ROWS,
        BLOCK_WORDS,
        ROWS_PER_THREAD,
        EVEN,
        INSTRUCTION,
    )
    for i in tl.static_range(ROWS_PER_THREAD):
        row = first_row + i * BLOCK_ROWS
        tl.atomic_add(totals + row, sums[i], mask=row < rows, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def finish_split(
    totals,
    activation_scale,
    activation_sum,
    weight_scale,
    residual,
    output,
    rows,
    BLOCK_ROWS: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
):
    """Sums of :func:`ternary_gemv_split` to outputs; grid ``[ceil(rows / BLOCK_ROWS)]``.

    Args:
        totals: int32 ``[rows]``.
        activation_scale: float32 ``[1]``.
        activation_sum: int32 ``[1]``.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[rows]`` or ``None``.
        output: float32 ``[rows]``.
        rows: Rows of the matrix.
        BLOCK_ROWS: Rows a program.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    total = tl.load(totals + row, mask=row < rows, other=0) - tl.load(activation_sum)
    store_outputs(
        total,
        tl.load(activation_scale),
        weight_scale,
        residual,
        output,
        row,
        row,
        row < rows,
        SCALE_PER_ROW,
    )
