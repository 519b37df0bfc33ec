# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment,var-annotated,misc"
# (tuples of accumulators that grow while the kernel is compiled)
"""int8 matmul with a scale a row: the language-model head.

A head is often larger than all ternary matrices together (32,000 x 512 weights are 16 MB, 87 us at
the 192 GB/s of a GTX 1660), so it is bound by its bytes and the loop only has to keep up: one
128-bit load of weights is 16 columns and four dp4a.

Rows are read 16 bytes at a time. A weight whose columns are no multiple of 16 is padded once, when
it is laid out; activations are padded with zeros anyway.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from agentforge_kernels.backend import Activations
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import padded
from agentforge_kernels.triton.configs import Int8GemmConfig, Int8GemvConfig, lookup
from agentforge_kernels.triton.devices import DOT4_INSTRUCTION, Family, int8_matrix_units
from agentforge_kernels.triton.dot4 import dot4
from agentforge_kernels.triton.epilogue import store_outputs
from agentforge_kernels.triton.tile_outputs import store_tile
from agentforge_kernels.triton.token_pointers import from_token
from agentforge_kernels.triton.words import as_words, power_of_two, split_words

MOST_GEMV_TOKENS = 8
"""Up to here tokens share loads of weights in registers; above, matrix units where they exist."""
QUAD_COLUMNS = 16
"""Columns of a 128-bit load; rows of the laid-out weight are a multiple."""


@triton.jit
def _add_step(
    q_pointers,
    weight_pointers,
    step,
    inside,
    totals,
    TOKENS: tl.constexpr,
    ROWS_PER_THREAD: tl.constexpr,
    MASKED: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """Sums of all tokens and rows after one more step; tuples as in :func:`int8_gemv`.

    The four words of a load go into one sum, a quarter of the registers of a sum each.
    """
    weights = ()
    for r in tl.static_range(ROWS_PER_THREAD):
        if MASKED:
            words = tl.load(weight_pointers[r] + step, mask=inside, other=0)
        else:
            words = tl.load(weight_pointers[r] + step, eviction_policy="evict_first")
        weights = weights + (split_words(words),)
    new_totals = ()
    for i in tl.static_range(TOKENS):
        if MASKED:
            words = tl.load(q_pointers[i] + step, mask=inside, other=0)
        else:
            words = tl.load(q_pointers[i] + step)
        q0, q1, q2, q3 = split_words(words)
        for r in tl.static_range(ROWS_PER_THREAD):
            w0, w1, w2, w3 = weights[r]
            total = dot4(q0, w0, totals[i * ROWS_PER_THREAD + r], INSTRUCTION)
            total = dot4(q1, w1, total, INSTRUCTION)
            total = dot4(q2, w2, total, INSTRUCTION)
            total = dot4(q3, w3, total, INSTRUCTION)
            new_totals = new_totals + (total,)
    return new_totals


@triton.jit(do_not_specialize=["tokens", "rows", "groups", "quads"])
def int8_gemv(
    q,
    activation_scale,
    weight,
    row_scale,
    residual,
    output,
    tokens,
    rows,
    groups,
    quads,
    TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_QUADS: tl.constexpr,
    ROWS_PER_THREAD: tl.constexpr,
    EVEN: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """A few tokens; grid ``[ceil(tokens / TOKENS), ceil(rows / (BLOCK_ROWS * ROWS_PER_THREAD))]``.

    Args:
        q: int32 ``[tokens, 32 * groups]``: the int8 activations as words.
        activation_scale: float32 ``[tokens]``.
        weight: int32 ``[rows, 4 * quads]``: the int8 weights as words.
        row_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[tokens, rows]`` or ``None``.
        output: float32 ``[tokens, rows]``.
        tokens: Tokens.
        rows: Rows of the matrix.
        groups: Groups of 128 columns of the activations.
        quads: Quads (four words, 16 columns) of the weights; like ``groups`` given instead of a
            number of words so that the compiler knows every row to begin at a multiple of 16 bytes.
        TOKENS: Tokens of a program, all against one load of weights.
        BLOCK_ROWS: Rows side by side.
        BLOCK_QUADS: Quads of a row a step.
        ROWS_PER_THREAD: Rows that share a load of activations.
        EVEN: The quads of a row are a multiple of ``BLOCK_QUADS``.
        SCALE_PER_ROW: Whether ``row_scale`` holds one scale a row.
        INSTRUCTION: As for ``dot4``.
    """
    first_token = tl.program_id(0) * TOKENS
    first_row = tl.program_id(1) * (BLOCK_ROWS * ROWS_PER_THREAD) + tl.arange(0, BLOCK_ROWS)
    quad = tl.arange(0, BLOCK_QUADS)
    word = quad[None, :, None] * 4 + tl.arange(0, 4)[None, None, :]
    # Tokens and rows beyond the last read the last: no mask in the loop, and nothing is stored.
    q_pointers = ()
    for i in tl.static_range(TOKENS):
        token = tl.minimum(first_token + i, tokens - 1).to(tl.int64)
        # The same for all rows, but in the weights' layout: no way through shared memory.
        words = word + tl.zeros((BLOCK_ROWS, 1, 1), tl.int32)
        q_pointers = q_pointers + (q + token * (groups * 32) + words,)
    weight_pointers = ()
    for r in tl.static_range(ROWS_PER_THREAD):
        row = tl.minimum(first_row + r * BLOCK_ROWS, rows - 1).to(tl.int64)
        weight_pointers = weight_pointers + (weight + row[:, None, None] * (quads * 4) + word,)
    totals = ()
    for _ in tl.static_range(TOKENS * ROWS_PER_THREAD):
        totals = totals + (tl.zeros((BLOCK_ROWS, BLOCK_QUADS), tl.int32),)

    last = quads // BLOCK_QUADS * BLOCK_QUADS
    for begin in range(0, last, BLOCK_QUADS):
        totals = _add_step(
            q_pointers,
            weight_pointers,
            begin * 4,
            None,
            totals,
            TOKENS,
            ROWS_PER_THREAD,
            False,
            INSTRUCTION,
        )
    if not EVEN:
        totals = _add_step(
            q_pointers,
            weight_pointers,
            last * 4,
            (last + quad < quads)[None, :, None],
            totals,
            TOKENS,
            ROWS_PER_THREAD,
            True,
            INSTRUCTION,
        )

    output, residual = from_token(output, residual, first_token, rows)
    for i in tl.static_range(TOKENS):
        token = first_token + i
        scale = tl.load(activation_scale + tl.minimum(token, tokens - 1))
        for r in tl.static_range(ROWS_PER_THREAD):
            row = first_row + r * BLOCK_ROWS
            store_outputs(
                tl.sum(totals[i * ROWS_PER_THREAD + r], 1),
                scale,
                row_scale,
                residual,
                output,
                row,
                i * rows + row,
                row < tl.where(token < tokens, rows, 0),
                SCALE_PER_ROW,
            )


@triton.jit(do_not_specialize=["tokens", "rows", "groups", "quads"])
def int8_gemm(
    q,
    activation_scale,
    weight,
    row_scale,
    residual,
    output,
    tokens,
    rows,
    groups,
    quads,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    EVEN: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
):
    """Many tokens by int8 matrix units; grid ``[tiles of tokens, tiles of rows]``.

    Args:
        q: int8 ``[tokens, 128 * groups]``.
        activation_scale: float32 ``[tokens]``.
        weight: int8 ``[rows, 16 * quads]``.
        row_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[tokens, rows]`` or ``None``.
        output: float32 ``[tokens, rows]``.
        tokens: Tokens.
        rows: Rows of the matrix.
        groups: Groups of 128 columns of the activations.
        quads: Groups of 16 columns of the weights.
        BLOCK_TOKENS: Tokens of a tile, 16 or more.
        BLOCK_ROWS: Rows of a tile, 16 or more.
        BLOCK_COLUMNS: Columns of a product, 32 or more; a step is two products.
        NUM_STAGES: Steps whose loads are in flight.
        EVEN: The columns are a multiple of ``2 * BLOCK_COLUMNS``.
        SCALE_PER_ROW: Whether ``row_scale`` holds one scale a row.
    """
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inner = tl.arange(0, BLOCK_COLUMNS)
    columns = quads * 16
    q_rows = q + tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * (groups * 128)
    weight_rows = weight + tl.minimum(row, rows - 1).to(tl.int64)[None, :] * columns
    total = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), tl.int32)
    # Two products a step, which is also what keeps Triton 3.9 from holding the operands of the next
    # one in registers around the loop: on compute capability 8.x it takes them apart into bytes
    # for that, 158 instructions for eight matrix products instead of 63.
    for begin in tl.range(0, columns, 2 * BLOCK_COLUMNS, num_stages=NUM_STAGES):
        for half in tl.static_range(2):
            column = begin + half * BLOCK_COLUMNS + inner
            if EVEN:
                left = tl.load(q_rows + column[None, :])
                right = tl.load(weight_rows + column[:, None])
            else:
                inside = column < columns
                left = tl.load(q_rows + column[None, :], mask=inside[None, :], other=0)
                right = tl.load(weight_rows + column[:, None], mask=inside[:, None], other=0)
            total = tl.dot(left, right, acc=total, out_dtype=tl.int32)

    store_tile(
        total,
        activation_scale,
        None,
        row_scale,
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


def lay_out_int8(weight: Tensor) -> Tensor:
    """An int8 weight ``[rows, columns]`` with its columns padded by zeros to a multiple of 16.

    The weight itself where nothing is to be padded.
    """
    columns = weight.shape[1]
    if columns % QUAD_COLUMNS == 0:
        return weight
    return F.pad(weight, (0, padded(columns, QUAD_COLUMNS) - columns))


def int8_linear(
    activations: Activations,
    weight: Tensor,
    row_scale: Tensor,
    residual: Tensor | None,
    rows: int,
    columns: int,
    family: Family,
) -> Tensor:
    """int8 matmul with a scale a row; arguments as in ``backend.Backend``.

    Without int8 matrix units (Turing, where Triton compiles none) many tokens are many groups of
    eight for dp4a: exact, and four products an instruction where float32 has one.

    Args:
        activations: Quantised tokens.
        weight: int8 ``[rows, stored columns]`` of :func:`lay_out_int8`.
        row_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[tokens, rows]`` or ``None``.
        rows: Rows of the matrix.
        columns: Columns of the matrix.
        family: Of the GPU.

    Returns:
        float32 ``[tokens, rows]``.

    Raises:
        KernelInputError: The weight has not been laid out.
    """
    q = activations.q
    tokens, padded_columns = q.shape
    stored = weight.shape[1]
    if stored != padded(columns, QUAD_COLUMNS):
        raise KernelInputError(
            "weight",
            f"{stored} stored columns for {columns}",
            f"{padded(columns, QUAD_COLUMNS)}, padded to a multiple of {QUAD_COLUMNS}",
        )
    output = torch.empty((tokens, rows), dtype=torch.float32, device=q.device)
    if tokens == 0:
        return output
    sizes = (tokens, rows, padded_columns // 128, stored // QUAD_COLUMNS)
    shared: dict[str, Any] = {
        "SCALE_PER_ROW": row_scale.shape[0] > 1,
        "enable_fp_fusion": False,
    }
    if int8_matrix_units(family) and tokens > MOST_GEMV_TOKENS:
        gemm = lookup("int8_gemm", family, rows, columns, tokens)
        assert isinstance(gemm, Int8GemmConfig)
        grid = (triton.cdiv(tokens, gemm.block_tokens), triton.cdiv(rows, gemm.block_rows))
        int8_gemm[grid](
            q,
            activations.scale,
            weight,
            row_scale,
            residual,
            output,
            *sizes,
            BLOCK_TOKENS=gemm.block_tokens,
            BLOCK_ROWS=gemm.block_rows,
            BLOCK_COLUMNS=gemm.block_columns,
            NUM_STAGES=gemm.num_stages,
            EVEN=stored % (2 * gemm.block_columns) == 0,
            num_warps=gemm.num_warps,
            **shared,
        )
        return output
    config = lookup("int8_gemv", family, rows, columns, tokens)
    assert isinstance(config, Int8GemvConfig)
    together = min(config.tokens, power_of_two(tokens))
    rows_a_program = config.block_rows * config.rows_per_thread
    int8_gemv[(triton.cdiv(tokens, together), triton.cdiv(rows, rows_a_program))](
        as_words(q),
        activations.scale,
        as_words(weight),
        row_scale,
        residual,
        output,
        *sizes,
        TOKENS=together,
        BLOCK_ROWS=config.block_rows,
        BLOCK_QUADS=config.block_quads,
        ROWS_PER_THREAD=config.rows_per_thread,
        EVEN=stored // QUAD_COLUMNS % config.block_quads == 0,
        INSTRUCTION=DOT4_INSTRUCTION[family],
        num_warps=config.num_warps,
        num_stages=1,
        **shared,
    )
    return output
