"""Block-sparse and column forms: exact both ways, bytes of the native panels, faults named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from agentforge_kernels import native
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import PackedTernary, pack, padded, unpack
from agentforge_kernels.sparse import (
    MOST_COLUMNS,
    TILE_COLUMNS,
    TILE_ROWS,
    BlockSparseTernary,
    from_block_sparse,
    from_columns,
    tile_grid,
    to_block_sparse,
    to_columns,
    unpack_tiles,
    zero_tile_share,
)
from hypothesis import given, settings
from hypothesis import strategies as st

shapes = st.tuples(st.integers(1, 200), st.integers(1, 400))


def matrix(rows: int, columns: int, seed: int, zero_tiles: float = 0.5) -> PackedTernary:
    """Random trits of which about this share of tiles is zero, with a scale a row."""
    generator = torch.Generator().manual_seed(seed)
    trits = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
    kept = torch.rand(tile_grid(rows, columns), generator=generator) >= zero_tiles
    mask = kept.repeat_interleave(TILE_ROWS, 0).repeat_interleave(TILE_COLUMNS, 1)
    return pack(trits * mask[:rows, :columns], torch.rand(rows, generator=generator))


def equal(one: Any, other: Any) -> bool:
    """Whether two forms hold the same tensors (dtype, shape, values) and sizes."""
    for name in one.__slots__:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, torch.Tensor):
            if a.dtype != b.dtype or not torch.equal(a, b):
                return False
        elif a != b:
            return False
    return type(one) is type(other)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_both_forms_come_back_exactly(shape: tuple[int, int], seed: int, zeros: float) -> None:
    packed = matrix(*shape, seed, zeros)
    before = PackedTernary(packed.codes.clone(), packed.scale.clone(), packed.columns)
    blocks, columns = to_block_sparse(packed), to_columns(packed)
    assert equal(from_block_sparse(blocks), before)
    assert equal(from_columns(columns), before)
    assert equal(packed, before)
    again = unpack_tiles(blocks.tiles, blocks.index, blocks.start, *shape)
    assert torch.equal(again, unpack(before))
    assert (columns.rows, columns.columns) == shape


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 2**31))
def test_only_tiles_that_are_not_zero_are_stored(shape: tuple[int, int], seed: int) -> None:
    packed = matrix(*shape, seed)
    trits = unpack(packed)
    row_blocks, column_groups = tile_grid(*shape)
    places = [
        (i, j)
        for i in range(row_blocks)
        for j in range(column_groups)
        if trits[64 * i : 64 * i + 64, 16 * j : 16 * j + 16].any()
    ]
    blocks = to_block_sparse(packed)
    assert blocks.index.tolist() == [j for _, j in places]
    starts = [sum(i < block for i, _ in places) for block in range(row_blocks + 1)]
    assert blocks.start.tolist() == starts
    assert blocks.count == len(places)
    share = 1 - len(places) / (row_blocks * column_groups)
    assert zero_tile_share(packed) == pytest.approx(share, abs=1e-12)


def test_a_tile_is_64_little_endian_words_of_sixteen_columns() -> None:
    packed = matrix(70, 40, seed=3, zero_tiles=0.0)
    trits = torch.zeros(128, 48, dtype=torch.int32)
    trits[:70, :40] = unpack(packed)
    blocks = to_block_sparse(packed)
    tile = 0
    for block in range(2):
        for group in range(3):
            words = blocks.tiles[tile].view(torch.int32)
            for row in range(64):
                word = int(words[row]) & 0xFFFFFFFF
                for field in range(4):
                    four = word >> 2 * field & 0x03030303
                    for byte in range(4):
                        column = 16 * group + 4 * field + byte
                        weight = (four >> 8 * byte & 3) - 1
                        assert weight == trits[64 * block + row, column]
            tile += 1


def test_a_column_line_is_a_packed_row_of_the_transpose() -> None:
    packed = matrix(133, 7, seed=5)
    columns = to_columns(packed)
    assert columns.codes.shape == (7, padded(133) // 4)
    assert torch.equal(columns.codes, pack(unpack(packed).T, 1.0).codes)


@pytest.mark.skipif(native.extension is None, reason=str(native.unavailable_reason()))
def test_tiles_laid_out_are_the_blocks_of_the_native_panels() -> None:
    from agentforge_kernels.native_backend import NativeBackend

    packed = matrix(130, 90, seed=7, zero_tiles=0.0)
    backend = NativeBackend()
    panels, _ = backend.lay_out_dense(packed.codes, packed.columns)
    tiles, _ = backend.lay_out_tiles(to_block_sparse(packed).tiles)
    assert torch.equal(tiles.view(-1, 256), panels.view(-1, 256))


def test_a_zero_matrix_has_no_tiles_and_a_stored_zero_tile_does_no_harm() -> None:
    zero = pack(torch.zeros(65, 20, dtype=torch.int8), 1.0)
    blocks = to_block_sparse(zero)
    assert blocks.count == 0
    assert zero_tile_share(zero) == 1.0
    assert not unpack_tiles(blocks.tiles, blocks.index, blocks.start, 65, 20).any()
    stored = BlockSparseTernary(
        torch.full((1, 256), 0x55, dtype=torch.uint8),
        torch.tensor([1], dtype=torch.int32),
        torch.tensor([0, 1, 1], dtype=torch.int32),
        blocks.scale,
        65,
        20,
    )
    assert equal(from_block_sparse(stored), zero)


GOOD = to_block_sparse(matrix(100, 100, seed=9, zero_tiles=0.3))


def changed(tensor: torch.Tensor, place: int | tuple[int, ...], value: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


BLOCK_FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiles of another dtype": ("tiles", {"tiles": GOOD.tiles.to(torch.int8)}),
    "tiles of 128 bytes": ("tiles", {"tiles": GOOD.tiles[:, :128].contiguous()}),
    "tiles flat": ("tiles", {"tiles": GOOD.tiles.reshape(-1)}),
    "tiles without a dimension": ("tiles", {"tiles": GOOD.tiles[0, 0]}),
    "tiles strided": ("tiles", {"tiles": GOOD.tiles.repeat(1, 2)[:, ::2]}),
    "code 3": ("tiles", {"tiles": changed(GOOD.tiles, (0, 5), 0b01110101)}),
    "rows beyond the matrix": ("tiles", {"tiles": changed(GOOD.tiles, (-1, 4 * 36), 0x54)}),
    "index int64": ("index", {"index": GOOD.index.long()}),
    "index too short": ("index", {"index": GOOD.index[1:].clone()}),
    "index strided": ("index", {"index": GOOD.index.repeat_interleave(2)[::2]}),
    "index beyond the columns": ("index", {"index": changed(GOOD.index, -1, 7)}),
    "index negative": ("index", {"index": changed(GOOD.index, 0, -1)}),
    "index twice": ("index", {"index": changed(GOOD.index, 1, int(GOOD.index[0]))}),
    "start int64": ("start", {"start": GOOD.start.long()}),
    "start too long": ("start", {"start": torch.cat([GOOD.start, GOOD.start[-1:]])}),
    "start not at 0": ("start", {"start": changed(GOOD.start, 0, 1)}),
    "start ends early": ("start", {"start": changed(GOOD.start, -1, GOOD.count - 1)}),
    "start falls": ("start", {"start": changed(GOOD.start, 1, GOOD.count + 1)}),
    "start negative": ("start", {"start": changed(GOOD.start, 1, -1)}),
    "rows 0": ("rows", {"rows": 0}),
    "rows of another matrix": ("start", {"rows": 1000}),
    "columns 0": ("columns", {"columns": 0}),
    "columns absurd": ("columns", {"columns": MOST_COLUMNS + 1}),
    "scale NaN": ("scale", {"scale": torch.tensor([float("nan")])}),
    "scale float64": ("scale", {"scale": torch.ones(1, dtype=torch.float64)}),
    "scale of another matrix": ("scale", {"scale": torch.ones(99)}),
    "scale elsewhere": ("scale", {"scale": torch.ones(1, device="meta")}),
    "index elsewhere": ("index", {"index": GOOD.index.to("meta")}),
}


@pytest.mark.parametrize("fault", BLOCK_FAULTS)
def test_bad_tiles_are_refused_by_name(fault: str) -> None:
    named, fields = BLOCK_FAULTS[fault]
    with pytest.raises(KernelInputError, match=f"^{named}: .*allowed: "):
        replace(GOOD, **fields)


def test_columns_beyond_the_matrix_must_be_weight_0() -> None:
    blocks = to_block_sparse(matrix(64, 20, seed=1, zero_tiles=0.0))
    assert blocks.index.tolist() == [0, 1]
    # Column 20 of the second tile: byte 0, field 1.
    tiles = changed(blocks.tiles, (1, 0), int(blocks.tiles[1, 0]) & ~0b1100)
    with pytest.raises(KernelInputError, match=r"^tiles: padding .* beyond column 19"):
        replace(blocks, tiles=tiles)


COLUMNS = to_columns(matrix(100, 9, seed=2))


@pytest.mark.parametrize(
    ("named", "fields"),
    [
        ("codes", {"codes": COLUMNS.codes.to(torch.int8)}),
        ("codes", {"codes": COLUMNS.codes[0]}),
        ("codes", {"codes": COLUMNS.codes.repeat(1, 2)[:, ::2]}),
        ("codes", {"codes": changed(COLUMNS.codes, (3, 3), 0xFF)}),
        ("codes", {"codes": changed(COLUMNS.codes, (3, 31), 0)}),
        ("codes", {"rows": 129}),
        ("codes", {"rows": 0}),
        ("scale", {"scale": torch.ones(9)}),
        ("scale", {"scale": torch.tensor([float("inf")])}),
        ("scale", {"scale": torch.ones(1, device="meta")}),
    ],
)
def test_bad_columns_are_refused_by_name(named: str, fields: dict[str, Any]) -> None:
    with pytest.raises(KernelInputError, match=f"^{named}: .*allowed: "):
        replace(COLUMNS, **fields)


def test_the_dense_form_refuses_a_scale_on_another_device() -> None:
    good = matrix(3, 3, seed=0)
    with pytest.raises(KernelInputError, match="^scale: device meta"):
        PackedTernary(good.codes, good.scale.to("meta"), 3)


def test_too_many_columns_have_no_block_sparse_form() -> None:
    wide = pack(torch.zeros(1, MOST_COLUMNS + 1, dtype=torch.int8), 1.0)
    with pytest.raises(KernelInputError, match="^columns: "):
        to_block_sparse(wide)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 140),
    columns=st.integers(1, 70),
    index=st.lists(st.integers(-1, 5), max_size=6),
    start=st.lists(st.integers(-1, 6), min_size=2, max_size=4),
    weight=st.sampled_from([0x55, 0x55, 0x54, 0x57]),
)
def test_random_indices_are_an_error_or_a_matrix(
    rows: int, columns: int, index: list[int], start: list[int], weight: int
) -> None:
    tiles = torch.full((len(index), 256), 0x55, dtype=torch.uint8)
    tiles[:, 0] = weight  # column 0 of row 0 of each tile: -1, or no code at all
    fields = (
        tiles,
        torch.tensor(index, dtype=torch.int32),
        torch.tensor(start, dtype=torch.int32),
    )
    row_blocks, column_groups = tile_grid(rows, columns)
    blocks_of = [index[a:b] for a, b in zip(start[:-1], start[1:], strict=True)]
    good = (
        len(start) == row_blocks + 1
        and (start[0], start[-1]) == (0, len(index))
        and start == sorted(start)
        and all(block == sorted(set(block)) for block in blocks_of)
        and all(0 <= group < column_groups for group in index)
        and (weight != 0x57 or not index)
    )
    try:
        sparse = BlockSparseTernary(*fields, torch.ones(1), rows, columns)
    except KernelInputError:
        assert not good
        return
    assert good
    wanted = torch.zeros(rows, columns, dtype=torch.int8)
    for block, groups in enumerate(blocks_of):
        for group in groups:
            wanted[64 * block, 16 * group] = (weight & 3) - 1
    assert torch.equal(unpack(from_block_sparse(sparse)), wanted)
    assert torch.equal(unpack_tiles(*fields, rows, columns), wanted)
