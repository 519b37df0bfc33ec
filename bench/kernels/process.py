"""The benchmark's side of a contestant's process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.kernels.cases import Case
from bench.kernels.machine import worker_environment

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Entry:
    """Who takes part, in what.

    Attributes:
        backend: Software that computes; ``machine`` for a limit.
        peer: Name of the peer; empty for ours.
        kind: ``module:class`` of the contestant.
        options: Arguments of the class.
        expects: Which cases it should be able to do.
    """

    backend: str
    peer: str
    kind: str
    options: dict[str, Any]
    expects: Callable[[Case], bool] = lambda case: True

    @property
    def name(self) -> str:
        """The contestant as tables call it."""
        return contestant_name(self.backend, self.peer)


def contestant_name(backend: str, peer: str) -> str:
    """``ours`` for our own, else backend and peer."""
    return f"{backend} {peer}" if peer else OURS


class WorkerError(Exception):
    """A contestant's process died or said nothing; the message names it."""


class Worker:
    """A contestant in its own process.

    Attributes:
        entry: Who it is.
        missing: Why the peer cannot take part; None when it can.
        hello: ``versions`` of its software, ``isa`` of ours, ``raised``: whether its priority is.
    """

    def __init__(self, entry: Entry, threads: int, measurement_seconds: float) -> None:
        self.entry = entry
        options = json.dumps({**entry.options, "measurement_seconds": measurement_seconds})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.kernels.worker", entry.kind, options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=worker_environment(threads),
        )
        self.missing: str | None = None
        self.hello: dict[str, Any] = {}

    def greet(self) -> None:
        """Wait until the process is ready, or says why its peer is missing."""
        hello = self._receive()
        self.missing = hello.pop("missing", None)
        self.hello = hello

    def ask(self, do: str, case: Case) -> None:
        """Send a request."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "case": case.to_json()}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(f"{self.entry.name}: the process has ended") from None

    def reply(self) -> dict[str, Any]:
        """Receive a request's answer."""
        return self._receive()

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise WorkerError(f"{self.entry.name}: the process ended with exit code {code}")
        reply: dict[str, Any] = json.loads(line)
        return reply
