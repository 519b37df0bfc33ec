"""cp.async: copies from device to shared memory that arrive only when waited for.

PTX ISA, 9.7.9.25: a thread issues copies, closes them into groups (``commit_group``), and ``wait_group N``
makes all but its newest ``N`` groups visible *to itself*; other threads need a barrier after that. Here a
copy's destination becomes poison, unreadable, the moment it is issued, and is filled by the wait.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentforge_kernels.verify.ptx.shared_memory import SharedMemory
from agentforge_kernels.verify.ptx.types import Array


@dataclass(slots=True)
class _Copy:
    """One instruction's copies: a row a thread."""

    threads: Array
    group: Array
    offsets: Array
    data: Array


class PendingCopies:
    """The copies under way of a batch of threads.

    Args:
        threads: Threads in the batch.
        shared: Where they go.
        warp: Warp of each thread.
        block: Block of each thread.
    """

    def __init__(self, threads: int, shared: SharedMemory, warp: Array, block: Array) -> None:
        self._shared = shared
        self._warp = warp
        self._block = block
        self._open_group = np.zeros(threads, np.int64)
        self._copies: list[_Copy] = []

    def issue(self, threads: Array, offsets: Array, data: Array) -> None:
        """Start copies of ``data`` (uint8 ``[threads, bytes]``) to checked ``offsets``.

        Raises:
            Race: Another warp used the destination since the last barrier.
        """
        warp, block = self._warp[threads], self._block[threads]
        self._shared.before_write(offsets, warp, block, data.shape[1], None)
        self._copies.append(_Copy(threads, self._open_group[threads], offsets, data))

    def commit(self, threads: Array) -> None:
        """Close these threads' open group."""
        self._open_group[threads] += 1

    def wait(self, threads: Array, newest: int) -> None:
        """Complete all but the ``newest`` closed groups of these threads."""
        waiting = np.zeros(len(self._open_group), np.bool_)
        waiting[threads] = True
        remaining: list[_Copy] = []
        for copy in self._copies:
            due = waiting[copy.threads] & (copy.group < self._open_group[copy.threads] - newest)
            if due.all():
                self._complete(copy)
            elif due.any():
                self._complete(_select(copy, due))
                remaining.append(_select(copy, ~due))
            else:
                remaining.append(copy)
        self._copies = remaining

    def _complete(self, copy: _Copy) -> None:
        size = copy.data.shape[1]
        warp, block = self._warp[copy.threads], self._block[copy.threads]
        self._shared.before_write(copy.offsets, warp, block, size, copy.data)
        for byte in range(0, size, 4):
            words = np.ascontiguousarray(copy.data[:, byte : byte + 4]).view(np.uint32).reshape(-1)
            self._shared.store(copy.offsets + byte, words)


def _select(copy: _Copy, mask: Array) -> _Copy:
    return _Copy(copy.threads[mask], copy.group[mask], copy.offsets[mask], copy.data[mask])
