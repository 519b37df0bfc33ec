# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"
# (tuples of accumulators that grow while the kernel is compiled)
"""Dense ternary matrix times two to eight vectors: the codes are read and unpacked once for all.

Like ``gemv``, with one accumulator a token in the same thread. Up to eight tokens on a GTX 1660 the
integer work (about 3 instructions a weight for 8 products) stays within the time of the memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from agentforge_kernels.triton.dot4 import dot4
from agentforge_kernels.triton.epilogue import store_outputs
from agentforge_kernels.triton.planes import (
    first_plane_words,
    inside_or_first,
    plane_words,
)


@triton.jit(do_not_specialize=["rows", "groups"])
def ternary_small_batch(
    q,
    activation_scale,
    activation_sum,
    codes,
    weight_scale,
    residual,
    output,
    rows,
    groups,
    TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    EVEN: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """Output rows of a few tokens; grid ``[ceil(rows / BLOCK_ROWS)]``.

    Args:
        q: int32 ``[TOKENS, 32 * groups]``: the int8 activations as words.
        activation_scale: float32 ``[TOKENS]``.
        activation_sum: int32 ``[TOKENS]``.
        codes: int32 ``[rows, 8 * groups]``: the stored form as words.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[TOKENS, rows]`` or ``None``.
        output: float32 ``[TOKENS, rows]``.
        rows: Rows of the matrix.
        groups: Groups of 128 columns.
        TOKENS: Tokens, 2 to 8.
        BLOCK_ROWS: Rows side by side.
        BLOCK_WORDS: Words of a row a step; a multiple of eight.
        EVEN: Rows and words are multiples of the blocks.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
        INSTRUCTION: As for ``dot4``.
    """
    word = tl.arange(0, BLOCK_WORDS)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_words = groups * 8
    read_row = row if EVEN else tl.minimum(row, rows - 1)
    pointers = codes + (read_row[:, None] * row_words + word[None, :])
    q_word = first_plane_words(word)[None, :] + tl.zeros((BLOCK_ROWS, 1), tl.int32)
    totals = ()
    token_q = ()
    for token in tl.static_range(TOKENS):
        totals = totals + (tl.zeros((BLOCK_ROWS, BLOCK_WORDS), tl.int32),)
        token_q = token_q + (q + token * (groups * 32),)

    for step in range(0, row_words, BLOCK_WORDS):
        if EVEN:
            packed = tl.load(pointers + step, eviction_policy="evict_first")
            offset = q_word + step * 4
        else:
            inside = (step + word < row_words)[None, :]
            packed = tl.load(pointers + step, mask=inside, other=0, eviction_policy="evict_first")
            offset = inside_or_first(inside, q_word + step * 4, word)
        for plane in tl.static_range(4):
            words = plane_words(packed, plane)
            new_totals = ()
            for token in tl.static_range(TOKENS):
                token_words = tl.load(token_q[token] + offset + 8 * plane)
                total = dot4(token_words, words, totals[token], INSTRUCTION)
                new_totals = new_totals + (total,)
            totals = new_totals

    for token in tl.static_range(TOKENS):
        store_outputs(
            tl.sum(totals[token], 1) - tl.load(activation_sum + token),
            tl.load(activation_scale + token),
            weight_scale,
            residual,
            output,
            row,
            token * rows + row,
            row < rows,
            SCALE_PER_ROW,
        )
