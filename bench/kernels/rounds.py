"""Contestants take turns, round after round; medians of what they took."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.kernels.cases import Case
from bench.kernels.process import Entry, Worker


@dataclass(frozen=True, slots=True)
class Measured:
    """One case.

    Attributes:
        case: The case.
        seconds: Contestant -> median seconds a call.
        errors: Contestant -> relative error of its product.
    """

    case: Case
    seconds: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)


@contextmanager
def workers(
    entries: Sequence[Entry], threads: int, measurement_seconds: float
) -> Iterator[list[Worker]]:
    """Processes of all contestants, started together."""
    started = [Worker(entry, threads, measurement_seconds) for entry in entries]
    try:
        for worker in started:
            worker.greet()
        yield started
    finally:
        for worker in started:
            worker.close()


def measure(
    contestants: Sequence[Worker],
    cases: Sequence[Case],
    rounds: int,
    tell: Callable[[Measured], None] = lambda measured: None,
) -> list[Measured]:
    """Measure every case; ``tell`` is called after each."""
    results = []
    for case in cases:
        measured = _measure_case(contestants, case, rounds)
        results.append(measured)
        tell(measured)
    return results


def _measure_case(contestants: Sequence[Worker], case: Case, rounds: int) -> Measured:
    present = [
        worker for worker in contestants if worker.missing is None and worker.entry.expects(case)
    ]
    for worker in present:
        worker.ask("prepare", case)
    replies = [(worker, worker.reply()) for worker in present]
    taking_part = [worker for worker, reply in replies if "unsupported" not in reply]
    errors = {
        worker.entry.name: reply["error"]
        for worker, reply in replies
        if reply.get("error") is not None
    }
    taken: dict[str, list[float]] = {worker.entry.name: [] for worker in taking_part}
    for round_number in range(rounds + 1):
        for worker in taking_part:
            worker.ask("time", case)
            seconds = worker.reply()["seconds"]
            if round_number:  # the first finds how often to repeat, and warms up
                taken[worker.entry.name].append(seconds)
    return Measured(case, {name: statistics.median(times) for name, times in taken.items()}, errors)
