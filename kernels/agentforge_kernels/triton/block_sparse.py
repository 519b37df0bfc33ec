# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment,var-annotated,misc"
# (tuples of accumulators that grow while the kernel is compiled)
"""Ternary matmul over the stored tiles only: work and bytes fall with the share of zero tiles.

A tile is 64 rows x 16 columns in 64 words, word ``r`` for row ``r``, plane ``j`` of a word for
columns ``4 j`` to ``4 j + 3`` (:mod:`agentforge_kernels.sparse`). So four rows of a tile are one
128-bit load, and the tile's 16 activations another, shared by all its rows.

Codes stay 0..2 in the loop. The sum of activations to subtract is not the token's whole sum, as for
a dense matrix, but that of the columns visited, which differ from one block of rows to the next; it
costs four dp4a a tile beside the tile's 16 a thread.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from agentforge_kernels.backend import Activations
from agentforge_kernels.triton.configs import BlockSparseConfig, BlockSparseGemmConfig, lookup
from agentforge_kernels.triton.devices import DOT4_INSTRUCTION, Family, int8_matrix_units
from agentforge_kernels.triton.dot4 import dot4
from agentforge_kernels.triton.epilogue import store_outputs
from agentforge_kernels.triton.packed_bytes import trits_of_plane
from agentforge_kernels.triton.planes import add_group, join_planes, plane_words
from agentforge_kernels.triton.tile_outputs import store_tile
from agentforge_kernels.triton.token_pointers import from_token
from agentforge_kernels.triton.words import as_words, power_of_two, split_words

MOST_GEMV_TOKENS = 8
"""Up to here tokens share loads of weights in registers; above, matrix units where they exist."""


@triton.jit(do_not_specialize=["tokens", "rows", "groups"])
def block_sparse_gemv(
    q,
    activation_scale,
    tiles,
    index,
    start,
    weight_scale,
    residual,
    output,
    tokens,
    rows,
    groups,
    TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """A few tokens' outputs; grid ``[ceil(tokens / TOKENS), row blocks * 64 / BLOCK_ROWS]``.

    A thread owns four rows; the threads of a program share out the tiles of a block of rows, or of
    a part of it, so that 2,560 rows give 160 programs instead of 40.

    Args:
        q: int32 ``[tokens, 32 * groups]``: the int8 activations as words.
        activation_scale: float32 ``[tokens]``.
        tiles: int32 ``[count, 64]``: the tiles as words.
        index: int32 ``[count]``: first column of a tile, divided by 16.
        start: int32 ``[row blocks + 1]``: first tile of each 64 rows.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[tokens, rows]`` or ``None``.
        output: float32 ``[tokens, rows]``.
        tokens: Tokens.
        rows: Rows of the matrix.
        groups: Groups of 128 columns; given instead of the number of words so that the compiler
            knows a token's activations to be a multiple of 16 bytes.
        TOKENS: Tokens of a program, all against one load of weights.
        BLOCK_ROWS: Rows of a program: 16, 32 or 64.
        BLOCK_TILES: Tiles a step.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
        INSTRUCTION: As for ``dot4``.
    """
    PARTS: tl.constexpr = 64 // BLOCK_ROWS
    QUADS: tl.constexpr = BLOCK_ROWS // 4
    block = tl.program_id(1) // PARTS
    first_row = tl.program_id(1) % PARTS * BLOCK_ROWS
    first_token = tl.program_id(0) * TOKENS
    begin = tl.load(start + block)
    end = tl.load(start + block + 1)

    tile = tl.arange(0, BLOCK_TILES)
    quad = tl.arange(0, QUADS)
    one_of_four = tl.arange(0, 4)
    word = (first_row + quad * 4)[None, :, None] + one_of_four[None, None, :]
    # The same four words for all quads of rows, but in the layout of the weights.
    field = one_of_four[None, None, :] + tl.zeros((1, QUADS, 1), tl.int32)
    ones = tl.full((BLOCK_TILES, QUADS), 0x01010101, tl.int32)

    sums = ()
    for _ in tl.static_range(TOKENS):
        zero = tl.zeros((BLOCK_TILES, QUADS, 4), tl.int32)
        sums = sums + ((zero, zero, tl.zeros((BLOCK_TILES, QUADS), tl.int32)),)

    for position in range(begin, end, BLOCK_TILES):
        stored = position + tile < end
        group = tl.load(index + position + tile, mask=stored, other=0)[:, None, None]
        inside = stored[:, None, None]
        packed = tl.load(
            tiles + (position + tile)[:, None, None] * 64 + word,
            mask=inside,
            other=0,
            eviction_policy="evict_first",
        )
        new_sums = ()
        for i in tl.static_range(TOKENS):
            even, odd, visited = sums[i]
            # Tokens beyond the last one compute it once more and store nothing.
            token = tl.minimum(first_token + i, tokens - 1)
            words = tl.load(q + token * (groups * 32) + (group * 4 + field), mask=inside, other=0)
            q0, q1, q2, q3 = split_words(words)
            visited = dot4(q0, ones, visited, INSTRUCTION)
            visited = dot4(q1, ones, visited, INSTRUCTION)
            visited = dot4(q2, ones, visited, INSTRUCTION)
            visited = dot4(q3, ones, visited, INSTRUCTION)
            q0, q1, q2, q3 = q0[:, :, None], q1[:, :, None], q2[:, :, None], q3[:, :, None]
            if TOKENS == 1:
                even, odd = add_group(packed, q0, q1, q2, q3, even, odd, INSTRUCTION)
            else:
                # Two more shifts a word, shared by the tokens, for half the accumulators.
                even = dot4(q0, plane_words(packed, 0), even, INSTRUCTION)
                even = dot4(q1, plane_words(packed, 1), even, INSTRUCTION)
                even = dot4(q2, plane_words(packed, 2), even, INSTRUCTION)
                even = dot4(q3, plane_words(packed, 3), even, INSTRUCTION)
            new_sums = new_sums + ((even, odd, visited),)
        sums = new_sums

    row = block * 64 + first_row + tl.arange(0, BLOCK_ROWS)
    output, residual = from_token(output, residual, first_token, rows)
    for i in tl.static_range(TOKENS):
        even, odd, visited = sums[i]
        total = tl.sum(join_planes(even, odd) - visited[:, :, None], 0)
        token = first_token + i
        store_outputs(
            tl.reshape(total, (BLOCK_ROWS,)),
            tl.load(activation_scale + tl.minimum(token, tokens - 1)),
            weight_scale,
            residual,
            output,
            row,
            i * rows + row,
            row < tl.where(token < tokens, rows, 0),
            SCALE_PER_ROW,
        )


@triton.jit(do_not_specialize=["tokens", "rows", "groups"])
def block_sparse_gemm(
    q,
    activation_scale,
    tiles,
    index,
    start,
    weight_scale,
    residual,
    output,
    tokens,
    rows,
    groups,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """Many tokens by int8 matrix units; grid ``[ceil(tokens / BLOCK_TOKENS), row blocks]``.

    One plane of eight tiles is a slab of 32 columns: column ``4 t + b`` of the slab is column
    ``16 index[t] + 4 plane + b`` of the matrix, for weights and activations alike, so no tile is
    put in order first. The grid runs over the tokens first: the programs of a block of rows come
    together and find its tiles in the L2 cache.

    Args:
        q: int8 ``[tokens, 128 * groups]``.
        activation_scale: As for :func:`block_sparse_gemv`.
        tiles: uint8 ``[count, 256]``.
        index: As for :func:`block_sparse_gemv`.
        start: As for :func:`block_sparse_gemv`.
        weight_scale: As for :func:`block_sparse_gemv`.
        residual: As for :func:`block_sparse_gemv`.
        output: As for :func:`block_sparse_gemv`.
        tokens: Tokens.
        rows: Rows of the matrix.
        groups: Groups of 128 columns.
        BLOCK_TOKENS: Tokens of a program.
        BLOCK_TILES: Tiles a step; a multiple of eight.
        NUM_STAGES: Steps whose loads are in flight.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
        INSTRUCTION: As for ``dot4``.
    """
    tl.static_assert(BLOCK_TILES % 8 == 0, "BLOCK_TILES must be a multiple of eight")
    block = tl.program_id(1)
    begin = tl.load(start + block)
    end = tl.load(start + block + 1)
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    # Tokens beyond the last one compute it once more and store nothing.
    q_rows = q + tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * (groups * 128)
    inner = tl.arange(0, 4 * BLOCK_TILES)
    byte = (inner % 4)[:, None] + 4 * tl.arange(0, 64)[None, :]

    total = tl.zeros((BLOCK_TOKENS, 64), tl.int32)
    for position in tl.range(begin, end, BLOCK_TILES, num_stages=NUM_STAGES):
        tile = position + inner // 4
        stored = tile < end
        column = tl.load(index + tile, mask=stored, other=0) * 16 + inner % 4
        # Of missing tiles the activations are 0, so the weights may be: zeros come for free with an
        # asynchronous copy, other values cost a select a byte.
        packed = tl.load(tiles + tile[:, None] * 256 + byte, mask=stored[:, None], other=0)
        for plane in tl.static_range(4):
            activations = tl.load(
                q_rows + (column + 4 * plane)[None, :], mask=stored[None, :], other=0
            )
            trits = trits_of_plane(packed, plane, INSTRUCTION)
            total = tl.dot(activations, trits, acc=total, out_dtype=tl.int32)

    store_tile(
        total,
        activation_scale,
        None,
        weight_scale,
        residual,
        output,
        tl.program_id(0) * BLOCK_TOKENS,
        tl.program_id(1) * 64,
        tokens,
        rows,
        BLOCK_TOKENS,
        64,
        SCALE_PER_ROW,
    )


def block_sparse_linear(
    activations: Activations,
    tiles: Tensor,
    index: Tensor,
    start: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    rows: int,
    columns: int,
    family: Family,
) -> Tensor:
    """Ternary matmul over the stored tiles; arguments as in ``backend.Backend``.

    Args:
        activations: Quantised tokens.
        tiles: uint8 ``[count, 256]``.
        index: int32 ``[count]``.
        start: int32 ``[row blocks + 1]``.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[tokens, rows]`` or ``None``.
        rows: Rows of the matrix.
        columns: Columns of the matrix.
        family: Of the GPU.

    Returns:
        float32 ``[tokens, rows]``.
    """
    q = activations.q
    tokens, padded_columns = q.shape
    output = torch.empty((tokens, rows), dtype=torch.float32, device=q.device)
    if tokens == 0:
        return output
    row_blocks = start.shape[0] - 1
    shared: dict[str, Any] = {
        "SCALE_PER_ROW": weight_scale.shape[0] > 1,
        "INSTRUCTION": DOT4_INSTRUCTION[family],
        "enable_fp_fusion": False,
    }
    if int8_matrix_units(family) and tokens > MOST_GEMV_TOKENS:
        gemm = lookup("block_sparse_gemm", family, rows, columns, tokens)
        assert isinstance(gemm, BlockSparseGemmConfig)
        block_sparse_gemm[(triton.cdiv(tokens, gemm.block_tokens), row_blocks)](
            q,
            activations.scale,
            tiles,
            index,
            start,
            weight_scale,
            residual,
            output,
            tokens,
            rows,
            padded_columns // 128,
            BLOCK_TOKENS=gemm.block_tokens,
            BLOCK_TILES=gemm.block_tiles,
            NUM_STAGES=gemm.num_stages,
            num_warps=gemm.num_warps,
            **shared,
        )
        return output
    config = lookup("block_sparse", family, rows, columns, tokens)
    assert isinstance(config, BlockSparseConfig)
    together = min(config.tokens, power_of_two(tokens))
    block_sparse_gemv[(triton.cdiv(tokens, together), row_blocks * (64 // config.block_rows))](
        as_words(q),
        activations.scale,
        as_words(tiles),
        index,
        start,
        weight_scale,
        residual,
        output,
        tokens,
        rows,
        padded_columns // 128,
        TOKENS=together,
        BLOCK_ROWS=config.block_rows,
        BLOCK_TILES=config.block_tiles,
        num_warps=config.num_warps,
        num_stages=1,
        **shared,
    )
    return output
