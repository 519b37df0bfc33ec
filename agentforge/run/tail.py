"""Reading the event log of a live, re-attached or finished run, always in the same way.

A log is ``events.jsonl`` and, after rotation, ``events-0001.jsonl`` and so on. A torn last line, an
unknown kind and any other damage are skipped, never raised.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agentforge.events import Stamped, decode

READ_BYTES = 1 << 20


def log_files(first: Path) -> list[Path]:
    """The files of a log that exist, oldest first.

    Args:
        first: The log's first file, such as ``events.jsonl``.
    """
    pattern = re.compile(re.escape(first.stem) + r"-(\d{4,})" + re.escape(first.suffix))
    rotated: list[tuple[int, Path]] = []
    if first.parent.is_dir():
        for path in first.parent.iterdir():
            match = pattern.fullmatch(path.name)
            if match:
                rotated.append((int(match[1]), path))
    files = [path for _, path in sorted(rotated)]
    return [first, *files] if first.exists() else files


def rotated_name(first: Path, number: int) -> Path:
    """The log's file after `number` rotations."""
    return first.with_name(f"{first.stem}-{number:04d}{first.suffix}") if number else first


def decode_line(line: bytes) -> Stamped | None:
    """The event of one line; None for anything else, whatever its bytes are."""
    try:
        return decode(line.decode("utf-8", errors="replace"))
    except (OverflowError, RecursionError, AttributeError):
        return None


def read_events(first: Path, kinds: Sequence[str] = ()) -> Iterator[Stamped]:
    """All events of a log, oldest first.

    Args:
        first: The log's first file.
        kinds: Only these kinds, such as ``gate_checked``; lines of others are not even parsed,
            which makes this some ten times faster on a long log.
    """
    marks = [f'"kind":"{kind}"'.encode() for kind in kinds]
    for path in log_files(first):
        try:
            with path.open("rb") as file:
                for line in file:
                    if marks and not any(mark in line for mark in marks):
                        continue
                    stamped = decode_line(line) if line.endswith(b"\n") else None
                    if stamped is not None:
                        yield stamped
        except OSError:
            continue


class EventTail:
    """A place in an event log: new events forward, old ones backward.

    `poll` alone reads everything from the start. `read_last` first jumps near the end, for a
    console that attaches to a long run; `read_older` then fills in the past piece by piece.

    Args:
        first: The log's first file; it need not exist yet.
    """

    def __init__(self, first: Path) -> None:
        self._first = first
        self._file: Path | None = None  # where `poll` reads, and how far it has read
        self._offset = 0
        self._older: list[tuple[Path, int]] = []  # files and lengths `read_older` has still to read

    @property
    def has_older(self) -> bool:
        """True while `read_older` has something left to read."""
        return bool(self._older)

    def skip_to_end(self) -> None:
        """Forget everything up to now: the next `poll` tells only what is new."""
        self.read_last(0)
        self._older.clear()

    def read_last(self, n_bytes: int) -> list[Stamped]:
        """Jump to the end; the events of about the last `n_bytes` bytes, oldest first."""
        files = log_files(self._first)
        self._older = []
        for path in files:
            end = _end_of_lines(path)
            self._older.append((path, end))
            self._file, self._offset = path, end
        return self.read_older(n_bytes) if n_bytes > 0 else []

    def read_older(self, n_bytes: int) -> list[Stamped]:
        """The events of about `n_bytes` bytes before those already read, oldest first."""
        pieces: list[list[Stamped]] = []
        left = n_bytes
        while left > 0 and self._older:
            path, end = self._older.pop()
            start = _line_start(path, max(0, end - left))
            if start >= end:  # one line is longer than what was asked for
                start = _line_start_before(path, end)
            if start > 0:
                self._older.append((path, start))
            pieces.append(_decode_lines(_read(path, start, end - start)))
            left -= end - start
        return [stamped for piece in reversed(pieces) for stamped in piece]

    def poll(self) -> list[Stamped]:
        """The events that were written since the last call, oldest first."""
        found: list[Stamped] = []
        while True:
            # The list comes before the reading: if there is a later file, this one is complete.
            files = log_files(self._first)
            if self._file is None:
                if not files:
                    return found
                self._file, self._offset = files[0], 0
            found += self._poll_file(self._file)
            later = [f for f in files if files.index(f) > _index(files, self._file)]
            if not later:
                return found
            self._file, self._offset = later[0], 0

    def follow(self, stop: Callable[[], bool], poll_s: float = 0.1) -> Iterator[Stamped]:
        """New events as they come, until `stop` says so and everything written is told."""
        while True:
            last = stop()
            yield from self.poll()
            if last:
                return
            time.sleep(poll_s)

    def _poll_file(self, path: Path) -> list[Stamped]:
        found: list[Stamped] = []
        while True:
            data = b""
            while True:
                piece = _read(path, self._offset + len(data), READ_BYTES)
                data += piece
                if b"\n" in piece or not piece:
                    break
            end = data.rfind(b"\n") + 1
            if end == 0:
                return found
            found += _decode_lines(data[:end])
            self._offset += end


def _index(files: Sequence[Path], path: Path) -> int:
    return files.index(path) if path in files else -1


def _decode_lines(data: bytes) -> list[Stamped]:
    decoded = (decode_line(line) for line in data.split(b"\n") if line)
    return [stamped for stamped in decoded if stamped is not None]


def _read(path: Path, offset: int, length: int) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.pread(handle, length, offset)
    except OSError:
        return b""
    finally:
        os.close(handle)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _end_of_lines(path: Path) -> int:
    """Bytes of `path` up to and with its last newline."""
    end = _size(path)
    while end > 0:
        start = max(0, end - READ_BYTES)
        found = _read(path, start, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _line_start(path: Path, offset: int) -> int:
    """The first line start at or after `offset`; the file's size when there is none."""
    if offset == 0:
        return 0
    position = offset - 1
    while True:
        data = _read(path, position, READ_BYTES)
        if not data:
            return _size(path)
        found = data.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(data)


def _line_start_before(path: Path, end: int) -> int:
    """Where the line that ends at `end` (with its newline) begins."""
    stop = end - 1
    while stop > 0:
        start = max(0, stop - READ_BYTES)
        found = _read(path, start, stop - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        stop = start
    return 0
