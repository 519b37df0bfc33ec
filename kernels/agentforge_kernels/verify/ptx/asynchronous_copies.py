"""cp.async: copies from device to shared memory that arrive only when waited for.

PTX ISA, "Non-bulk copy": a thread issues copies, closes them into groups (``commit_group``), and
``wait_group N`` makes all but its newest ``N`` groups visible *to itself*; other threads need a
barrier after that. Here a copy's destination becomes poison, unreadable, the moment it is issued,
and is filled by the wait.
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
    cells: Array
    data: Array

    def of(self, rows: Array) -> _Copy:
        return _Copy(self.threads[rows], self.group[rows], self.cells[rows], self.data[rows])


class PendingCopies:
    """The copies under way of a batch of threads.

    Args:
        threads: Threads in the batch.
        shared: Where they go.
    """

    def __init__(self, threads: int, shared: SharedMemory) -> None:
        self._shared = shared
        self._open_group = np.zeros(threads, np.int64)
        self._copies: list[_Copy] = []

    def issue(self, threads: Array, addresses: Array, data: Array) -> None:
        """Start copies of ``data`` (uint8 ``[threads, bytes]``) to ``addresses``.

        Raises:
            Misaligned, OutOfBounds: The destination is not in shared memory.
            Race: Another warp used the destination since the last barrier.
        """
        cells = self._shared.begin_copy(addresses, threads, data.shape[1])
        self._copies.append(_Copy(threads, self._open_group[threads], cells, data))

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
            if bool(due.any()):
                arrived = copy.of(due)
                self._shared.end_copy(arrived.cells, arrived.threads, arrived.data)
            if not bool(due.all()):
                remaining.append(copy.of(~due))
        self._copies = remaining
