"""Measure, print, write: ``python -m bench.kernels [--quick] [--output FILE] [--no-readme]``.

A full run replaces ``bench/results/kernels.csv`` and the README's table; ``--quick`` leaves both
alone and writes ``build/kernels_quick.csv``. ``--render`` makes the README's table from a file that
is there.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.kernels import machine, sections, table, targets
from bench.kernels.process import OURS, Worker
from bench.kernels.results import Row, read_rows, rows_of, write_rows
from bench.kernels.rounds import Measured, measure, workers
from bench.kernels.sections import Plan

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "kernels.csv"
QUICK_RESULTS = ROOT / "build" / "kernels_quick.csv"
README = ROOT / "README.md"
MOST_ERROR = {"ggml Q4_0": 0.15, "ggml Q2_K": 0.35}
"""Relative error of a product that still counts as that product: formats with few levels."""
MOST_ERROR_ELSEWHERE = 0.05


class WrongProductError(Exception):
    """A contestant does not compute the product; its time means nothing."""


def describe_machine(raised: bool, load: float) -> str:
    """The ``machine`` column."""
    priority = "priority raised" if raised else "priority not raised"
    return (
        f"{machine.cpu_name()}, {len(machine.usable_cpus())} CPUs, {platform.system()}, "
        f"{priority}, load {load:.1f} before the run"
    )


def check_products(measured: Measured) -> None:
    """Refuse times of wrong products.

    Raises:
        WrongProductError: A contestant's error is too large.
    """
    for name, error in measured.errors.items():
        if not error <= MOST_ERROR.get(name, MOST_ERROR_ELSEWHERE):
            raise WrongProductError(f"{name}: relative error {error} in {measured.case}")


def run(plan: Plan) -> list[Row]:
    """Measure a plan, telling progress on standard error."""
    load = machine.load()
    most_threads = max(case.threads for case in plan.cases)
    started = time.monotonic()
    with workers(plan.entries, most_threads, plan.measurement_seconds) as contestants:
        first = contestants[0]
        if first.entry.name != OURS or first.missing is not None:
            raise SystemExit(f"nothing to measure: {first.missing}")
        for worker in contestants:
            if worker.missing is not None:
                print(f"MISSING PEER {worker.entry.name}: {worker.missing}", file=sys.stderr)
        measured = measure(contestants, plan.cases, plan.rounds, _progress(plan, started))
        for op in dict.fromkeys(m.case.op for m in measured if OURS not in m.seconds):
            print(f"NOT MEASURED {op}: the extension lacks it", file=sys.stderr)
        return _rows(measured, contestants, load)


def _rows(measured: list[Measured], contestants: list[Worker], load: float) -> list[Row]:
    raised = all(worker.hello["raised"] for worker in contestants if worker.missing is None)
    isa = contestants[0].hello["isa"]
    return rows_of(measured, contestants, describe_machine(raised, load), isa)


def _progress(plan: Plan, started: float) -> Callable[[Measured], None]:
    """Checks every case when it is done, and tells a person at a terminal."""
    numbers = itertools.count(1)

    def tell(measured: Measured) -> None:
        check_products(measured)
        number, case = next(numbers), measured.case
        if not sys.stderr.isatty():
            return
        end = "\n" if number == len(plan.cases) else ""
        print(
            f"\r{time.monotonic() - started:4.0f} s, {number} of {len(plan.cases)}: {case.label} "
            f"{case.n}x{case.k}, batch {case.m}, {case.threads} thread(s)\x1b[K",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    return tell


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="CPU kernels beside the fastest public ones")
    parser.add_argument("--quick", action="store_true", help="four shapes, under a minute")
    parser.add_argument("--rounds", type=int, help="measurements of each contestant a case")
    parser.add_argument("--extension", type=Path, help="an extension built elsewhere")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    parser.add_argument("--readme", type=Path, default=README, help="document with the markers")
    parser.add_argument("--no-readme", action="store_true", help="leave the document alone")
    parser.add_argument("--render", action="store_true", help="README from the CSV, no run")
    options = parser.parse_args(arguments)
    if options.render:
        table.write_readme(options.readme, read_rows(options.output or RESULTS))
        return
    threads = (1, 2) if len(machine.usable_cpus()) > 1 else (1,)
    extension = {"extension": str(options.extension.resolve())} if options.extension else {}
    plan = (sections.quick if options.quick else sections.full)(threads, extension)
    if options.rounds:
        plan = replace(plan, rounds=options.rounds)
    machine.raise_priority(session=False)  # this process hands out turns, and does nothing else
    rows = run(plan)
    print(table.text(rows))
    print(targets.text(targets.judge(rows)))
    output = options.output or (QUICK_RESULTS if options.quick else RESULTS)
    write_rows(rows, output)
    print(f"written: {os.path.relpath(output)}")
    if not options.quick and not options.no_readme:
        table.write_readme(options.readme, read_rows(output))
        print(f"written: the table in {os.path.relpath(options.readme)}")


if __name__ == "__main__":
    main()
