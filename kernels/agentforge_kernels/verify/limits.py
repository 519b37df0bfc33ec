"""Static limits of the kernels: a ratchet on the figures checked in as ``limits.json``.

It holds what a kernel has reached: on a Triton version of :data:`RATCHETED` no figure may be more
than 5 % worse than the checked-in one. Every case has an entry for every target it ships for; a
missing entry fails, and so does one whose case or target is gone. On any other version of Triton
only the absolute gates (``gates``) hold.

``python -m agentforge_kernels.verify --update-limits`` writes the figures of the installed version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from agentforge_kernels.verify.cases import KernelCase
from agentforge_kernels.verify.gates import absolute_failures
from agentforge_kernels.verify.report import StaticReport
from agentforge_kernels.verify.targets import TARGETS

RATCHETED = ("3.7.1", "3.9.0")
"""Triton versions with figures: what torch 2.13 asks for, and the newest."""
LIMITS_FILE = Path(__file__).parent / "limits.json"
TOLERANCE = 0.05
"""How much worse than checked in a figure may be."""

LARGER_IS_WORSE = (
    "registers",
    "spill_bytes",
    "shared_bytes",
    "loop_instructions",
    "narrow_loads",
    "instructions_per_item",
)
SMALLER_IS_WORSE = ("occupancy",)

Figures: TypeAlias = dict[str, float]
Limits: TypeAlias = dict[str, dict[str, dict[str, Figures]]]
"""Figures by case, target and Triton version."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, in sentences; empty lists are good.

    Attributes:
        gates: Absolute gates missed.
        ratchet: Figures worse than checked in, missing and stale entries.
        notes: What was not held, and why.
    """

    gates: list[str]
    ratchet: list[str]
    notes: list[str]


def figures(report: StaticReport) -> Figures:
    """What the ratchet holds of a report."""
    found: Figures = {
        "registers": report.registers,
        "spill_bytes": report.spill_bytes,
        "shared_bytes": report.shared_bytes,
        "occupancy": round(report.occupancy.share, 4),
        "loop_instructions": report.work.instructions,
        "narrow_loads": report.work.narrow_loads,
    }
    if report.instructions_per_item is not None:
        found["instructions_per_item"] = round(report.instructions_per_item, 4)
    return found


def read_limits(path: Path) -> Limits:
    """The checked-in figures.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON.
    """
    limits: Limits = json.loads(path.read_text(encoding="utf-8"))
    return limits


def ratchet_failures(
    reports: Sequence[StaticReport],
    limits: Limits,
    cases: Sequence[KernelCase],
    tolerance: float = TOLERANCE,
) -> list[str]:
    """Figures worse than checked in, missing entries and stale ones, in sentences.

    Args:
        reports: What was compiled now; of versions in :data:`RATCHETED`.
        limits: What was checked in.
        cases: All cases: what an entry may be of.
        tolerance: How much worse is allowed, as a share.
    """
    failures = []
    for report in reports:
        where = f"{report.case} on {report.target} with Triton {report.triton}"
        entry = limits.get(report.case, {}).get(report.target, {}).get(report.triton)
        if entry is None:
            failures.append(f"{where}: no entry in limits.json; add it with --update-limits")
            continue
        now = figures(report)
        for name in sorted(entry.keys() - now.keys()):
            failures.append(f"{where}: the figure {name}, {entry[name]} before, is not reported")
        for name, seen in now.items():
            if name not in entry:
                failures.append(
                    f"{where}: no figure {name} in limits.json; add it with --update-limits"
                )
            elif worse(name, seen, entry[name], tolerance):
                failures.append(
                    f"{where}: {name} {seen}, checked in: {entry[name]}, "
                    f"allowed: {tolerance:.0%} worse"
                )
    return failures + stale_entries(limits, cases)


def worse(name: str, seen: float, checked_in: float, tolerance: float = TOLERANCE) -> bool:
    """Whether a figure is further in the bad direction than the tolerance allows.

    Raises:
        ValueError: A figure of which no direction is known.
    """
    if name in LARGER_IS_WORSE:
        return seen > checked_in * (1 + tolerance)
    if name in SMALLER_IS_WORSE:
        return seen < checked_in * (1 - tolerance)
    raise ValueError(f"figure {name}; allowed: {', '.join(LARGER_IS_WORSE + SMALLER_IS_WORSE)}")


def stale_entries(limits: Limits, cases: Sequence[KernelCase]) -> list[str]:
    """Entries whose case, target or Triton version is gone, in sentences."""
    shipped = {case.name: case.targets for case in cases}
    stale = []
    for case, targets in limits.items():
        if case not in shipped:
            stale.append(
                f"limits.json: {case} is no kernel case any more; remove it with --update-limits"
            )
            continue
        for target, versions in targets.items():
            if target not in shipped[case]:
                stale.append(
                    f"limits.json: {case} does not ship for {target}; "
                    f"remove it with --update-limits"
                )
            stale += [
                f"limits.json: {case} on {target}: figures of Triton {version}, "
                f"which is not ratcheted"
                for version in versions
                if version not in RATCHETED
            ]
    return stale


def judge(
    reports: Sequence[StaticReport],
    limits: Limits,
    cases: Sequence[KernelCase],
    expected: Iterable[tuple[str, str]] | None = None,
) -> Verdict:
    """Hold reports against gates and ratchet; an expected report that is not there fails.

    Args:
        reports: What was compiled.
        limits: What was checked in.
        cases: All cases: what an entry of the limits may be of.
        expected: Case and target of the reports there must be; all cases on all their targets by
            default.
    """
    if expected is None:
        expected = [(case.name, target) for case in cases for target in case.targets]
    reported = {(report.case, report.target) for report in reports}
    gates = [failure for report in reports for failure in absolute_failures(report)]
    gates += [
        f"{case} on {target}: no report"
        for case, target in expected
        if (case, target) not in reported
    ]
    held = [report for report in reports if report.triton in RATCHETED]
    notes = [
        f"Triton {version}: no ratchet exists for it "
        f"(there is one for {', '.join(RATCHETED)}); only "
        f"the absolute gates were held"
        for version in sorted({report.triton for report in reports} - set(RATCHETED))
    ]
    return Verdict(gates, ratchet_failures(held, limits, cases), notes)


def updated(limits: Limits, reports: Sequence[StaticReport], cases: Sequence[KernelCase]) -> Limits:
    """The limits with the reports' figures put in and stale entries taken out.

    Raises:
        ValueError: Reports of a Triton version that is not ratcheted.
    """
    if stray := sorted({report.triton for report in reports} - set(RATCHETED)):
        raise ValueError(f"Triton {stray}; allowed: {RATCHETED}, add it there first")
    found = {(report.case, report.target): report for report in reports}
    new: Limits = {}
    for case in sorted(cases, key=lambda case: case.name):
        for target in (name for name in TARGETS if name in case.targets):
            entry = dict(limits.get(case.name, {}).get(target, {}))
            if report := found.get((case.name, target)):
                entry[report.triton] = figures(report)
            kept = {version: entry[version] for version in RATCHETED if version in entry}
            if kept:
                new.setdefault(case.name, {})[target] = kept
    return new


def write_limits(limits: Limits, path: Path) -> None:
    """Write the limits, one line for the figures of one case, target and version."""
    lines = ["{"]
    for case, targets in limits.items():
        lines.append(f" {json.dumps(case)}: {{")
        for target, versions in targets.items():
            lines.append(f"  {json.dumps(target)}: {{")
            lines += [
                f"   {json.dumps(version)}: {json.dumps(entry)},"
                for version, entry in versions.items()
            ]
            lines[-1] = lines[-1].removesuffix(",")
            lines.append("  },")
        lines[-1] = "  }"
        lines.append(" },")
    if len(lines) > 1:
        lines[-1] = " }"
    lines.append("}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
