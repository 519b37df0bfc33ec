"""Shared memory of a batch of blocks: bounds, alignment, first use, and races.

Memory is watched in *cells* of as many bytes as the program's smallest access:

* *defined*: a read before any store raises, and so does touching the destination of an asynchronous
  copy that has not been waited for;
* *race*: between two barriers of a block, a cell stored by one warp may not be read or stored by
  another (storing the same value twice is allowed: Triton's layouts replicate values over warps).
  This finds a missing barrier whatever the order in which the warps happened to run, as NVIDIA's
  ``compute-sanitizer --tool racecheck`` does. Threads of one warp run in lock step here: a missing
  ``bar.warp.sync`` is not found.

With detection off, unwritten memory holds poison and a race shows in the results, or does not.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from agentforge_kernels.verify.ptx.faults import Misaligned, OutOfBounds, Race, UninitialisedRead
from agentforge_kernels.verify.ptx.types import UNSIGNED, Array

POISON = 0x7E
"""Byte of memory nobody wrote: as float32 8.4e37, as int32 2.1e9; no maximum or sum hides it."""
NEVER = -1

Threads: TypeAlias = slice | Array
"""Threads of the batch, as an index."""


class SharedMemory:
    """Shared memory of the blocks of a batch.

    Args:
        block: Block of each thread, counted within the batch.
        warp: Warp of each thread, counted within the batch.
        size: Bytes a block declared.
        cell: Bytes of the program's smallest access: 1, 2 or 4.
        detect: Raise on undefined reads and races.
    """

    def __init__(self, block: Array, warp: Array, size: int, cell: int, detect: bool) -> None:
        self._block, self._warp = block, warp
        self._size, self._cell, self._detect = size, cell, detect
        blocks, warps = int(block[-1]) + 1, int(warp[-1]) + 1
        self._stride = -(-size // 16) * 16 // cell
        total = blocks * self._stride
        self._words = np.full(total * cell, POISON, np.uint8).view(UNSIGNED[cell])
        self._copying = np.zeros(total, np.bool_)
        # A stamp says who touched a cell, and when: epoch * (warps + 1) + warp, where an epoch ends
        # at a barrier, and "warp number warps" means several of them.
        self._several = warps
        self._epoch_start = np.zeros(blocks, np.int64)
        self._stored = np.full(total, NEVER, np.int64)
        self._read = np.full(total, NEVER, np.int64)

    def barrier(self, blocks: Array) -> None:
        """All threads of these blocks have met: what came before is ordered before what follows."""
        self._epoch_start[blocks] += self._several + 1

    def load(
        self, addresses: Array, threads: Threads, kind: np.dtype[Any], count: int = 1
    ) -> Array:
        """``count`` consecutive values a thread.

        Args:
            addresses: int64, one a thread.
            threads: Who reads.
            kind: Type of a value.
            count: Values a thread.

        Returns:
            ``[threads, count]``.

        Raises:
            Misaligned: An address is no multiple of all the bytes its thread reads.
            OutOfBounds: A byte beyond what the kernel declared.
            UninitialisedRead: Nothing was stored there.
            Race: Another warp stored there since the last barrier.
        """
        cells = self._locate(addresses, threads, kind.itemsize * count)
        if self._detect:
            self._watch_read(cells, threads)
        return self._words[cells].view(kind)

    def store(self, addresses: Array, threads: Threads, values: Array) -> None:
        """Store ``values`` ``[threads, count]``, consecutive ones a thread.

        Raises:
            Misaligned, OutOfBounds: As for ``load``.
            Race: Another warp read there since the last barrier, or stored another value; two
                threads store different values in this very instruction; or an asynchronous copy to
                this place has not been waited for.
        """
        cells = self._locate(addresses, threads, values.dtype.itemsize * values.shape[1])
        self._write(cells, threads, np.ascontiguousarray(values).view(self._words.dtype))

    def begin_copy(self, addresses: Array, threads: Threads, size: int) -> Array:
        """Make the destination of an asynchronous copy undefined until it arrives.

        Returns:
            The cells, for ``end_copy``.

        Raises:
            Misaligned, OutOfBounds: As for ``load``.
            Race: Another warp used the destination since the last barrier, or a copy to it is
                under way.
        """
        cells = self._locate(addresses, threads, size)
        if self._detect:
            self._watch_write(cells, threads, None)
        self._words[cells] = int.from_bytes(bytes([POISON] * self._cell), "little")
        self._stored[cells] = NEVER
        self._copying[cells] = True
        return cells

    def end_copy(self, cells: Array, threads: Threads, data: Array) -> None:
        """What was copied (uint8 ``[threads, bytes]``) arrives.

        Raises:
            Race: Another warp stored there meanwhile.
        """
        self._copying[cells] = False
        self._write(cells, threads, data.view(self._words.dtype))

    def _locate(self, addresses: Array, threads: Threads, size: int) -> Array:
        """Checked cells ``[threads, size / cell]``."""
        odd = addresses & (size - 1) != 0
        if bool(odd.any()):
            raise Misaligned(f"{size}-byte access at byte {addresses[odd][0]} of shared memory")
        outside = (addresses < 0) | (addresses > self._size - size)
        if bool(outside.any()):
            place = f"byte {addresses[outside][0]} of {self._size}"
            raise OutOfBounds(f"{size}-byte access at {place} of shared memory")
        first = addresses // self._cell + self._block[threads] * self._stride
        return first[:, None] + np.arange(size // self._cell)

    def _write(self, cells: Array, threads: Threads, words: Array) -> None:
        if self._detect:
            self._watch_write(cells, threads, words)
        self._words[cells] = words
        if self._detect and not np.array_equal(self._words[cells], words):
            raise Race("threads store different values to the same place in shared memory")

    def _stamps(self, threads: Threads) -> tuple[Array, Array]:
        """Start of the present epoch and own stamp, ``[threads, 1]`` each."""
        start = self._epoch_start[self._block[threads]][:, None]
        return start, start + self._warp[threads][:, None]

    def _watch_read(self, cells: Array, threads: Threads) -> None:
        stored = self._stored[cells]
        undefined = stored == NEVER
        if bool(undefined.any()):
            raise UninitialisedRead(f"byte {self._place(cells[undefined])}")
        start, mine = self._stamps(threads)
        self._refuse((stored >= start) & (stored != mine), cells, "stored by one warp, read by")
        self._mark(self._read, cells, start, mine)

    def _mark(self, record: Array, cells: Array, start: Array, mine: Array) -> None:
        """Note in a record of stamps who touches these cells now."""
        seen = record[cells]
        marks = np.where((seen >= start) & (seen != mine), start + self._several, mine)
        record[cells] = marks
        # Of several warps that touch a cell in this very instruction one alone has left its mark.
        lost = record[cells] != marks
        if bool(lost.any()):
            several = np.broadcast_to(start + self._several, cells.shape)
            record[cells[lost]] = several[lost]

    def _watch_write(self, cells: Array, threads: Threads, words: Array | None) -> None:
        """``words`` are about to be stored; ``None`` when not yet known."""
        copying = self._copying[cells]
        if bool(copying.any()):
            place = self._place(cells[copying])
            raise Race(f"byte {place} stored while an asynchronous copy to it is under way")
        start, mine = self._stamps(threads)
        read = self._read[cells]
        self._refuse((read >= start) & (read != mine), cells, "read by one warp, stored by")
        stored = self._stored[cells]
        raced = (stored >= start) & (stored != mine)
        if words is not None:
            raced &= self._words[cells] != words
        self._refuse(raced, cells, "stored by one warp and by")
        self._mark(self._stored, cells, start, mine)

    def _refuse(self, raced: Array, cells: Array, what: str) -> None:
        if bool(raced.any()):
            raise Race(f"byte {self._place(cells[raced])} {what} another, no barrier between")

    def _place(self, cells: Array) -> str:
        return f"{int(cells[0]) % self._stride * self._cell} of shared memory"
