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


class Arena:
    """A block of memory that is filled from its beginning.

    Args:
        sizes: Bytes of the tensors that will be placed, in this order.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        total = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
        self._memory = torch.empty(total + ALIGNMENT, dtype=torch.uint8, device="cpu")
        self._next = -self._memory.data_ptr() % ALIGNMENT

    def place(self, tensor: Tensor) -> Tensor:
        """A copy behind the last one: a view that keeps the block alive."""
        end = self._next + tensor.nbytes
        view = self._memory[self._next : end].view(tensor.dtype).view(tensor.shape)
        self._next += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return view.copy_(tensor)


def place_consecutively(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy laid-out weights into one block, one after the other.

    Args:
        tensors: CPU tensors of any shape and dtype, in the order of execution.

    Returns:
        Tensors equal to the given ones, views of one block that lives as long as any of them.
    """
    arena = Arena([tensor.nbytes for tensor in tensors])
    return [arena.place(tensor) for tensor in tensors]
