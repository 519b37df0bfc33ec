"""The control channel's file: appended to by everyone, read by the one engine.

A line is ``{"id": ..., "verb": ..., "args": {...}, "by": ..., "t": ...}``; only ``verb`` is needed,
so that ``echo '{"verb": "pause"}' >> control.jsonl`` works from a shell.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import JsonValue

from agentforge.errors import ConfigError
from agentforge.run.atomic import disk_error, write_all
from agentforge.run.layout import RunLayout

Verb = Literal["pause", "resume", "checkpoint", "suspend", "finish", "abort", "set", "answer"]
VERBS: tuple[Verb, ...] = get_args(Verb)
VERB_ARGS: dict[str, tuple[str, ...]] = {"set": ("key", "value"), "answer": ("alert", "action")}
"""What a verb needs in ``args``; the others need nothing."""

MAX_LINE = 64 * 1024
"""Longer lines are no commands; they are refused without being parsed."""


@dataclass(frozen=True, slots=True)
class Command:
    """One line of ``control.jsonl``.

    Attributes:
        id: The sender's name for it; ``line@OFFSET`` when it gave none.
        verb: What is asked.
        args: Its arguments.
        by: Who asks.
        t: When it was sent, in seconds since the epoch; None when the sender did not say.
        offset: Where its line begins in the file, in bytes.
        problem: Why it cannot be obeyed; empty for a well-formed command.
    """

    id: str
    verb: str
    offset: int
    args: Mapping[str, JsonValue] = field(default_factory=dict)
    by: str = "unknown"
    t: float | None = None
    problem: str = ""


def append_command(
    layout: RunLayout,
    verb: str,
    args: Mapping[str, JsonValue] | None = None,
    by: str = "user",
) -> str:
    """Send one command to the engine of a run.

    Args:
        layout: The run.
        verb: One of `VERBS`.
        args: ``{"key", "value"}`` for ``set``, ``{"alert", "action"}`` for ``answer``.
        by: Who asks, such as ``console``.

    Returns:
        The command's id, under which a `ControlAck` event answers.

    Raises:
        ConfigError: No such verb, or an argument is missing.
        PreflightError: The run directory cannot be written.
    """
    args = dict(args or {})
    problem = check_verb(verb, args)
    if problem:
        raise ConfigError(problem, remedy="see agentforge-tui --help")
    command_id = secrets.token_hex(6)
    row = {"id": command_id, "verb": verb, "args": args, "by": by, "t": time.time()}
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise ConfigError(f"a command of {len(line)} bytes: at most {MAX_LINE} are allowed")
    try:
        handle = os.open(layout.control, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(handle).st_size
            # Ends the line of a sender that was killed while it wrote. An append is one call, so
            # that two senders never mix their lines.
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            write_all(handle, b"\n" + line if torn else line)
        finally:
            os.close(handle)
    except OSError as error:
        raise disk_error(error, layout.control) from None
    return command_id


class CommandReader:
    """Reads the lines that were appended since the last call.

    Args:
        path: ``control.jsonl``; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[Command]:
        """The new complete lines, in order; a line still being written waits for the next call."""
        try:
            handle = os.open(self._path, os.O_RDONLY)
        except OSError:
            return []
        try:
            size = os.fstat(handle).st_size
            data = os.pread(handle, size - self._offset, self._offset) if size else b""
        finally:
            os.close(handle)
        end = data.rfind(b"\n") + 1
        commands = []
        offset = self._offset
        for line in data[:end].split(b"\n")[:-1]:
            if line.strip():
                commands.append(parse_command(line, offset))
            offset += len(line) + 1
        self._offset += end
        return commands


def parse_command(line: bytes, offset: int) -> Command:
    """Read one line; whatever it holds, the result can be answered under its id."""
    command_id = f"line@{offset}"
    if len(line) > MAX_LINE:
        return Command(command_id, "", offset, problem=f"a line of {len(line)} bytes")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return Command(command_id, "", offset, problem="the line is not JSON")
    if not isinstance(row, dict):
        return Command(command_id, "", offset, problem="the line is not a JSON object")
    if isinstance(row.get("id"), str) and row["id"]:
        command_id = row["id"]
    args = row.get("args") or {}
    verb = row.get("verb")
    if not isinstance(verb, str) or not isinstance(args, dict):
        return Command(command_id, "", offset, problem="verb must be text and args an object")
    return Command(
        id=command_id,
        verb=verb,
        offset=offset,
        args=args,
        by=row["by"] if isinstance(row.get("by"), str) else "unknown",
        t=_time(row.get("t")),
        problem=check_verb(verb, args),
    )


def check_verb(verb: str, args: Mapping[str, JsonValue]) -> str:
    """What is wrong with a verb and its arguments; empty when nothing is."""
    if verb not in VERBS:
        return f"unknown verb {verb!r}; allowed: {', '.join(VERBS)}"
    lacking = [name for name in VERB_ARGS.get(verb, ()) if name not in args]
    return f"{verb} needs args {', '.join(lacking)}" if lacking else ""


def _time(value: Any) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return None
    return None
