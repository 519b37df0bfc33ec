# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment,var-annotated,misc"
# (tuples of accumulators that grow while the kernel is compiled)
"""Ternary matvec that reads only the columns whose activation is not zero.

Three launches, none of which the host waits for: the numbers and values of the non-zero activations
are gathered, chunk by chunk; each chunk is multiplied; the chunks' integer sums are added. Sums go
through memory instead of atomic additions because these would need a fourth launch, for zeros.

The column form has 16 rows of one column in a word, so a word meets one activation only. Four
columns are taken at a time and their bytes transposed: then a word holds four columns of four rows,
one row a field, and dp4a does four products with int32 sums, exact for any number of columns: 0.85
instructions a weight, where one column at a time with sums in 16-bit halves takes 1.95.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from agentforge_kernels.backend import Activations
from agentforge_kernels.triton.configs import ActivationSparseConfig, lookup
from agentforge_kernels.triton.devices import DOT4_INSTRUCTION, Family
from agentforge_kernels.triton.dot4 import dot4
from agentforge_kernels.triton.epilogue import store_outputs
from agentforge_kernels.triton.packed_bytes import transpose_bytes
from agentforge_kernels.triton.words import as_words

MOST_PARTIAL_ELEMENTS = 1 << 24
"""Elements of the sums of chunks (64 MB) of a launch; more tokens are more launches."""
MOST_TOKENS = 32768
"""Tokens of a launch; the hardware's limit of this dimension of a grid is 65,535."""


@triton.jit(do_not_specialize=["groups"])
def gather_nonzero(
    q,
    column,
    value,
    count,
    groups,
    CHUNK: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """Lists of the non-zero activations of a chunk of columns; grid ``[chunks, tokens]``.

    A list is filled up to a whole number of ``MULTIPLE`` with column 0 and value 0, so that its
    reader needs no mask.

    Args:
        q: int8 ``[tokens, 128 * groups]``.
        column: int32 ``[tokens, chunks, CHUNK]``; receives column numbers, ascending.
        value: int8 ``[tokens, chunks, CHUNK]``; receives the activations.
        count: int32 ``[tokens, chunks]``; receives lengths, a multiple of ``MULTIPLE``.
        groups: Groups of 128 columns.
        CHUNK: Columns of a chunk; a multiple of ``MULTIPLE``.
        MULTIPLE: Of which lengths are whole numbers.
    """
    place = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    position = tl.arange(0, CHUNK)
    number = tl.program_id(0) * CHUNK + position
    columns = groups * 128
    q_row = q + tl.program_id(1).to(tl.int64) * columns
    activation = tl.load(q_row + number, mask=number < columns, other=0).to(tl.int32)
    nonzero = (activation != 0).to(tl.int32)
    after = tl.cumsum(nonzero, 0)
    length = tl.sum(nonzero, 0)
    whole = tl.cdiv(length, MULTIPLE) * MULTIPLE

    column_list = column + place.to(tl.int64) * CHUNK
    value_list = value + place.to(tl.int64) * CHUNK
    tl.store(column_list + (after - 1), number, mask=nonzero != 0)
    tl.store(value_list + (after - 1), activation.to(tl.int8), mask=nonzero != 0)
    filling = (position >= length) & (position < whole)
    tl.store(column_list + position, tl.zeros((CHUNK,), tl.int32), mask=filling)
    tl.store(value_list + position, tl.zeros((CHUNK,), tl.int8), mask=filling)
    tl.store(count + place, whole)


@triton.jit(do_not_specialize=["groups"])
def multiply_columns(
    column,
    value,
    count,
    codes,
    partial,
    groups,
    CHUNK: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    BLOCK_FOURS: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """Sums of one chunk; grid ``[ceil(8 * groups / BLOCK_WORDS), chunks, tokens]``.

    Args:
        column: int32 ``[tokens, chunks, CHUNK]``.
        value: int32 ``[tokens, chunks, CHUNK / 4]``: the int8 values as words.
        count: int32 ``[tokens, chunks]``, multiples of ``4 * BLOCK_FOURS``.
        codes: int32 ``[columns, 8 * groups]``: the column form as words.
        partial: int32 ``[tokens, chunks, 8 * groups, 16]``; receives ``sum(code * q)``, the 16 rows
            of a word together (:func:`add_chunks` knows their order).
        groups: Groups of 128 rows.
        CHUNK: Columns of a chunk.
        BLOCK_WORDS: Words of a column (16 rows each) of a program.
        BLOCK_FOURS: Fours of columns a step.
        INSTRUCTION: As for ``dot4``.
    """
    words = groups * 8
    word = tl.program_id(0) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
    four = tl.arange(0, BLOCK_FOURS)
    inside = (word < words)[None, :]
    place = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    length = tl.load(count + place)
    value_list = value + place * (CHUNK // 4) + four
    column_list = column + place * CHUNK + four * 4

    sums = ()
    for _ in tl.static_range(16):
        sums = sums + (tl.zeros((BLOCK_FOURS, BLOCK_WORDS), tl.int32),)
    for begin in range(0, length, 4 * BLOCK_FOURS):
        q = tl.load(value_list + begin // 4)[:, None]
        packed = ()
        for i in tl.static_range(4):
            number = tl.load(column_list + (begin + i))[:, None]
            line = codes + number.to(tl.int64) * words
            packed = packed + (tl.load(line + word[None, :], mask=inside, other=0),)
        transposed = transpose_bytes(packed[0], packed[1], packed[2], packed[3], INSTRUCTION)
        new_sums = ()
        for byte in tl.static_range(4):
            # Fields stay where they are, so their sums count 1, 4, 16 and, moved by two, 16 times;
            # at the top of a signed byte code 2 would be negative.
            fields = transposed[byte]
            new_sums = new_sums + (
                dot4(q, fields & 0x03030303, sums[4 * byte], INSTRUCTION),
                dot4(q, fields & 0x0C0C0C0C, sums[4 * byte + 1], INSTRUCTION),
                dot4(q, fields & 0x30303030, sums[4 * byte + 2], INSTRUCTION),
                dot4(q, (fields >> 2) & 0x30303030, sums[4 * byte + 3], INSTRUCTION),
            )
        sums = new_sums

    # One reduction of all 16 sums, [fours, words, field, byte], not 16 with barriers of their own.
    of_byte = ()
    for byte in tl.static_range(4):
        even = tl.join(sums[4 * byte], sums[4 * byte + 2] >> 4)
        odd = tl.join(sums[4 * byte + 1] >> 2, sums[4 * byte + 3] >> 4)
        fields = tl.reshape(tl.join(even, odd), (BLOCK_FOURS, BLOCK_WORDS, 4))
        of_byte = of_byte + (fields,)
    joined = tl.join(tl.join(of_byte[0], of_byte[2]), tl.join(of_byte[1], of_byte[3]))
    total = tl.sum(tl.reshape(joined, (BLOCK_FOURS, BLOCK_WORDS * 16)), 0)
    slot = tl.program_id(0) * (BLOCK_WORDS * 16) + tl.arange(0, BLOCK_WORDS * 16)
    tl.store(partial + place * (words * 16) + slot, total, mask=slot < words * 16)


@triton.jit(do_not_specialize=["chunks", "rows", "groups"])
def add_chunks(
    partial,
    activation_scale,
    activation_sum,
    weight_scale,
    residual,
    output,
    chunks,
    rows,
    groups,
    BLOCK_ROWS: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
):
    """Sums of all chunks to outputs; grid ``[ceil(128 * groups / BLOCK_ROWS), tokens]``.

    Args:
        partial: int32 ``[tokens, chunks, 8 * groups, 16]``.
        activation_scale: float32 ``[tokens]``.
        activation_sum: int32 ``[tokens]``.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[tokens, rows]`` or ``None``.
        output: float32 ``[tokens, rows]``.
        chunks: Chunks of columns.
        rows: Rows of the matrix.
        groups: Groups of 128 rows.
        BLOCK_ROWS: Sums of a program.
        SCALE_PER_ROW: Whether ``weight_scale`` holds one scale a row.
    """
    token = tl.program_id(1)
    slots = groups * 128
    slot = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = slot < slots
    sums = partial + token.to(tl.int64) * chunks * slots + slot
    total = tl.zeros((BLOCK_ROWS,), tl.int32)
    for chunk in range(chunks):
        total += tl.load(sums + chunk * slots, mask=inside, other=0)

    # Slot [group, word of 8, field, byte] is row 128 group + 32 field + 4 word + byte.
    row = (slot & -128) | ((slot & 12) << 3) | ((slot & 112) >> 2) | (slot & 3)
    store_outputs(
        total - tl.load(activation_sum + token),
        tl.load(activation_scale + token),
        weight_scale,
        residual,
        output,
        row,
        token.to(tl.int64) * rows + row,
        row < rows,
        SCALE_PER_ROW,
    )


def activation_sparse_linear(
    activations: Activations,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    rows: int,
    columns: int,
    family: Family,
) -> Tensor:
    """Ternary matmul that reads only columns with an activation; as in ``backend.Backend``.

    Exact for any number of zeros, none included. Every token reads its own columns, so many tokens
    at once share nothing: the dense matmul is the one for them.

    Args:
        activations: Quantised tokens.
        codes: uint8 ``[columns, padded(rows) / 4]``, the stored column form.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[tokens, rows]`` or ``None``.
        rows: Rows of the matrix.
        columns: Columns of the matrix.
        family: Of the GPU.

    Returns:
        float32 ``[tokens, rows]``.
    """
    tokens, padded_columns = activations.q.shape
    device = activations.q.device
    output = torch.empty((tokens, rows), dtype=torch.float32, device=device)
    config = lookup("activation_sparse", family, rows, columns, 1)
    assert isinstance(config, ActivationSparseConfig)
    chunks = triton.cdiv(padded_columns, config.chunk)
    row_groups = codes.shape[1] // 32
    slots = row_groups * 128
    at_once = max(1, min(tokens, MOST_TOKENS, MOST_PARTIAL_ELEMENTS // (chunks * slots)))
    shape = (at_once, chunks, config.chunk)
    column = torch.empty(shape, dtype=torch.int32, device=device)
    value = torch.empty(shape, dtype=torch.int8, device=device)
    count = torch.empty(shape[:2], dtype=torch.int32, device=device)
    partial = torch.empty((at_once, chunks, slots), dtype=torch.int32, device=device)
    code_words, value_words = as_words(codes), as_words(value)
    warps = 2 if family == "cdna" else 4
    for first in range(0, tokens, at_once):
        some = slice(first, min(first + at_once, tokens))
        number = some.stop - some.start
        gather_nonzero[(chunks, number)](
            activations.q[some],
            column,
            value,
            count,
            padded_columns // 128,
            CHUNK=config.chunk,
            MULTIPLE=4 * config.block_fours,
            num_warps=warps,
        )
        multiply_columns[(triton.cdiv(row_groups * 8, config.block_words), chunks, number)](
            column,
            value_words,
            count,
            code_words,
            partial,
            row_groups,
            CHUNK=config.chunk,
            BLOCK_WORDS=config.block_words,
            BLOCK_FOURS=config.block_fours,
            INSTRUCTION=DOT4_INSTRUCTION[family],
            num_warps=config.num_warps,
            num_stages=1,
        )
        add_chunks[(row_groups, number)](
            partial,
            activations.scale[some],
            activations.sum[some],
            weight_scale,
            None if residual is None else residual[some],
            output[some],
            chunks,
            rows,
            row_groups,
            BLOCK_ROWS=128,
            SCALE_PER_ROW=weight_scale.shape[0] > 1,
            num_warps=1,
            enable_fp_fusion=False,
        )
    return output
