"""The event log: one writer, one JSON object a line, safe against a crash in the middle of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from pathlib import Path

from agentforge.events import Heartbeat, RunEnded, Stamped, encode
from agentforge.run.atomic import FULL, disk_error, sync_folder, write_all
from agentforge.run.tail import log_files, rotated_name

ROTATE_BYTES = 64 * 2**20
RESERVE_BYTES = 64 * 1024
"""Held back on disk, so that a full disk still lets the run say how it ended."""

TAIL_BYTES = 1 << 16


class JsonlSink:
    """Appends events to ``events.jsonl``, then ``events-0001.jsonl`` and so on.

    Opening it repairs what a killed engine left: a torn last line is cut off (or ended, if it is
    whole but for its newline), and numbering goes on after the last event. Every event is handed
    to the system at once; durable ones are synced to the disk.

    On a full disk the torn bytes are taken back, the reserve is given up for this event, and
    `DiskFullError` is raised: the run stops and can be resumed. `RunEnded` is written from the
    reserve without an error.

    Args:
        first: The log's first file.
        rotate_bytes: A file that has reached this size is not appended to any more.

    Raises:
        PreflightError: The log cannot be opened or written.
    """

    def __init__(self, first: Path, *, rotate_bytes: int = ROTATE_BYTES) -> None:
        self._first = first
        self._rotate_bytes = rotate_bytes
        self._lock = threading.Lock()
        self._reserve = first.with_name(f".{first.stem}.reserve")
        files = log_files(first)
        self._number = _number(files[-1]) if files else 0
        self._path = files[-1] if files else first
        try:
            self._handle = _open(self._path)
            _repair(self._handle)
            self._size = os.fstat(self._handle).st_size
            self._hold_reserve()
        except OSError as error:
            raise disk_error(error, self._path) from None
        self._next_seq = last_seq(first) + 1

    @property
    def next_seq(self) -> int:
        """The number the next event must carry."""
        return self._next_seq

    def emit(self, stamped: Stamped) -> None:
        """Append one event.

        Raises:
            DiskFullError: No room; see the class.
            PreflightError: The disk refuses for another reason.
        """
        line = encode(stamped).encode("utf-8") + b"\n"
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                failure = disk_error(error, self._path)
                if error.errno not in FULL or isinstance(stamped.event, Heartbeat):
                    raise failure from None
                if not self._append_from_reserve(line):
                    raise failure from None
                self._next_seq = stamped.seq + 1
                if not isinstance(stamped.event, RunEnded):
                    raise failure from None
            self._next_seq = stamped.seq + 1
            if stamped.event.durable:
                with contextlib.suppress(OSError):  # it is written; a sync may be impossible here
                    os.fsync(self._handle)

    def close(self) -> None:
        """Sync and close the log."""
        with self._lock:
            if self._handle < 0:
                return
            with contextlib.suppress(OSError):
                os.fsync(self._handle)
            os.close(self._handle)
            self._handle = -1
            self._reserve.unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        if self._handle < 0:
            raise OSError(errno.EBADF, "the log is closed")
        if self._size > 0 and self._size + len(line) > self._rotate_bytes:
            self._rotate()
        try:
            write_all(self._handle, line)
        except OSError:
            os.ftruncate(self._handle, self._size)  # no torn line for the next event to run into
            raise
        self._size += len(line)

    def _append_from_reserve(self, line: bytes) -> bool:
        """Give up the reserve and try once more; True when the line is written."""
        self._reserve.unlink(missing_ok=True)
        try:
            self._append(line)
        except OSError:
            return False
        return True

    def _rotate(self) -> None:
        following = rotated_name(self._first, self._number + 1)
        handle = _open(following)
        os.fsync(self._handle)
        os.close(self._handle)
        self._handle, self._path, self._size = handle, following, 0
        self._number += 1
        sync_folder(following.parent)

    def _hold_reserve(self) -> None:
        handle = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(handle, b"\0" * RESERVE_BYTES)
        except OSError:
            self._reserve.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)


def last_seq(first: Path) -> int:
    """Number of the last event of a log; -1 for a log without events."""
    for path in reversed(log_files(first)):
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            rest = b""
            while end > 0:
                start = max(0, end - TAIL_BYTES)
                file.seek(start)
                lines = (file.read(end - start) + rest).split(b"\n")
                # The first piece may lack its beginning; the next round completes it.
                for line in reversed(lines if start == 0 else lines[1:]):
                    seq = _seq(line)
                    if seq is not None:
                        return seq
                rest = lines[0]
                end = start
    return -1


def _seq(line: bytes) -> int | None:
    try:
        row = json.loads(line)
        seq = row["seq"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return seq if isinstance(seq, int) else None


def _number(path: Path) -> int:
    tail = path.stem.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)


def _repair(handle: int) -> None:
    """End or cut off a last line that a killed writer left torn."""
    size = os.fstat(handle).st_size
    end, tail = size, b""
    while end > 0 and b"\n" not in tail:
        start = max(0, end - TAIL_BYTES)
        tail = os.pread(handle, end - start, start) + tail
        end = start
    torn = tail.rpartition(b"\n")[2]
    if not torn:
        return
    if _seq(torn) is not None:
        write_all(handle, b"\n")
    else:
        os.ftruncate(handle, size - len(torn))
