"""Rows of the results: one a case and contestant, as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from bench.kernels.process import OURS, Worker, contestant_name
from bench.kernels.rounds import Measured

LIMITS = ("machine read", "machine multiply")


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant's time for one case.

    Attributes:
        op: Operation; sparse ones carry their zeros in per cent (``block_sparse_75``).
        backend: Software that computed: ours is ``native``; ``machine`` is a limit.
        peer: Name of the peer; empty for ours.
        n, k, m: Rows, columns, tokens.
        threads: Threads of a call.
        median_us: Median microseconds of a call of this contestant; None: the peer is missing.
        ratio: Its time over ours.
        share_of_limit: Ours only: the machine's limit, the slower of reading and multiplying, over
            our time.
        machine: Processor, CPUs, system, priority, load when the run began.
        isa: Level of instruction set of our kernels.
        versions: Of the contestant's software.
    """

    op: str
    backend: str
    peer: str
    n: int
    k: int
    m: int
    threads: int
    median_us: float | None
    ratio: float | None
    share_of_limit: float | None
    machine: str
    isa: str
    versions: str

    @property
    def case(self) -> tuple[str, int, int, int, int]:
        """What was done, by whomever."""
        return (self.op, self.n, self.k, self.m, self.threads)

    @property
    def name(self) -> str:
        """The contestant as tables call it."""
        return contestant_name(self.backend, self.peer)


COLUMNS = tuple(field.name for field in fields(Row))
_INTEGERS = ("n", "k", "m", "threads")
_NUMBERS = ("median_us", "ratio", "share_of_limit")


def rows_of(
    measured: Iterable[Measured], contestants: Sequence[Worker], machine: str, isa: str
) -> list[Row]:
    """Rows of a run; a missing peer has rows without times wherever it should have had some."""
    rows = []
    for result in measured:
        ours = result.seconds.get(OURS)
        if ours is None:  # an extension without this operation
            continue
        limits = [result.seconds[name] for name in LIMITS if name in result.seconds]
        for worker in contestants:
            entry = worker.entry
            seconds = result.seconds.get(entry.name)
            if seconds is None and (worker.missing is None or not entry.expects(result.case)):
                continue
            case = result.case
            share = max(limits) / ours if entry.name == OURS and limits else None
            rows.append(
                Row(
                    op=case.label,
                    backend=entry.backend,
                    peer=entry.peer,
                    n=case.n,
                    k=case.k,
                    m=case.m,
                    threads=case.threads,
                    median_us=None if seconds is None else seconds * 1e6,
                    ratio=None if seconds is None else seconds / ours,
                    share_of_limit=share,
                    machine=machine,
                    isa=worker.hello.get("isa") or isa,
                    versions=worker.missing or worker.hello["versions"],
                )
            )
    return rows


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a CSV file, replacing it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_text(value) for value in astuple(row)])


def read_rows(path: Path) -> list[Row]:
    """Read what :func:`write_rows` wrote.

    Raises:
        ValueError: The columns are not those of a row.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: columns {reader.fieldnames}, expected {list(COLUMNS)}")
        return [_row(record) for record in reader]


def _row(record: dict[str, str]) -> Row:
    values: dict[str, object] = dict(record)
    for name in _INTEGERS:
        values[name] = int(record[name])
    for name in _NUMBERS:
        values[name] = float(record[name]) if record[name] else None
    return Row(**values)  # type: ignore[arg-type]


def _text(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else value
