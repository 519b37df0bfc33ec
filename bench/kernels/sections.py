"""What a run measures: all of it, or the quick part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.kernels import cases, contestants
from bench.kernels.cases import Case
from bench.kernels.process import OURS, Entry
from bench.kernels.results import LIMITS


@dataclass(frozen=True, slots=True)
class Plan:
    """A run.

    Attributes:
        entries: Contestants, ours first.
        cases: In order.
        rounds: Measurements of each contestant a case.
        measurement_seconds: About how long one takes.
    """

    entries: list[Entry]
    cases: list[Case]
    rounds: int
    measurement_seconds: float


def full(threads: tuple[int, ...], options: dict[str, Any]) -> Plan:
    """Everything: about ten minutes."""
    every = cases.dense_cases(cases.SHAPES, cases.BATCHES, threads)
    every += cases.sparse_cases(cases.SPARSE_SHAPES, cases.ZEROS, threads[:1])
    every += [Case(cases.HEAD, *cases.HEAD_SHAPE, 1, count) for count in threads]
    every += [Case(cases.QUANTIZE, 1, k, m, threads[0]) for m, k in cases.QUANTIZED]
    return Plan(contestants.ours(options) + contestants.peers(options), every, 11, 0.004)


def quick(threads: tuple[int, ...], options: dict[str, Any]) -> Plan:
    """Four shapes, the peers the targets name: under a minute."""
    entries = contestants.ours(options) + contestants.peers(options)
    wanted = (OURS, *LIMITS, *contestants.QUICK_PEERS)
    return Plan(
        [entry for entry in entries if entry.name in wanted],
        cases.dense_cases(cases.QUICK_SHAPES, cases.QUICK_BATCHES, threads),
        5,
        0.002,
    )
