"""Products with AMX tiles, ternary and int8: ragged tiles and turns, extremes, row ends.

`test_native_tiles.py` holds what all levels share.
"""

from __future__ import annotations

import pytest
import torch
from agentforge_kernels.backend import Activations
from agentforge_kernels.format import pack
from agentforge_kernels.native_backend import NativeBackend
from torch import Tensor

from tests.kernels.native_cases import (
    LEVELS,
    activations_of,
    expected,
    extension,
    level_in_use,
    random_trits,
    unaligned,
)

# The best level of this machine: AMX where there is any; without it the same cases hold of another.
LEVEL = max(LEVELS)
# Tiles begin at 13 tokens, and at 16 for int8; a turn has at most 256.
TOKENS = [*range(1, 34), 48, 49, 255, 256, 257, 300]

both_thread_counts = pytest.mark.parametrize("threads", [1, 2])


def random_int8(first: int, second: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + first * 8191 + second)
    return torch.randint(-128, 128, (first, second), generator=generator, dtype=torch.int8)


def check(activations: Activations, threads: int, rows: int, columns: int, seed: int) -> None:
    """Ternary and int8 product of some tokens against the reference."""
    generator = torch.Generator().manual_seed(seed)
    backend = NativeBackend(threads)
    scale = torch.rand(rows if seed % 2 else 1, generator=generator) + 0.1
    tokens = activations.q.shape[0]
    residual = torch.randn(tokens, rows, generator=generator) if seed % 3 else None
    trits, weight = random_trits(rows, columns, seed), random_int8(rows, columns, seed)
    panels, layout = backend.lay_out_dense(pack(trits, scale).codes, columns)
    lanes, lanes_layout = backend.lay_out_int8(weight)
    with level_in_use(LEVEL):
        ternary = backend.ternary_linear(
            activations, panels, layout, scale, residual, rows, columns
        )
        int8 = backend.int8_linear(activations, lanes, lanes_layout, scale, residual, rows, columns)
    assert torch.equal(ternary, expected(activations, trits, scale, residual)), tokens
    assert torch.equal(int8, expected(activations, weight, scale, residual)), tokens


@both_thread_counts
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(1, 1), (63, 15), (64, 64), (65, 80), (63, 176), (130, 1008), (65, 1024), (64, 1088)],
)
def test_ragged_tokens_and_columns_equal_the_reference(
    threads: int, rows: int, columns: int
) -> None:
    for tokens in TOKENS:
        check(activations_of(random_int8(tokens, columns, 1)), threads, rows, columns, tokens)


@both_thread_counts
def test_turns_of_few_tokens_equal_the_reference(threads: int) -> None:
    # A turn's activations are at most 1 MB: 64 tokens of so many columns.
    for tokens in (63, 64, 65, 130):
        check(activations_of(random_int8(tokens, 16400, 1)), threads, 65, 16400, tokens)


@pytest.mark.parametrize("value", [127, -127, -128])
@pytest.mark.parametrize("columns", [64, 1025, 4096, 16384, 65536, 65552])
def test_extreme_sums_are_exact(value: int, columns: int) -> None:
    # Beyond 65,536 columns nested masks leave 32 bits, and vpdpbusd takes over.
    weights = torch.ones(3, columns, dtype=torch.int8)
    weights[1] = -1
    weights[2, ::2] = -1
    scale = torch.ones(1)
    backend = NativeBackend(1)
    panels, layout = backend.lay_out_dense(pack(weights, scale).codes, columns)
    activations = activations_of(torch.full((17, columns), value, dtype=torch.int8))
    with level_in_use(LEVEL):
        output = backend.ternary_linear(activations, panels, layout, scale, None, 3, columns)
    assert torch.equal(output, expected(activations, weights, scale))


@both_thread_counts
def test_unaligned_activations_with_another_stride_equal_the_reference(threads: int) -> None:
    for tokens in (13, 16, 31, 257):
        for columns in (100, 640):
            activations = activations_of(random_int8(tokens, columns, 1))
            check(activations._replace(q=unaligned(activations.q)), threads, 100, columns, tokens)


@pytest.mark.parametrize("columns", [16, 48, 80, 144])
def test_nothing_is_read_beyond_a_row_of_activations(columns: int) -> None:
    # The entry point asks for whole groups of 16 columns; what follows is another token's.
    tokens, rows = 19, 64
    trits = random_trits(rows, columns)
    scale, output = torch.ones(1), torch.empty(19, 64)
    panels, _ = NativeBackend(1).lay_out_dense(pack(trits, scale).codes, columns)
    q = random_int8(tokens, columns, 3)
    activations = activations_of(q)
    addresses = activations.scale.data_ptr(), activations.sum.data_ptr()
    with level_in_use(LEVEL):
        extension.dense_linear(
            q.data_ptr(), columns, *addresses, tokens, panels.data_ptr(), scale.data_ptr(), False,
            0, output.data_ptr(), rows, columns, 1,
        )  # fmt: skip
    assert torch.equal(output, expected(activations, trits, scale))


@both_thread_counts
@pytest.mark.parametrize("tokens", [1, 12, 13, 256])
def test_the_limit_of_the_benchmark_runs_and_counts(threads: int, tokens: int) -> None:
    with level_in_use(LEVEL):
        known = extension.isa_name(LEVEL) != "portable"
        assert (extension.measure_multiply(1 << 20, threads, tokens) > 0.0) == known
