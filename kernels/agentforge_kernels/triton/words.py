# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Byte tensors seen as the 32-bit words that kernels load, four words to a 128-bit load."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
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


@triton.jit
def split_words(words):
    """int32 ``[a, b, 4]`` to four ``[a, b]``; free when a thread holds all four."""
    outer: tl.constexpr = words.shape[0]
    inner: tl.constexpr = words.shape[1]
    even, odd = tl.split(tl.reshape(words, (outer, inner, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth
