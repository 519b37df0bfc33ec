"""What the kernels should reach, and whether a run reached it; not measured is not reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.kernels import cases
from bench.kernels.results import Row
from bench.kernels.table import Results

DENSE = (cases.DENSE, cases.COLD)


@dataclass(frozen=True, slots=True)
class Target:
    """A lower bound for every case of a kind.

    Attributes:
        text: What is promised.
        bound: Least value.
        peer: Whose time over ours is the value; empty: the share of the limit.
        applies: To which of our rows.
    """

    text: str
    bound: float
    peer: str
    applies: Callable[[Row], bool]


def _dense(threads: int, batches: tuple[int, ...], op: str = cases.DENSE) -> Callable[[Row], bool]:
    return lambda row: row.op == op and row.threads == threads and row.m in batches


def _wide(threads: int, least: int) -> Callable[[Row], bool]:
    return lambda row: row.op == cases.DENSE and row.threads == threads and row.n * row.k >= least


def _zeros(op: str, least: int, most: int = 100) -> Callable[[Row], bool]:
    def applies(row: Row) -> bool:
        kind, _, zeros = row.op.rpartition("_")
        return kind == op and least <= int(zeros) <= most

    return applies


_MIDDLE, _LARGE = 2560 * 2560, 4096 * 4096
TARGETS = (
    Target("1 thread, batch 1 hot", 5.0, "ggml TQ2_0", _dense(1, (1,))),
    Target("1 thread, batch 16 to 256", 5.0, "ggml TQ2_0", _dense(1, (16, 64, 256))),
    Target("1 thread, batch 1 hot", 15.0, "torch fp32", _dense(1, (1,))),
    Target("1 thread, batch 256", 7.0, "torch fp32", _dense(1, (256,))),
    Target("1 thread, batch 256", 1.7, "torch bf16", _dense(1, (256,))),
    Target("1 thread, 2560x2560 and wider", 0.75, "", _wide(1, _MIDDLE)),
    Target(
        "2 threads, everywhere", 3.0, "ggml TQ2_0", lambda row: row.op in DENSE and row.threads == 2
    ),
    Target("2 threads, 4096x4096 and larger", 0.75, "", _wide(2, _LARGE)),
    Target("2 threads, 2560x2560 and larger", 0.55, "", _wide(2, _MIDDLE)),
    Target("20 % zero blocks and more", 1.0, "native dense", _zeros(cases.BLOCK_SPARSE, 20)),
    Target("75 % zero blocks", 3.0, "native dense", _zeros(cases.BLOCK_SPARSE, 75, 75)),
    Target(
        "50 % zero activations and more, weights in the second-level cache",
        1.0,
        "native dense",
        lambda row: _zeros(cases.ACTIVATION_SPARSE, 50)(row) and row.n * row.k <= 1 << 21,
    ),
    Target("90 % zero activations", 4.0, "native dense", _zeros(cases.ACTIVATION_SPARSE, 90, 90)),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The worst case of a target.

    Attributes:
        target: The target.
        status: ``met``, ``MISSED`` or ``not measured``.
        worst: Least value over the cases; None when one was not measured.
        where: The case of the least value.
        possible: What a kernel at the machine's limit would reach there; None when unknown.
    """

    target: Target
    status: str
    worst: float | None
    where: str
    possible: float | None


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """A verdict a target."""
    return [_judge_one(target, Results(rows)) for target in TARGETS]


def _judge_one(target: Target, results: Results) -> Verdict:
    values: list[tuple[float | None, Row]] = []
    for ours in results.ours(target.applies):
        if target.peer:
            row = results.find(*ours.case, target.peer)
            values.append((None if row is None else row.ratio, ours))
        else:
            values.append((ours.share_of_limit, ours))
    known = [(value, row) for value, row in values if value is not None]
    if not values or len(known) < len(values):
        return Verdict(target, "not measured", None, "", None)
    worst, row = min(known, key=lambda pair: pair[0])
    where = f"{row.n}x{row.k}, batch {row.m}, {row.threads} thread(s), {row.op}"
    status = "met" if worst >= target.bound else "MISSED"
    limited = target.peer and row.share_of_limit
    return Verdict(target, status, worst, where, worst / limited if limited else None)


def text(verdicts: Sequence[Verdict]) -> str:
    """A line a target."""
    lines = []
    for verdict in verdicts:
        target = verdict.target
        against = f"over {target.peer}" if target.peer else "share of limit"
        line = f"{verdict.status}: {target.text}: {against} >= {target.bound}"
        if verdict.worst is not None:
            line += f", least {verdict.worst:.2f} ({verdict.where})"
        if verdict.status == "MISSED" and verdict.possible is not None:
            line += f"; at the machine's limit it would be {verdict.possible:.2f}"
        lines.append(line)
    return "\n".join(lines)
