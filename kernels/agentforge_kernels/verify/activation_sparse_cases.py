"""Kernel cases of the activation-sparse kernels.

Seed 0, 3, ...: drawn numbers, four fifths of the activations zero; 1, 4, ...: all activations +127
or -127, all weights 1; 2, 5, ...: no activation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agentforge_kernels.format import pack, padded
from agentforge_kernels.sparse import to_columns
from agentforge_kernels.triton import activation_sparse
from agentforge_kernels.triton.configs import ActivationSparseConfig
from agentforge_kernels.verify.cases import Arguments, KernelCase, Work
from agentforge_kernels.verify.sparse_case_inputs import (
    INSTRUCTIONS,
    POINTERS,
    assert_equal,
    draw_activations,
    expected_outputs,
    outputs,
    shipped,
    tensor_of,
)
from agentforge_kernels.verify.targets import TARGETS

# Activation-sparse: columns of two chunks, the second not full; 600 rows are five groups, one and a
# quarter of the blocks of 32 words, and rows beyond 600 only padding.
COLUMN_MATRIX = (600, 900)
COLUMN_TOKENS = 2


def _sparse_activations(generator: torch.Generator, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token 0 without activations in most columns; token 1 without any."""
    q, scale, _ = draw_activations(generator, COLUMN_TOKENS, COLUMN_MATRIX[1], kind)
    if kind == 0:
        q[0, torch.rand(q.shape[1], generator=generator) < 0.8] = 0
    q[1] = 0
    return q, scale, q.sum(dim=1, dtype=torch.int32)


def _gather_build(chunk: int) -> Callable[[int], Arguments]:
    def build(seed: int) -> Arguments:
        q, _, _ = _sparse_activations(torch.Generator().manual_seed(seed), seed % 3)
        shape = (COLUMN_TOKENS, -(-q.shape[1] // chunk), chunk)
        return {
            "q": q,
            "column": torch.full(shape, -1, dtype=torch.int32),
            "value": torch.full(shape, -1, dtype=torch.int8),
            "count": torch.full(shape[:2], -1, dtype=torch.int32),
            "groups": q.shape[1] // 128,
        }

    return build


def _lists(q: Tensor, chunk: int, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Columns, values and counts as ``gather_nonzero`` makes them; -1 where nothing is written."""
    tokens, columns = q.shape
    chunks = -(-columns // chunk)
    column = torch.full((tokens, chunks, chunk), -1, dtype=torch.int32)
    value = torch.full((tokens, chunks, chunk), -1, dtype=torch.int8)
    count = torch.zeros((tokens, chunks), dtype=torch.int32)
    for token in range(tokens):
        for place in range(chunks):
            part = q[token, place * chunk : (place + 1) * chunk]
            found = part.nonzero()[:, 0]
            length = padded(len(found), multiple)
            column[token, place, :length] = 0
            value[token, place, :length] = 0
            column[token, place, : len(found)] = (found + place * chunk).int()
            value[token, place, : len(found)] = part[found]
            count[token, place] = length
    return column, value, count


def _gather_check(multiple: int) -> Callable[[Arguments, Arguments], None]:
    def check(before: Arguments, after: Arguments) -> None:
        chunk = tensor_of(before, "column").shape[2]
        expected = _lists(tensor_of(before, "q"), chunk, multiple)
        for name, value in zip(("column", "value", "count"), expected, strict=True):
            assert_equal(name, tensor_of(after, name), value)

    return check


def _slot_rows(groups: int) -> Tensor:
    """Row of each slot of the partial sums: word, field and byte to a row of the matrix."""
    word, field, byte = torch.meshgrid(
        torch.arange(8 * groups), torch.arange(4), torch.arange(4), indexing="ij"
    )
    return (128 * (word // 8) + 32 * field + 4 * (word % 8) + byte).reshape(-1)


def _columns_build(config: ActivationSparseConfig) -> Callable[[int], Arguments]:
    def build(seed: int) -> Arguments:
        generator = torch.Generator().manual_seed(seed)
        q, _, _ = _sparse_activations(generator, seed % 3)
        column, value, count = _lists(q, config.chunk, 4 * config.block_fours)
        trits = torch.randint(-1, 2, COLUMN_MATRIX, generator=generator, dtype=torch.int8)
        if seed % 3 == 1:
            trits = torch.ones_like(trits)
        codes = to_columns(pack(trits, 1.0)).codes
        slots = codes.shape[1] * 4
        return {
            "column": column.clamp(min=0),
            "value": value.view(torch.int32),
            "count": count,
            "codes": codes.view(torch.int32),
            "partial": torch.full((*count.shape, slots), -1, dtype=torch.int32),
            "groups": slots // 128,
        }

    return build


def _columns_check(before: Arguments, after: Arguments) -> None:
    column, count = tensor_of(before, "column").long(), tensor_of(before, "count")
    value = tensor_of(before, "value").view(torch.int8).long()
    lines = tensor_of(before, "codes").view(torch.uint8)
    groups = lines.shape[1] // 32
    planes = lines.view(-1, groups, 1, 32).long() >> torch.tensor([0, 2, 4, 6]).view(1, 1, 4, 1)
    codes = (planes & 3).reshape(lines.shape[0], -1)
    expected = torch.zeros_like(tensor_of(before, "partial"), dtype=torch.int64)
    for token in range(count.shape[0]):
        for chunk in range(count.shape[1]):
            length = int(count[token, chunk])
            sums = value[token, chunk, :length] @ codes[column[token, chunk, :length]]
            expected[token, chunk] = sums[_slot_rows(groups)]
    assert_equal("partial", tensor_of(after, "partial").long(), expected)


def _add_build(seed: int) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    rows = COLUMN_MATRIX[0]
    slots, chunks = padded(rows), 3
    largest = 2**28 if seed % 3 == 1 else 2**20
    partial = torch.randint(-largest, largest, (COLUMN_TOKENS, chunks, slots), generator=generator)
    return {
        "partial": partial.int(),
        "activation_scale": torch.rand(COLUMN_TOKENS, generator=generator),
        "activation_sum": torch.randint(-1000, 1000, (COLUMN_TOKENS,), generator=generator).int(),
        "weight_scale": torch.rand(rows, generator=generator),
        **outputs(generator, COLUMN_TOKENS, rows, True),
        "chunks": chunks,
        "rows": rows,
        "groups": slots // 128,
    }


def _add_check(before: Arguments, after: Arguments) -> None:
    rows = COLUMN_MATRIX[0]
    total = (
        tensor_of(before, "partial").long().sum(dim=1)
        - tensor_of(before, "activation_sum")[:, None]
    )
    by_row = torch.empty_like(total)
    by_row[:, _slot_rows(total.shape[1] // 128)] = total
    expected = expected_outputs(
        by_row[:, :rows],
        tensor_of(before, "activation_scale"),
        tensor_of(before, "weight_scale"),
        before,
    )
    assert_equal("output", tensor_of(after, "output"), expected)


def _cases() -> tuple[KernelCase, ...]:
    cases: list[KernelCase] = []
    groups = padded(COLUMN_MATRIX[0]) // 128
    for config, targets in shipped("activation_sparse").items():
        assert isinstance(config, ActivationSparseConfig)
        chunks = -(-padded(COLUMN_MATRIX[1]) // config.chunk)
        multiple = 4 * config.block_fours
        wide = TARGETS[targets[0]].warp_size == 64
        suffix = "_wave64" if wide else ""
        cases += [
            KernelCase(
                name=f"gather_nonzero_{config.chunk}_{multiple}{suffix}",
                kernel=activation_sparse.gather_nonzero,
                constexprs={"CHUNK": config.chunk, "MULTIPLE": multiple},
                aligned=frozenset({"q", "column", "value", "count"}),
                grid=(chunks, COLUMN_TOKENS, 1),
                build=_gather_build(config.chunk),
                check=_gather_check(multiple),
                targets=targets,
                work=Work(config.chunk, 1.0, "activation"),
                num_warps=2 if wide else 4,
            ),
            KernelCase(
                name=f"multiply_columns_{config.chunk}_{config.block_words}x{config.block_fours}"
                f"_w{config.num_warps}",
                kernel=activation_sparse.multiply_columns,
                constexprs={
                    "CHUNK": config.chunk,
                    "BLOCK_WORDS": config.block_words,
                    "BLOCK_FOURS": config.block_fours,
                },
                family_constexprs=INSTRUCTIONS,
                aligned=frozenset({"column", "value", "count", "codes", "partial"}),
                grid=(-(-8 * groups // config.block_words), chunks, COLUMN_TOKENS),
                build=_columns_build(config),
                check=_columns_check,
                targets=targets,
                work=Work(multiple * config.block_words * 16, item="active weight"),
                num_warps=config.num_warps,
            ),
            KernelCase(
                name=f"add_chunks{suffix}",
                kernel=activation_sparse.add_chunks,
                constexprs={"BLOCK_ROWS": 128, "SCALE_PER_ROW": True},
                aligned=POINTERS & set(activation_sparse.add_chunks.arg_names),
                grid=(groups, COLUMN_TOKENS, 1),
                build=_add_build,
                check=_add_check,
                targets=targets,
                work=Work(128, 4.0, "sum"),
                num_warps=1,
            ),
        ]
    return tuple(cases)


CASES = _cases()
"""Every shipped configuration."""
