"""The journal of a generation: every attempt that reached the endpoint, one JSON line, fsynced.

It is the one place where examples and cost are kept; `examples.jsonl` is written from it. So a
killed generation goes on with every valid example kept exactly once and every dollar counted: an
attempt without a line is one whose reply never arrived.
"""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentforge.errors import DataError
from agentforge.reasoning.example import ReasoningExample
from agentforge.run.atomic import disk_error, write_all

JOURNAL = "calls.jsonl"

Outcome = Literal[
    "ok", "bad_json", "rate_limit", "server_error", "timeout", "connection", "refused"
]


class Attempt(BaseModel):
    """One attempt of one call.

    Attributes:
        teacher, strategy: The stream it belongs to.
        call: Its number in the stream.
        attempt: 0 for the first.
        outcome: What came of it.
        asked: Examples asked for.
        input_tokens, output_tokens: As reported; 0 where nothing was.
        usd: What it cost, exact.
        faults: Examples that were not usable, by reason.
        examples: Those that were.
        detail: For people: status, or what was wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    strategy: str
    call: int = Field(ge=0)
    attempt: int = Field(ge=0)
    outcome: Outcome
    asked: int = Field(ge=1)
    input_tokens: int = Field(0, ge=0)
    output_tokens: int = Field(0, ge=0)
    usd: Decimal = Decimal(0)
    faults: dict[str, int] = {}
    examples: tuple[ReasoningExample, ...] = ()
    detail: str = ""


class Journal:
    """Appends attempts; reads those of earlier processes.

    Args:
        folder: The set's folder; it must exist.

    Attributes:
        attempts: Everything so far, in order.

    Raises:
        DataError: A line in the middle is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.attempts: list[Attempt] = []
        size = self._read()
        try:
            self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            # A line that a crash cut would otherwise swallow the next one.
            os.ftruncate(self._handle, size)
        except OSError as error:
            raise disk_error(error, self.path) from None

    def _read(self) -> int:
        """Bytes of whole lines."""
        if not self.path.exists():
            return 0
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.decode("utf-8", "replace").splitlines(), 1):
            try:
                self.attempts.append(Attempt.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                raise DataError(
                    f"{self.path} line {number}: {first['msg']}",
                    remedy="remove the damaged line, or generate into another folder",
                ) from None
        return len(whole)

    def add(self, attempt: Attempt) -> None:
        """Write one attempt so that it survives a power cut.

        Raises:
            PreflightError: The disk refuses.
        """
        try:
            write_all(self._handle, f"{attempt.model_dump_json()}\n".encode())
            os.fsync(self._handle)
        except OSError as error:
            raise disk_error(error, self.path) from None
        self.attempts.append(attempt)

    def close(self) -> None:
        """Nothing is written any more."""
        os.close(self._handle)
