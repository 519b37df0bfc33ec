"""One block of memory for the weights of a model, in the order they are used.

A 512 x 512 ternary matrix is 64 KB: read from the third-level cache, it is over before the
processor's prefetcher has understood the pattern. Kernels prefetch 4 KB ahead; when the next matrix
follows at once in memory, those 4 KB are its beginning instead of nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes: each tensor begins on a cache line (and a 512-bit register's natural boundary)."""


def place_consecutively(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy laid-out weights into one block, one after the other.

    Args:
        tensors: CPU tensors of any shape and dtype, in the order of execution.

    Returns:
        Tensors equal to the given ones, views of one block that lives as long as any of them.
    """
    starts = []
    end = 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    memory = torch.zeros(end + ALIGNMENT, dtype=torch.uint8, device="cpu")
    offset = -memory.data_ptr() % ALIGNMENT
    placed = []
    for tensor, start in zip(tensors, starts, strict=True):
        begin = offset + start
        view = memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        placed.append(view.copy_(tensor))
    return placed
