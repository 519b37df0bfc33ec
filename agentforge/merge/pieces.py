"""Tensors a piece at a time, so that what is between two steps of a technique stays in the cache.

An elementwise step over a whole tensor of millions writes a new tensor as large: the system hands
out fresh pages for each, which takes ten times as long as the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 1 << 16
"""Entries of a piece: 256 KB in fp32, a few of which fit a core's cache."""


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat pieces of tensors of one size, in order; those of contiguous tensors are views.

    Elsewhere than on a CPU there is one piece, the whole.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    size = flat[0].numel()
    if size <= PIECE or flat[0].device.type != "cpu":
        yield tuple(flat)
        return
    for start in range(0, size, PIECE):
        yield tuple(tensor[start : start + PIECE] for tensor in flat)


def blank(like: Tensor) -> Tensor:
    """A contiguous tensor to be filled, of the shape, dtype and device of `like`."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)
