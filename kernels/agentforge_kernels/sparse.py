"""The two sparse forms of a ternary matrix: tiles that are not zero, and packed columns.

Block-sparse: the matrix is cut into tiles of 64 rows x 16 columns, and tiles of weight 0 are left
out (compressed sparse rows over blocks, the "BSR" of sparse libraries). A tile is 256 bytes: 64
little-endian 32-bit words, word ``r`` for row ``r``; byte ``b`` of a word holds the code of column
``4 f + b`` at bits ``2 f``, ``f = 0..3``. So ``(word >> 2 f) & 0x03030303`` is four consecutive
columns for dp4a on a GPU; the native backend reorders the words of a tile once. From which share of
zero tiles it pays is measured (:mod:`agentforge_kernels.thresholds`): from 15-25 % on.

Columns: the dense form of the transposed matrix, so that a matvec may read only the columns whose
activation is not zero (after squared ReLU most are). It pays from 35-65 % zero activations. Zeros
spread at random over the weights (35-45 % in a trained ternary model) pay in neither form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import (
    CODES_ALLOWED,
    CODES_PER_BYTE,
    GROUP_BYTES,
    GROUP_COLUMNS,
    ZERO_WEIGHTS,
    PackedTernary,
    check_codes,
    check_device,
    check_scale,
    has_code_3,
    pack_codes,
    padded,
    unpack,
    unpack_codes,
)

TILE_ROWS = 64
TILE_COLUMNS = 16
TILE_BYTES = 256
WORD_BYTES = 4
MOST_COLUMNS = 1 << 22
"""Above, a sum of codes times activations (at most 256 a column) could leave 32 bits."""

_PLANES = GROUP_COLUMNS // GROUP_BYTES
_TILES_A_PLANE = GROUP_BYTES // TILE_COLUMNS
_TILES_A_GROUP = _PLANES * _TILES_A_PLANE


@dataclass(frozen=True, slots=True)
class BlockSparseTernary:
    """A ternary matrix as its tiles that are not zero.

    Tiles of weight 0 throughout are allowed, but :func:`to_block_sparse` makes none.

    Attributes:
        tiles: uint8 ``[count, 256]``, contiguous; rows and columns beyond the matrix are weight 0.
        index: int32 ``[count]``, contiguous: tile ``i`` begins at column ``16 * index[i]``;
            ascending inside a block of rows.
        start: int32 ``[ceil(rows / 64) + 1]``, contiguous: the tiles of rows ``64 i`` to
            ``64 i + 63`` are ``start[i]`` to ``start[i + 1] - 1``.
        scale: float32 ``[1]`` (one for the matrix) or ``[rows]``; the weight is ``scale * trit``.
        rows: Rows (output features).
        columns: Columns (input features).

    Raises:
        KernelInputError: A tensor of another dtype, shape, device or content than described.
    """

    tiles: Tensor
    index: Tensor
    start: Tensor
    scale: Tensor
    rows: int
    columns: int

    def __post_init__(self) -> None:
        _check_sizes(self.rows, self.columns)
        row_blocks = tile_grid(self.rows, self.columns)[0]
        count = self.tiles.shape[0] if self.tiles.ndim else 0
        _check_tensor("tiles", self.tiles, torch.uint8, [count, TILE_BYTES])
        _check_tensor("index", self.index, torch.int32, [count])
        _check_tensor("start", self.start, torch.int32, [row_blocks + 1])
        for name, tensor in (("index", self.index), ("start", self.start)):
            if tensor.device != self.tiles.device:
                raise KernelInputError(
                    name, f"device {tensor.device}", f"the device of the tiles, {self.tiles.device}"
                )
        _check_start(self.start, count)
        _check_index(self.index, self.start, self.columns)
        if has_code_3(self.tiles):
            raise KernelInputError("tiles", "a code 3", CODES_ALLOWED)
        _check_tile_padding(self)
        check_device(self.scale, self.tiles)
        check_scale(self.scale, self.rows)

    @property
    def count(self) -> int:
        """Tiles stored."""
        return int(self.tiles.shape[0])


@dataclass(frozen=True, slots=True)
class ColumnTernary:
    """A ternary matrix packed column by column.

    Attributes:
        codes: uint8 ``[columns, padded(rows) / 4]``, contiguous: line ``k`` is column ``k`` of the
            matrix in the plane order of :mod:`agentforge_kernels.format`, rows in groups of 128
            padded with weight 0.
        scale: float32 ``[1]`` or ``[rows]``; the weight is ``scale * trit``.
        rows: Rows before padding.

    Raises:
        KernelInputError: A tensor of another dtype, shape, device or content than described.
    """

    codes: Tensor
    scale: Tensor
    rows: int

    def __post_init__(self) -> None:
        check_codes(self.codes, self.rows, line="column", value="row")
        check_device(self.scale, self.codes)
        check_scale(self.scale, self.rows)

    @property
    def columns(self) -> int:
        """Columns (input features)."""
        return int(self.codes.shape[0])


def tile_grid(rows: int, columns: int) -> tuple[int, int]:
    """Blocks of rows and groups of columns that cover a matrix."""
    return -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)


def to_block_sparse(packed: PackedTernary) -> BlockSparseTernary:
    """The tiles of a matrix that are not zero; exact, on the device of ``packed``.

    Raises:
        KernelInputError: More than 2^22 columns, which no kernel multiplies exactly.
    """
    grid = _all_tiles(packed)
    stored = (grid != ZERO_WEIGHTS).any(dim=-1)
    start = torch.zeros(grid.shape[0] + 1, dtype=torch.int32, device=grid.device)
    start[1:] = stored.sum(dim=1).cumsum(dim=0)
    return BlockSparseTernary(
        tiles=grid[stored],
        index=stored.nonzero()[:, 1].to(torch.int32),
        start=start,
        scale=packed.scale,
        rows=packed.rows,
        columns=packed.columns,
    )


def from_block_sparse(sparse: BlockSparseTernary) -> PackedTernary:
    """The dense stored form; the inverse of :func:`to_block_sparse`."""
    rows, columns = sparse.rows, sparse.columns
    words = _words(sparse.tiles, sparse.index, sparse.start, rows, columns)
    # [row, stored group, plane, half plane, field, byte]: the fields of a word lie in one plane.
    fields = _fields(words).view(rows, -1, _PLANES, _TILES_A_PLANE, CODES_PER_BYTE, WORD_BYTES)
    codes = (
        fields[:, :, 0] | (fields[:, :, 1] << 2) | (fields[:, :, 2] << 4) | (fields[:, :, 3] << 6)
    )
    return PackedTernary(codes.reshape(rows, -1).contiguous(), sparse.scale, columns)


def unpack_tiles(tiles: Tensor, index: Tensor, start: Tensor, rows: int, columns: int) -> Tensor:
    """Trits int8 ``[rows, columns]`` of the fields of a checked :class:`BlockSparseTernary`."""
    fields = _fields(_words(tiles, index, start, rows, columns))
    return (fields.to(torch.int8) - 1).reshape(rows, -1)[:, :columns].contiguous()


def to_columns(packed: PackedTernary) -> ColumnTernary:
    """The column form of a matrix; exact, on the device of ``packed``."""
    return ColumnTernary(pack_codes(unpack(packed).T), packed.scale, packed.rows)


def from_columns(columns: ColumnTernary) -> PackedTernary:
    """The dense stored form; the inverse of :func:`to_columns`."""
    trits = unpack_codes(columns.codes)[:, : columns.rows].T
    return PackedTernary(pack_codes(trits), columns.scale, columns.columns)


def zero_tile_share(packed: PackedTernary) -> float:
    """Share of the 64 x 16 tiles that are zero, 0 to 1: what block sparsity would leave out."""
    return float((_all_tiles(packed) == ZERO_WEIGHTS).all(dim=-1).double().mean())


def _all_tiles(packed: PackedTernary) -> Tensor:
    """Every tile of a matrix, zero or not: uint8 ``[row blocks, column groups, 256]``."""
    rows, device = packed.rows, packed.codes.device
    row_blocks, column_groups = tile_grid(rows, packed.columns)
    # [row, stored group, plane, half plane, field, byte]
    stored = packed.codes.view(rows, -1, 1, _TILES_A_PLANE, CODES_PER_BYTE, WORD_BYTES)
    planes = (stored >> _shifts(device).view(_PLANES, 1, 1, 1)) & 3
    words = (
        planes[..., 0, :]
        | (planes[..., 1, :] << 2)
        | (planes[..., 2, :] << 4)
        | (planes[..., 3, :] << 6)
    ).view(rows, -1, WORD_BYTES)[:, :column_groups]
    whole = torch.full(
        (row_blocks * TILE_ROWS, column_groups, WORD_BYTES),
        ZERO_WEIGHTS,
        dtype=torch.uint8,
        device=device,
    )
    whole[:rows] = words
    tiles = whole.view(row_blocks, TILE_ROWS, column_groups, WORD_BYTES).transpose(1, 2)
    return tiles.reshape(row_blocks, column_groups, TILE_BYTES)


def _words(tiles: Tensor, index: Tensor, start: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix as words, uint8 ``[rows, column groups, 4]``; groups padded to a stored group."""
    row_blocks = tile_grid(rows, columns)[0]
    column_groups = padded(columns) // TILE_COLUMNS
    grid = torch.full(
        (row_blocks, column_groups, TILE_BYTES),
        ZERO_WEIGHTS,
        dtype=torch.uint8,
        device=tiles.device,
    )
    grid[_row_block_of_tile(start), index.long()] = tiles
    words = grid.view(row_blocks, column_groups, TILE_ROWS, WORD_BYTES).transpose(1, 2)
    return words.reshape(row_blocks * TILE_ROWS, column_groups, WORD_BYTES)[:rows]


def _fields(words: Tensor) -> Tensor:
    """Codes of words: uint8 ``[rows, column groups, 4]`` -> ``[rows, column groups, 4, 4]``."""
    return (words.unsqueeze(-2) >> _shifts(words.device).view(CODES_PER_BYTE, 1)) & 3


def _shifts(device: torch.device) -> Tensor:
    return torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=device)


def _row_block_of_tile(start: Tensor) -> Tensor:
    """int64 ``[count]``: the block of rows a stored tile belongs to."""
    blocks = torch.arange(start.shape[0] - 1, device=start.device)
    return blocks.repeat_interleave(start.diff().long())


def _check_sizes(rows: int, columns: int) -> None:
    if rows < 1:
        raise KernelInputError("rows", rows, "1 or more")
    if not 1 <= columns <= MOST_COLUMNS:
        raise KernelInputError("columns", columns, f"1 to {MOST_COLUMNS}")


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: list[int]) -> None:
    if tensor.dtype != dtype or list(tensor.shape) != shape:
        raise KernelInputError(
            name, f"{tensor.dtype} of shape {list(tensor.shape)}", f"{dtype} of shape {shape}"
        )
    if not tensor.is_contiguous():
        raise KernelInputError(name, f"strides {list(tensor.stride())}", "a contiguous tensor")


def _check_start(start: Tensor, count: int) -> None:
    first, last = int(start[0]), int(start[-1])
    if first != 0 or last != count:
        raise KernelInputError("start", f"from {first} to {last}", f"from 0 to {count} tiles")
    falls = start[1:] < start[:-1]
    if bool(falls.any()):
        block = int(falls.nonzero()[0])
        raise KernelInputError(
            "start",
            f"{int(start[block])} then {int(start[block + 1])} at block {block}",
            "values that never fall",
        )


def _check_index(index: Tensor, start: Tensor, columns: int) -> None:
    column_groups = tile_grid(1, columns)[1]
    if not index.shape[0]:
        return
    smallest, largest = int(index.min()), int(index.max())
    if smallest < 0 or largest >= column_groups:
        raise KernelInputError(
            "index", f"values {smallest} to {largest}", f"0 to {column_groups - 1}"
        )
    place = _row_block_of_tile(start) * column_groups + index
    falls = place[1:] <= place[:-1]
    if bool(falls.any()):
        tile = int(falls.nonzero()[0])
        raise KernelInputError(
            "index",
            f"{int(index[tile])} then {int(index[tile + 1])} at tile {tile}",
            "ascending column groups inside a block of rows",
        )


def _check_tile_padding(sparse: BlockSparseTernary) -> None:
    row_blocks, column_groups = tile_grid(sparse.rows, sparse.columns)
    inside_rows, inside_columns = sparse.rows % TILE_ROWS, sparse.columns % TILE_COLUMNS
    if inside_rows:
        last = sparse.tiles[int(sparse.start[row_blocks - 1]) :]
        if bool((last[:, inside_rows * WORD_BYTES :] != ZERO_WEIGHTS).any()):
            raise KernelInputError(
                "tiles", "padding that is not weight 0", f"weight 0 beyond row {sparse.rows - 1}"
            )
    if inside_columns:
        last = sparse.tiles[sparse.index == column_groups - 1].view(-1, TILE_ROWS, WORD_BYTES)
        codes = _fields(last).reshape(-1, TILE_COLUMNS)
        if bool((codes[:, inside_columns:] != 1).any()):
            raise KernelInputError(
                "tiles",
                "padding that is not weight 0",
                f"weight 0 beyond column {sparse.columns - 1}",
            )
