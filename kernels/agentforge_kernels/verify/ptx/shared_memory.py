"""Shared memory of a batch of blocks: bounds, alignment, first use, and races.

Three properties are watched a byte:

* *initialised*: a read before any store raises, and so does a read of the destination of an asynchronous
  copy that has not been waited for;
* *race*: between two barriers of a block, a byte stored by one warp may not be read or stored by another
  (storing the same value twice is allowed: Triton's layouts replicate values over warps). This finds
  a missing barrier whatever the order in which the warps happened to run, as NVIDIA's
  ``compute-sanitizer --tool racecheck`` does. Threads of one warp run in lock step here: a missing
  ``bar.warp.sync`` is not found.
* content: poison until written, for runs that turn the first property off.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agentforge_kernels.verify.ptx.faults import Misaligned, OutOfBounds, Race, UninitialisedRead
from agentforge_kernels.verify.ptx.types import Array

POISON = 0x7E
"""Byte of memory nobody wrote: as float32 8.4e37, as int32 2.1e9, so that no maximum or sum hides it."""
SEVERAL = -2
"""In the record of readers: more than one warp."""


class SharedMemory:
    """Shared memory of ``blocks`` blocks.

    Args:
        blocks: Blocks in the batch.
        size: Bytes a block declared.
        detect: Raise on uninitialised reads and races; without, poison is all there is.
    """

    def __init__(self, blocks: int, size: int, detect: bool) -> None:
        self._size = size
        self._stride = -(-size // 16) * 16
        total = blocks * self._stride
        self._bytes = np.full(total, POISON, np.uint8)
        self._views = {width: self._bytes.view(f"u{width}") for width in (1, 2, 4, 8)}
        self._detect = detect
        self._initialised = np.zeros(total, np.bool_)
        self._epoch = np.zeros(blocks, np.int32)
        self._written_in = np.full(total, -1, np.int32)
        self._writer = np.full(total, -1, np.int32)
        self._read_in = np.full(total, -1, np.int32)
        self._reader = np.full(total, -1, np.int32)

    def barrier(self, blocks: Array) -> None:
        """All threads of these blocks have met: what came before is ordered before what follows."""
        self._epoch[blocks] += 1

    def locate(self, addresses: Array, blocks: Array, size: int) -> Array:
        """Offsets of accesses of ``size`` bytes by threads of ``blocks``, checked.

        Raises:
            Misaligned: An address is no multiple of ``size``.
            OutOfBounds: A byte beyond what the kernel declared.
        """
        wide = addresses.astype(np.int64)
        if bool((wide & (size - 1)).any()):
            worst = int(wide[(wide & (size - 1)) != 0][0])
            raise Misaligned(f"{size}-byte access at byte {worst} of shared memory")
        bad = (wide < 0) | (wide + size > self._size)
        if bool(bad.any()):
            raise OutOfBounds(
                f"{size}-byte access at byte {int(wide[bad][0])} of {self._size} of shared memory"
            )
        return wide + blocks * self._stride

    def before_read(self, offsets: Array, warps: Array, blocks: Array, size: int) -> None:
        """Check and record a read of ``size`` bytes a thread.

        Raises:
            UninitialisedRead: Nothing was stored there.
            Race: Another warp stored there since the last barrier.
        """
        if not self._detect:
            return
        where, warp, epoch = _spread(offsets, warps, self._epoch[blocks], size)
        if not bool(self._initialised[where].all()):
            place = int(where[~self._initialised[where]][0]) % self._stride
            raise UninitialisedRead(f"byte {place} of shared memory")
        raced = (self._written_in[where] == epoch) & (self._writer[where] != warp)
        if bool(raced.any()):
            self._report(where, raced, self._writer, "stored by warp {} and read by another")
        others = (self._read_in[where] == epoch) & (self._reader[where] != warp)
        self._read_in[where] = epoch
        self._reader[where] = np.where(others, SEVERAL, warp)
        # Of several warps reading one byte in this very instruction only the last was recorded.
        self._reader[where[self._reader[where] != warp]] = SEVERAL

    def before_write(
        self, offsets: Array, warps: Array, blocks: Array, size: int, values: Array | None
    ) -> None:
        """Check and record a store of ``size`` bytes a thread.

        Args:
            offsets: First byte of each thread.
            warps: Warp of each thread.
            blocks: Block of each thread.
            size: Bytes a thread.
            values: uint8 ``[threads, size]`` about to be stored; ``None`` when not yet known.

        Raises:
            Race: Another warp read there since the last barrier, or stored another value.
        """
        if not self._detect:
            return
        where, warp, epoch = _spread(offsets, warps, self._epoch[blocks], size)
        raced = (self._read_in[where] == epoch) & (self._reader[where] != warp)
        if bool(raced.any()):
            self._report(where, raced, self._reader, "read by warp {} and stored by another")
        raced = (self._written_in[where] == epoch) & (self._writer[where] != warp)
        if values is not None:
            raced &= self._bytes[where] != values
        if bool(raced.any()):
            self._report(where, raced, self._writer, "stored by warp {} and by another")
        self._written_in[where] = epoch
        self._writer[where] = warp
        self._initialised[where] = values is not None
        if values is None:
            self._bytes[where] = POISON

    def load(self, offsets: Array, kind: np.dtype[Any]) -> Array:
        """Values at checked offsets."""
        return self._views[kind.itemsize][offsets // kind.itemsize].view(kind)

    def store(self, offsets: Array, values: Array) -> None:
        """Store at checked offsets.

        Raises:
            Race: Two threads store different values to one place in the same instruction.
        """
        size = values.dtype.itemsize
        words = np.ascontiguousarray(values).view(f"u{size}")
        view, index = self._views[size], offsets // size
        view[index] = words
        if self._detect and not np.array_equal(view[index], words):
            raise Race("threads store different values to the same place in shared memory")

    def _report(self, where: Array, raced: Array, record: Array, what: str) -> None:
        place = int(where[raced][0])
        warp = int(record[place])
        name = "several" if warp == SEVERAL else str(warp)
        raise Race(
            f"byte {place % self._stride} of shared memory {what.format(name)} with no barrier between"
        )


def _spread(offsets: Array, warps: Array, epochs: Array, size: int) -> tuple[Array, Array, Array]:
    """Byte offsets ``[threads, size]`` with warp and epoch of each."""
    where = offsets[:, None] + np.arange(size)
    return (
        where,
        np.broadcast_to(warps[:, None], where.shape),
        np.broadcast_to(epochs[:, None], where.shape),
    )
