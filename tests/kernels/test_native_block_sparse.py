from __future__ import annotations

import pytest
import torch
from agentforge_kernels.backend import Activations
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import pack
from agentforge_kernels.native_backend import NativeBackend
from agentforge_kernels.sparse import BlockSparseTernary, tile_grid, to_block_sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.native_cases import (
    LEVEL_NAMES,
    LEVELS,
    activations_of,
    expected,
    extension,
    level_in_use,
    random_trits,
    unaligned,
)

all_levels = pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)

SHAPES = [(1, 1), (63, 15), (64, 16), (65, 33), (100, 70), (130, 1500), (330, 512)]
TOKENS = [1, 2, 3, 5, 6, 7, 12, 13, 33]


def sparse_trits(rows: int, columns: int, zeros: float, seed: int = 0) -> Tensor:
    """Random trits, a share ``zeros`` of whose 64 x 16 tiles are zero."""
    generator = torch.Generator().manual_seed(seed + 31 * rows + columns)
    stored = torch.rand(tile_grid(rows, columns), generator=generator) >= zeros
    mask = stored.repeat_interleave(64, 0).repeat_interleave(16, 1)[:rows, :columns]
    return random_trits(rows, columns, seed) * mask.to(torch.int8)


def random_q(tokens: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + tokens * 8191 + columns)
    return torch.randint(-128, 128, (tokens, columns), generator=generator, dtype=torch.int8)


def run(
    backend: NativeBackend,
    activations: Activations,
    weight: BlockSparseTernary,
    residual: Tensor | None = None,
) -> Tensor:
    return backend.ternary_linear_block_sparse(
        activations,
        weight.tiles,
        weight.index,
        weight.start,
        weight.scale,
        residual,
        weight.rows,
        weight.columns,
    )


def check(
    q: Tensor, trits: Tensor, scale: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Compare every level and one and two threads with the reference; returns the output."""
    scale = torch.tensor([0.5]) if scale is None else scale
    weight = to_block_sparse(pack(trits, scale))
    activations = activations_of(q)
    wanted = expected(activations, trits, scale, residual)
    for level in LEVELS:
        with level_in_use(level):
            for threads in (1, 2):
                output = run(NativeBackend(threads), activations, weight, residual)
                assert torch.equal(output, wanted), (extension.isa_name(level), threads, len(q))
    return wanted


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_token_count_equals_the_reference(rows: int, columns: int) -> None:
    trits = sparse_trits(rows, columns, 0.4)
    generator = torch.Generator().manual_seed(7)
    for tokens in TOKENS:
        scale = torch.rand(rows if tokens % 2 == 0 else 1, generator=generator) + 0.1
        residual = torch.randn(tokens, rows, generator=generator) if tokens % 3 else None
        check(random_q(tokens, columns), trits, scale, residual)


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 1025, 20000])
def test_extreme_sums_are_exact(columns: int) -> None:
    trits = torch.ones(131, columns, dtype=torch.int8)
    trits[64:128] = 0  # a row block without tiles
    trits[128] = -1
    for value in (127, -127, -128, 0):
        for tokens in (1, 2, 6):
            output = check(torch.full((tokens, columns), value, dtype=torch.int8), trits)
            assert not output[:, 64:128].any()


def test_one_extreme_column_of_a_tile_at_a_time() -> None:
    columns = 512
    trits = torch.where(torch.arange(columns) % 2 == 0, 1, -1).to(torch.int8).repeat(64, 1)
    for column in range(16):
        q = torch.where(torch.arange(columns) % 16 == column, -128, 0).to(torch.int8)
        for tokens in (1, 6):
            check(q.repeat(tokens, 1), trits)


def test_a_matrix_without_tiles_gives_the_residual() -> None:
    residual = torch.randn(7, 130)
    for tokens in (1, 7):
        zero = torch.zeros(130, 200, dtype=torch.int8)
        output = check(random_q(tokens, 200), zero, residual=residual[:tokens])
        assert torch.equal(output, residual[:tokens])


def test_row_blocks_of_very_different_size() -> None:
    # Threads share tiles, not rows: one full block, one tile in the last one, the rest empty.
    trits = torch.zeros(64 * 9, 2048, dtype=torch.int8)
    trits[:64] = random_trits(64, 2048)
    trits[-1, 100] = 1
    for tokens in (1, 4, 40):
        check(random_q(tokens, 2048), trits)


def test_more_columns_than_scaled_fields_can_sum() -> None:
    # Rows 48 to 63 of 64 count 64 times on the way: safe up to 131,071 columns of code 2.
    columns = 131072 + 40
    trits = torch.ones(50, columns, dtype=torch.int8)
    trits[1::2] = -1
    trits[:, 1600:1616] = 0
    check(torch.full((1, columns), -128, dtype=torch.int8), trits)


def test_more_tokens_than_the_scratch_holds_at_once() -> None:
    columns, tokens = 131072, 200  # 32 MB are 160 tokens or more, packed and with their sums
    check(random_q(tokens, 512).repeat(1, columns // 512), sparse_trits(1, columns, 0.98))


@all_levels
def test_unaligned_tensors_give_the_same_result(level: int) -> None:
    trits = sparse_trits(200, 300, 0.3)
    weight = to_block_sparse(pack(trits, torch.rand(200)))
    backend = NativeBackend(2)
    with level_in_use(level):
        for tokens in (1, 3, 9):
            activations = activations_of(random_q(tokens, 300))
            residual = torch.randn(tokens, 200)
            output = backend.ternary_linear_block_sparse(
                activations._replace(
                    q=unaligned(activations.q),
                    scale=unaligned(activations.scale),
                    sum=unaligned(activations.sum),
                ),
                unaligned(weight.tiles),
                unaligned(weight.index),
                unaligned(weight.start),
                unaligned(weight.scale),
                unaligned(residual),
                200,
                300,
            )
            assert torch.equal(output, expected(activations, trits, weight.scale, residual))


@all_levels
def test_kernels_read_laid_out_tiles_at_any_address(level: int) -> None:
    # The backend lays tiles out itself, aligned; a runtime may place them in a block of its own.
    trits = sparse_trits(130, 700, 0.5)
    weight = to_block_sparse(pack(trits, 1.0))
    tiles = unaligned(NativeBackend(1).lay_out_tiles(weight.tiles)[0])
    with level_in_use(level):
        for tokens in (1, 5):
            activations = activations_of(random_q(tokens, 700))
            q, scale, total = activations
            output = torch.zeros(tokens, 130)
            first_bad = extension.block_sparse_linear(
                q.data_ptr(), q.shape[1], scale.data_ptr(), total.data_ptr(), tokens,
                tiles.data_ptr(), weight.index.data_ptr(), weight.start.data_ptr(), weight.count,
                weight.scale.data_ptr(), False, 0, output.data_ptr(), 130, 700, 1,
            )  # fmt: skip
            assert first_bad == -1
            assert torch.equal(output, expected(activations, trits, weight.scale))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 400),
    tokens=st.integers(1, 20),
    zeros=st.floats(0, 1),
    extreme=st.booleans(),
    per_row=st.booleans(),
    with_residual=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(
    rows: int,
    columns: int,
    tokens: int,
    zeros: float,
    extreme: bool,
    per_row: bool,
    with_residual: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(rows if per_row else 1, generator=generator)
    residual = torch.randn(tokens, rows, generator=generator) if with_residual else None
    q = random_q(tokens, columns, seed)
    if extreme:
        q = torch.where(q < 0, -128, 127).to(torch.int8)
    check(q, sparse_trits(rows, columns, zeros, seed), scale, residual)


@all_levels
@pytest.mark.parametrize("tokens", [1, 8])
def test_a_token_with_scale_nan_is_nan_and_the_others_are_not(level: int, tokens: int) -> None:
    trits = sparse_trits(150, 200, 0.5)
    trits[64:128] = 0  # NaN also where nothing is multiplied
    weight = to_block_sparse(pack(trits, 1.0))
    activations = activations_of(random_q(tokens, 200))
    activations.scale[tokens // 2] = float("nan")
    with level_in_use(level):
        y = NativeBackend(1).ternary_linear_block_sparse(
            activations, weight.tiles, weight.index, weight.start, weight.scale, None, 150, 200
        )
    bad = torch.zeros(tokens, dtype=torch.bool)
    bad[tokens // 2] = True
    assert torch.equal(y.isnan().all(dim=1), bad)
    assert torch.equal(y.isnan().any(dim=1), bad)


def test_laid_out_tiles_are_blocks_of_the_panels_and_back() -> None:
    trits = random_trits(100, 70) | 1  # no zero, so that every tile is stored
    packed = pack(trits, 1.0)
    backend = NativeBackend(1)
    weight = to_block_sparse(packed)
    laid_out, layout = backend.lay_out_tiles(weight.tiles)
    assert layout == "panel_tiles"
    assert torch.equal(laid_out.flatten(), backend.lay_out_dense(packed.codes, 70)[0])
    assert torch.equal(backend.lay_out_tiles(laid_out)[0], weight.tiles)


def test_tiles_changed_in_place_are_laid_out_anew() -> None:
    trits = random_trits(64, 32)
    weight = to_block_sparse(pack(trits, 1.0))
    backend = NativeBackend(1)
    activations = activations_of(random_q(2, 32))
    before = run(backend, activations, weight)
    weight.tiles.copy_(to_block_sparse(pack(-trits, 1.0)).tiles)
    assert torch.equal(run(backend, activations, weight), -before)


@pytest.mark.parametrize("tokens", [1, 3])
def test_an_index_outside_the_matrix_is_an_error_not_a_crash(tokens: int) -> None:
    weight = to_block_sparse(pack(random_trits(130, 100), 1.0))
    backend = NativeBackend(1)
    activations = activations_of(random_q(tokens, 100))

    def given(index: Tensor, start: Tensor) -> Tensor:
        return backend.ternary_linear_block_sparse(
            activations, weight.tiles, index, start, weight.scale, None, 130, 100
        )

    assert weight.index.max() == 6
    for value in (7, 8, 1 << 20, 2**31 - 1, -1, -(2**31)):
        for tile in (0, weight.count // 2, weight.count - 1):
            index = weight.index.clone()
            index[tile] = value
            with pytest.raises(KernelInputError, match="index: values .*allowed: 0 to 6"):
                given(index, weight.start)
    for start in (
        [0, 7, 14, 20],
        [1, 7, 14, 21],
        [0, 14, 7, 21],
        [0, -7, 14, 21],
        [0, 7, 2**31 - 1, 21],
        [0, 8, 14, 21],  # more tiles than there are groups of columns
        [-(2**31), 7, 14, 21],
    ):
        with pytest.raises(KernelInputError, match="start: .*allowed: 0 to 21"):
            given(weight.index, torch.tensor(start, dtype=torch.int32))
    assert torch.equal(given(weight.index, weight.start), run(backend, activations, weight))


def test_arguments_are_refused_by_name() -> None:
    weight = to_block_sparse(pack(random_trits(70, 64), 1.0))
    backend = NativeBackend(1)
    good = activations_of(random_q(2, 64))
    one = torch.ones(1)
    tiles, index, start = weight.tiles, weight.index, weight.start

    def given(
        tiles: Tensor = tiles,
        index: Tensor = index,
        start: Tensor = start,
        scale: Tensor = one,
        residual: Tensor | None = None,
        rows: int = 70,
        columns: int = 64,
    ) -> None:
        backend.ternary_linear_block_sparse(
            good, tiles, index, start, scale, residual, rows, columns
        )

    given()
    for match, arguments in {
        "tiles: shape": {"tiles": tiles.flatten()},
        "tiles: .* values": {"tiles": tiles[:, :255]},
        "tiles: torch.int8": {"tiles": tiles.view(torch.int8)},
        "tiles: device meta": {"tiles": tiles.to("meta")},
        "index: 7 values; allowed: 8": {"index": index[:-1]},
        "index: torch.int64": {"index": index.long()},
        "start: 2 values; allowed: 3": {"start": start[:-1]},
        "start: torch.int64": {"start": start.long()},
        "weight_scale: 2": {"scale": torch.ones(2)},
        "residual: 5": {"residual": torch.zeros(5)},
        "rows: 0": {"rows": 0},
        "activations.q: shape": {"columns": 200},
    }.items():
        with pytest.raises(KernelInputError, match=match):
            given(**arguments)  # type: ignore[arg-type]


def test_strided_tensors_are_copied_not_misread() -> None:
    trits = sparse_trits(130, 100, 0.2)
    weight = to_block_sparse(pack(trits, 1.0))
    tiles = torch.cat([weight.tiles, weight.tiles], dim=1)[:, :256]
    assert not tiles.is_contiguous()
    activations = activations_of(random_q(3, 100))
    output = NativeBackend(1).ternary_linear_block_sparse(
        activations,
        tiles,
        weight.index.repeat_interleave(2)[::2],
        weight.start.repeat_interleave(2)[::2],
        weight.scale,
        None,
        130,
        100,
    )
    assert torch.equal(output, expected(activations, trits, weight.scale))


def test_no_tokens_give_an_empty_result() -> None:
    assert check(random_q(0, 64), random_trits(5, 64)).shape == (0, 5)
