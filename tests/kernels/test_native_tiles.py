"""Products of many tokens: token counts around tile sizes, odd columns, extremes, odd addresses.

Levels have ways of their own from some number of tokens on: AMX tiles, the portable tables.
"""

from __future__ import annotations

import pytest
import torch
from agentforge_kernels.backend import Activations
from agentforge_kernels.format import pack
from agentforge_kernels.native_backend import NativeBackend
from torch import Tensor

from tests.kernels.native_cases import (
    LEVEL_NAMES,
    LEVELS,
    activations_of,
    expected,
    level_in_use,
    random_trits,
    unaligned,
)

every_level = pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)
TOKENS = [*range(10, 36), 47, 48, 49, 255, 256, 257, 300, 515]


def random_q(tokens: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(tokens * 4099 + columns)
    return torch.randint(-128, 128, (tokens, columns), generator=generator, dtype=torch.int8)


def check(
    level: int,
    q: Tensor,
    trits: Tensor,
    threads: int,
    residual: Tensor | None = None,
    activations: Activations | None = None,
) -> None:
    rows, columns = trits.shape
    scale = torch.rand(rows, generator=torch.Generator().manual_seed(1)) + 0.5
    given = activations_of(q) if activations is None else activations
    backend = NativeBackend(threads)
    panels, layout = backend.lay_out_dense(pack(trits, scale).codes, columns)
    with level_in_use(level):
        found = backend.ternary_linear(given, panels, layout, scale, residual, rows, columns)
    assert torch.equal(found, expected(given, trits, scale, residual))


@every_level
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (63, 63), (65, 130), (200, 527)])
def test_every_number_of_tokens(level: int, threads: int, rows: int, columns: int) -> None:
    trits = random_trits(rows, columns)
    for tokens in TOKENS:
        residual = torch.randn(tokens, rows) if tokens % 2 else None
        check(level, random_q(tokens, columns), trits, threads, residual)


@every_level
@pytest.mark.parametrize(
    "columns", [1, 15, 16, 17, 48, 64, 65, 112, 512, 513, 576, 1024, 1040, 4100]
)
def test_every_end_of_a_row(level: int, columns: int) -> None:
    trits = random_trits(130, columns)
    for tokens in (13, 16, 33):
        check(level, random_q(tokens, columns), trits, 1)


@every_level
@pytest.mark.parametrize("columns", [512, 16384, 65536, 65537])
def test_extreme_sums(level: int, columns: int) -> None:
    trits = torch.ones(66, columns, dtype=torch.int8)
    trits[1], trits[2] = -1, 0
    trits[65, ::2] = -1
    for value in (-128, -127, 127):
        q = torch.full((17, columns), value, dtype=torch.int8)
        q[3, ::2] = 127
        check(level, q, trits, 1)


@every_level
def test_odd_addresses_and_distances(level: int) -> None:
    columns, tokens = 300, 37
    trits = random_trits(70, columns)
    q = random_q(tokens, columns)
    plain = activations_of(q)
    moved = Activations(unaligned(plain.q), plain.scale, plain.sum)
    check(level, q, trits, 2, activations=moved)
