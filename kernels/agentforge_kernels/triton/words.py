"""Byte tensors seen as the 32-bit words that kernels load."""

from __future__ import annotations

import torch
from torch import Tensor

WORD_BYTES = 4


def as_words(tensor: Tensor) -> Tensor:
    """int32 view of a contiguous int8 or uint8 tensor, its last dimension a quarter as long.

    A tensor that does not begin at a multiple of four bytes is copied: an unaligned 32-bit load is
    an error on a GPU.
    """
    if tensor.data_ptr() % WORD_BYTES or tensor.storage_offset() % WORD_BYTES:
        tensor = tensor.clone()
    return tensor.view(torch.int32)


def power_of_two(size: int) -> int:
    """``size`` rounded up to a power of two."""
    return 1 << max(0, size - 1).bit_length()
