"""Device memory as a program sees it: separate buffers with nothing mapped between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentforge_kernels.verify.ptx.faults import Misaligned, OutOfBounds, Race
from agentforge_kernels.verify.ptx.types import Array

BASE_ADDRESS = 1 << 40
"""Address of the first buffer; far from zero, so that a null pointer faults."""
GAP = 4096
"""Unmapped bytes before, between and after buffers."""
ALIGNMENT = 256
"""Of every buffer, as ``cudaMalloc`` guarantees (CUDA C programming guide, 5.3.2)."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """A pointer argument.

    Attributes:
        array: The memory; contents are copied in before a launch and back after it.
        shift: Bytes added to the pointer handed over: 0, unless a fault is injected.
    """

    array: Array
    shift: int = 0


class GlobalMemory:
    """The buffers of a launch, each at its own simulated address.

    Args:
        buffers: Contiguous arrays.
    """

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._buffers = buffers
        self._starts: list[int] = []
        position = GAP
        for buffer in buffers:
            self._starts.append(position)
            position = -(-(position + buffer.array.nbytes) // ALIGNMENT) * ALIGNMENT + GAP
        self._bytes = np.zeros(position, np.uint8)
        self._owner = np.full(position, -1, np.int32)
        for number, (buffer, start) in enumerate(zip(buffers, self._starts, strict=True)):
            end = start + buffer.array.nbytes
            self._bytes[start:end] = buffer.array.reshape(-1).view(np.uint8)
            self._owner[start:end] = number
        self._views = {size: self._bytes.view(f"u{size}") for size in (1, 2, 4, 8)}

    def pointer(self, number: int) -> int:
        """Simulated address handed to the program for buffer ``number``."""
        return BASE_ADDRESS + self._starts[number] + self._buffers[number].shift

    def copy_back(self) -> None:
        """Write the contents back to the arrays of the launch."""
        for buffer, start in zip(self._buffers, self._starts, strict=True):
            content = self._bytes[start : start + buffer.array.nbytes]
            buffer.array.reshape(-1).view(np.uint8)[:] = content

    def locate(self, addresses: Array, size: int) -> Array:
        """Offsets of accesses of ``size`` bytes each, checked.

        Args:
            addresses: uint64, one a thread.
            size: Bytes a thread touches; the address must be a multiple of it.

        Raises:
            Misaligned: An address is no multiple of ``size``.
            OutOfBounds: A byte lies in no buffer.
        """
        if bool((addresses & np.uint64(size - 1)).any()):
            worst = int(addresses[(addresses & np.uint64(size - 1)) != 0][0])
            raise Misaligned(f"{size}-byte access at {self._describe(worst)}")
        offsets = addresses.astype(np.int64) - BASE_ADDRESS
        inside = (offsets >= 0) & (offsets <= len(self._bytes) - size)
        first = self._owner[np.where(inside, offsets, 0)]
        last = self._owner[np.where(inside, offsets + (size - 1), 0)]
        bad = (first < 0) | (first != last)
        if bool(bad.any()):
            raise OutOfBounds(f"{size}-byte access at {self._describe(int(addresses[bad][0]))}")
        return offsets

    def load(self, offsets: Array, kind: np.dtype[Any]) -> Array:
        """Values at checked offsets."""
        size = kind.itemsize
        return self._views[size][offsets // size].view(kind)

    def store(self, offsets: Array, values: Array) -> None:
        """Store at checked offsets.

        Raises:
            Race: Two threads store different values to one place in the same instruction.
        """
        size = values.dtype.itemsize
        words = np.ascontiguousarray(values).view(f"u{size}")
        view, index = self._views[size], offsets // size
        view[index] = words
        if not np.array_equal(view[index], words):
            raise Race("threads store different values to the same place in device memory")

    def _describe(self, address: int) -> str:
        offset = address - BASE_ADDRESS
        for number, (buffer, start) in enumerate(zip(self._buffers, self._starts, strict=True)):
            if start - GAP // 2 <= offset < start + buffer.array.nbytes + GAP // 2:
                return f"byte {offset - start} of buffer {number} ({buffer.array.nbytes} bytes)"
        return f"{address:#x}, in no buffer"
