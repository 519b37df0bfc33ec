"""Pruning whole tiles of 64 x 16 weights, the shape the block-sparse kernels leave out.

A zero here and there saves nothing; a tile of zeros is neither stored nor read
(:mod:`agentforge_kernels.sparse`). Tiles are chosen by their mean magnitude, the smallest first
(magnitude pruning, https://arxiv.org/abs/1506.02626, over blocks as in
https://arxiv.org/abs/1711.02782), and training goes on without them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.sparse import TILE_COLUMNS, TILE_ROWS, tile_grid


def kept_tiles(weight: Tensor, share: float) -> Tensor:
    """The tiles that stay when a share of them is pruned, the largest by mean magnitude.

    Args:
        weight: Floating ``[rows, columns]``; a tile over the edge counts the weights it has.
        share: Of the tiles that are pruned, in [0, 1); rounded down to whole tiles.

    Returns:
        bool ``[row blocks, column groups]``, True where a tile stays. Among equals the first stay.

    Raises:
        KernelInputError: Not a floating matrix; a share outside [0, 1).
    """
    if weight.ndim != 2 or not weight.is_floating_point() or 0 in weight.shape:
        raise KernelInputError(
            "weight", f"{weight.dtype} of shape {list(weight.shape)}", "a floating matrix"
        )
    if not 0.0 <= share < 1.0:
        raise KernelInputError("share", share, "0 to below 1")
    blocks, groups = tile_grid(*weight.shape)
    means = _tile_means(weight.detach().float())
    pruned = int(share * means.numel() + 1e-9)
    order = means.flatten().argsort(descending=True, stable=True)
    kept = torch.ones(blocks * groups, dtype=torch.bool, device=weight.device)
    kept[order[means.numel() - pruned :]] = False
    return kept.view(blocks, groups)


def weights_of_tiles(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """bool ``[rows, columns]`` of tiles bool ``[row blocks, column groups]``.

    Raises:
        KernelInputError: Tiles of another dtype or grid.
    """
    if tiles.dtype != torch.bool or tuple(tiles.shape) != tile_grid(rows, columns):
        raise KernelInputError(
            "tiles",
            f"{tiles.dtype} of shape {list(tiles.shape)}",
            f"bool of shape {list(tile_grid(rows, columns))} for {rows} x {columns} weights",
        )
    wide = tiles.repeat_interleave(TILE_ROWS, dim=0)[:rows]
    return wide.repeat_interleave(TILE_COLUMNS, dim=1)[:, :columns]


def _tile_means(weight: Tensor) -> Tensor:
    """Mean magnitude of every tile over the weights it has, ``[row blocks, column groups]``."""
    rows, columns = weight.shape
    blocks, groups = tile_grid(rows, columns)
    edge = (0, groups * TILE_COLUMNS - columns, 0, blocks * TILE_ROWS - rows)

    def sums(values: Tensor) -> Tensor:
        whole = F.pad(values, edge).view(blocks, TILE_ROWS, groups, TILE_COLUMNS)
        return whole.sum(dim=(1, 3))

    return sums(weight.abs()) / sums(torch.ones_like(weight))
