"""Reports: what a phase measured, as tables and gates, in JSON and Markdown.

A phase writes ``reports/PHASE.json``; the report of a run is what all its phases wrote. The same
tables go into events, so that the console and W&B show what the report says.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from agentforge.errors import RunError
from agentforge.gates import Gate
from agentforge.run.atomic import write_atomic
from agentforge.run.layout import RunLayout
from agentforge.run.manifest import Manifest, load_manifest

Cell = str | float | int | bool | None


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a report.

    Attributes:
        name: Key in JSON, events and W&B, such as ``diversity/model_comparison``.
        title: Heading.
        columns: Their names.
        rows: Cells; None shows as a dash.
        note: One sentence below: where it was measured, what to make of it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """What one phase measured."""

    phase: str
    title: str
    gates: tuple[Gate, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run measured so far."""

    run_id: str
    path: str
    preset: str
    seed: int
    state: str
    created: float
    phases: tuple[PhaseReport, ...]
    artifacts: tuple[tuple[str, str, int], ...]
    """Name, path and bytes of each."""

    @property
    def gates(self) -> tuple[Gate, ...]:
        """All gates of all phases."""
        return tuple(g for p in self.phases for g in p.gates)


def save_phase_report(layout: RunLayout, report: PhaseReport) -> None:
    """Write ``reports/PHASE.json`` and ``reports/PHASE.md``."""
    layout.reports.mkdir(exist_ok=True)
    row = dataclasses.asdict(report)
    text = json.dumps(_finite(row), indent=1, ensure_ascii=False)
    write_atomic(layout.reports / f"{report.phase}.json", text + "\n")
    write_atomic(layout.reports / f"{report.phase}.md", phase_markdown(report))


def build_report(layout: RunLayout) -> RunReport:
    """Read what the phases of a run wrote.

    Raises:
        RunError: A report file is damaged.
    """
    manifest = load_manifest(layout)
    phases = []
    for phase in manifest.phases:
        path = layout.reports / f"{phase}.json"
        if manifest.phases[phase].status == "done" and not path.exists():
            raise RunError(
                f"{path} is missing although the phase is done: its gates cannot be told",
                remedy="restore the file, or run the phase again in a new run",
            )
        if path.exists():
            phases.append(_read(path.read_text(encoding="utf-8"), str(path)))
    return _run_report(layout, manifest, tuple(phases))


def _run_report(
    layout: RunLayout, manifest: Manifest, phases: tuple[PhaseReport, ...]
) -> RunReport:
    config = manifest.config
    seed = config.get("seed")
    return RunReport(
        run_id=manifest.run_id,
        path=str(layout.root),
        preset=str(config.get("preset", "")),
        seed=seed if isinstance(seed, int) else -1,
        state=manifest.state,
        created=manifest.created,
        phases=phases,
        artifacts=tuple((a.name, a.path, a.bytes) for a in manifest.artifacts.values()),
    )


def _read(text: str, source: str) -> PhaseReport:
    try:
        row = json.loads(text)
        return PhaseReport(
            phase=row["phase"],
            title=row["title"],
            gates=tuple(Gate(**g) for g in row["gates"]),
            tables=tuple(
                Table(
                    name=t["name"],
                    title=t["title"],
                    columns=tuple(t["columns"]),
                    rows=tuple(tuple(r) for r in t["rows"]),
                    note=t["note"],
                )
                for t in row["tables"]
            ),
            notes=tuple(row["notes"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{source} is damaged: {error}", remedy="resume the run; the phase writes it again"
        ) from None


def report_json(report: RunReport) -> str:
    """The report as JSON; ``gates`` holds name, value, op, threshold, n, source and passed."""
    row = dataclasses.asdict(report)
    for phase in row["phases"]:
        del phase["gates"]
    row["gates"] = [
        {
            "name": g.name,
            "value": g.value,
            "op": g.op,
            "threshold": g.threshold,
            "n": g.n,
            "source": g.source,
            "passed": g.passed,
            "status": g.status,
        }
        for g in report.gates
    ]
    return json.dumps(_finite(row), indent=1, ensure_ascii=False)


def report_markdown(report: RunReport) -> str:
    """The report for people."""
    head = [
        f"# Run {report.run_id}",
        "",
        f"Preset `{report.preset}`, seed {report.seed}, state: {report.state}. "
        f"Directory: `{report.path}`.",
        "",
    ]
    if not report.phases:
        head.append("No phase has finished yet.\n")
    body = [phase_markdown(phase) for phase in report.phases]
    files = [
        "## Artefacts",
        "",
        *_table_lines(("name", "path", "bytes"), report.artifacts),
        "",
    ]
    return "\n".join(head) + "\n".join(body) + ("\n".join(files) if report.artifacts else "")


def phase_markdown(report: PhaseReport) -> str:
    """One phase for people: gates first, then tables, then notes."""
    lines = [f"## {report.title}", "", "### Gates", ""]
    lines += gate_lines(report.gates)
    for table in report.tables:
        lines += ["", f"### {table.title}", ""]
        lines += _table_lines(table.columns, table.rows)
        if table.note:
            lines += ["", table.note]
    if report.notes:
        lines += ["", "### Notes", ""]
        lines += [f"- {note}" for note in report.notes]
    return "\n".join(lines) + "\n"


def gate_lines(gates: Sequence[Gate]) -> list[str]:
    """Gates as a Markdown table."""
    words = {"met": "met", "missed": "**missed**", "not_in_run": "not in this run"}
    rows = [
        (
            g.name,
            g.value if g.in_run else None,
            f"{g.op} {g.threshold:g}",
            words[g.status],
            g.n,
            g.source,
        )
        for g in gates
    ]
    return _table_lines(("gate", "value", "threshold", "status", "n", "measured on"), rows)


def _table_lines(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    lines = [
        "| " + " | ".join(show(name) for name in columns) + " |",
        "|" + " --- |" * len(columns),
    ]
    return lines + ["| " + " | ".join(show(cell) for cell in row) + " |" for row in rows]


def show(cell: Cell) -> str:
    """One cell: numbers short, None and NaN as a dash."""
    if cell is None or cell != cell:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.4g}" if abs(cell) < 1e5 else f"{cell:,.0f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return cell.replace("|", "\\|").replace("\n", " ")


def _finite(value: object) -> object:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
