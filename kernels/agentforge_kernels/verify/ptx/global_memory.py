"""Device memory as a program sees it: separate buffers with nothing mapped between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agentforge_kernels.verify.ptx.faults import Misaligned, OutOfBounds, Race, ReadOnly
from agentforge_kernels.verify.ptx.types import UNSIGNED, Array

BASE_ADDRESS = 1 << 40
"""Address of the memory's first byte; far from zero, so that a null pointer faults."""
GAP = 4096
"""Unmapped bytes before, between and after buffers, at least."""
ALIGNMENT = 64
"""A buffer lies at the same place modulo this as its array does on the host, so that an unaligned
view of a tensor stays unaligned. PyTorch aligns its CPU tensors to 64 bytes."""
NOBODY = -1


class GlobalMemory:
    """The buffers of a launch, each at its own simulated address.

    Args:
        buffers: Contiguous arrays. Their contents are copied here, and back by ``copy_back``; those
            that numpy calls not writeable may only be read.
    """

    def __init__(self, buffers: Sequence[Array]) -> None:
        self._buffers = buffers
        self._starts: list[int] = []
        position = 0
        for buffer in buffers:
            position = -(-(position + GAP) // ALIGNMENT) * ALIGNMENT
            self._starts.append(position + buffer.ctypes.data % ALIGNMENT)
            position = self._starts[-1] + buffer.nbytes
        size = -(-(position + GAP) // ALIGNMENT) * ALIGNMENT
        self._bytes = np.zeros(size, np.uint8)
        self._views = {width: self._bytes.view(kind) for width, kind in UNSIGNED.items()}
        self._owner = np.full(size, NOBODY, np.int32)
        self._writable = np.zeros(size, np.bool_)
        for number, (buffer, start) in enumerate(zip(buffers, self._starts, strict=True)):
            end = start + buffer.nbytes
            self._bytes[start:end] = buffer.reshape(-1).view(np.uint8)
            self._owner[start:end] = number
            self._writable[start:end] = buffer.flags.writeable

    def pointer(self, number: int) -> int:
        """Simulated address of buffer ``number``."""
        return BASE_ADDRESS + self._starts[number]

    def copy_back(self) -> None:
        """Write the contents back to the arrays of the launch."""
        for buffer, start in zip(self._buffers, self._starts, strict=True):
            if buffer.flags.writeable:
                content = self._bytes[start : start + buffer.nbytes]
                buffer.reshape(-1).view(np.uint8)[:] = content

    def load(self, addresses: Array, kind: np.dtype[Any], count: int = 1) -> Array:
        """``count`` consecutive values a thread.

        Args:
            addresses: int64 ``[threads]``.
            kind: Type of a value.
            count: Values a thread.

        Returns:
            ``[threads, count]``.

        Raises:
            Misaligned: An address is no multiple of all the bytes its thread reads.
            OutOfBounds: A byte lies in no buffer.
        """
        index = self._locate(addresses, kind.itemsize, count)
        return self._views[kind.itemsize][index].view(kind)

    def store(self, addresses: Array, values: Array) -> None:
        """Store ``values`` ``[threads, count]``, consecutive ones a thread.

        Raises:
            Misaligned, OutOfBounds: As for ``load``.
            ReadOnly: A buffer may not be written.
            Race: Two threads store different values to one place in the same instruction.
        """
        size = values.dtype.itemsize
        index = self._locate(addresses, size, values.shape[1])
        forbidden = ~self._writable[index[:, 0] * size]
        if bool(forbidden.any()):
            raise ReadOnly(f"store at {self._describe(int(addresses[forbidden][0]))}")
        words, view = values.view(UNSIGNED[size]), self._views[size]
        view[index] = words
        if not np.array_equal(view[index], words):
            raise Race("threads store different values to the same place in device memory")

    def _locate(self, addresses: Array, size: int, count: int) -> Array:
        """Checked positions ``[threads, count]`` of values of ``size`` bytes."""
        total = size * count
        odd = addresses & (total - 1) != 0
        if bool(odd.any()):
            raise Misaligned(f"{total}-byte access at {self._describe(int(addresses[odd][0]))}")
        offsets = addresses - BASE_ADDRESS
        mapped = (offsets >= 0) & (offsets <= len(self._bytes) - total)
        inside = np.where(mapped, offsets, 0)
        owner = self._owner[inside]
        outside = (owner == NOBODY) | (owner != self._owner[inside + (total - 1)])
        if bool(outside.any()):
            address = int(addresses[outside][0])
            raise OutOfBounds(f"{total}-byte access at {self._describe(address)}")
        return (offsets // size)[:, None] + np.arange(count)

    def _describe(self, address: int) -> str:
        offset = address - BASE_ADDRESS
        for number, (buffer, start) in enumerate(zip(self._buffers, self._starts, strict=True)):
            if start - GAP // 2 <= offset < start + buffer.nbytes + GAP // 2:
                return f"byte {offset - start} of buffer {number} ({buffer.nbytes} bytes)"
        return f"{address:#x}, in no buffer"
