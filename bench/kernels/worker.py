"""A contestant's process: JSON lines in, JSON lines out.

    python -m bench.kernels.worker MODULE:CLASS ARGUMENTS_AS_JSON

Requests: ``{"do": "prepare" | "time", "case": {...}}``. A measurement repeats the call so often
that it takes a few milliseconds.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from importlib import import_module
from typing import Any, TextIO

from bench.kernels.cases import Case
from bench.kernels.contestant import Contestant, MissingPeerError
from bench.kernels.machine import raise_priority

STILL_BUSY = 0.1
"""Share of a processor above which a process counts as busy."""


class Clock:
    """Times a contestant's calls; remembers how many fill a measurement."""

    def __init__(self, contestant: Contestant, measurement_seconds: float) -> None:
        self._contestant = contestant
        self._seconds = measurement_seconds
        self._repeats: dict[Case, int] = {}

    def seconds_per_call(self, case: Case) -> float:
        """One measurement, after a quarter of one that is not counted.

        The quarter brings the weights back into the caches and wakes sleeping threads, which on a
        busy machine wait for milliseconds to be let in.
        """
        if case not in self._repeats:
            self._repeats[case] = self._calibrated(case)
        repeats = self._repeats[case]
        before = max(repeats // 4, 1 if case.threads > 1 else 0)
        if before:
            self._contestant.run(case, before)
        return self._contestant.run(case, repeats) / repeats

    def _calibrated(self, case: Case) -> int:
        """Repeats that fill a measurement: every matrix of a cold case at least once."""
        repeats = case.copies
        while True:
            taken = max(self._contestant.run(case, repeats), 1e-9)
            if taken >= self._seconds / 4 or repeats > 1 << 24:
                break
            repeats *= min(16, math.ceil(self._seconds / taken))
        calls = max(1, round(repeats * self._seconds / taken))
        return -(-calls // case.copies) * case.copies


def rest(longest: float = 0.25) -> None:
    """Wait until this process's idle threads no longer spin: they would slow the next turn."""
    until = time.monotonic() + longest
    while time.monotonic() < until:
        before, started = time.process_time(), time.monotonic()
        time.sleep(0.003)
        if time.process_time() - before < STILL_BUSY * (time.monotonic() - started):
            return


def answer(contestant: Contestant, clock: Clock, request: dict[str, Any]) -> dict[str, Any]:
    """Reply to a request."""
    case = Case(**request["case"])
    if not contestant.supports(case):
        return {"unsupported": True}
    if request["do"] == "prepare":
        return {"error": contestant.prepare(case)}
    seconds = clock.seconds_per_call(case)
    if case.threads > 1:
        rest()
    return {"seconds": seconds}


def serve(contestant: Contestant, seconds: float, source: TextIO, sink: TextIO) -> None:
    """Answer requests until the input ends."""
    clock = Clock(contestant, seconds)
    for line in source:
        sink.write(json.dumps(answer(contestant, clock, json.loads(line))) + "\n")
        sink.flush()


def main() -> None:
    """Run as a child of the benchmark."""
    module, _, name = sys.argv[1].partition(":")
    options = json.loads(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with replies
    raised = raise_priority(session=True)
    seconds = options.pop("measurement_seconds")
    try:
        contestant: Contestant = getattr(import_module(module), name)(**options)
    except MissingPeerError as error:
        replies.write(json.dumps({"missing": str(error)}) + "\n")
        replies.flush()
        return
    hello = {"versions": contestant.versions, "isa": contestant.isa, "raised": raised}
    replies.write(json.dumps(hello) + "\n")
    replies.flush()
    serve(contestant, seconds, sys.stdin, replies)


if __name__ == "__main__":
    main()
