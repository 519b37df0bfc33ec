"""The last words of a batch run: gates and where everything is, for people or as JSON."""

from __future__ import annotations

import json

from agentforge.errors import ExitCode
from agentforge.report import RunReport, report_json
from agentforge.run.layout import RunLayout
from agentforge.tables import text_table

STATUS_WORDS = {"met": "met", "missed": "MISSED", "not_in_run": "not in this run"}


def result_text(layout: RunLayout, report: RunReport, state: str, reason: str) -> str:
    """Gates as a table, then where the run and its report are."""
    parts = []
    if report.gates:
        rows = [
            (
                gate.name,
                gate.value if gate.in_run else None,
                f"{gate.op} {gate.threshold:g}",
                STATUS_WORDS[gate.status],
                gate.n,
                gate.source,
            )
            for gate in report.gates
        ]
        columns = ("gate", "value", "threshold", "status", "n", "measured on")
        parts += [text_table(columns, rows), ""]
    parts.append(f"run {report.run_id}: {state}" + (f" ({reason})" if reason else ""))
    parts.append(f"directory: {layout.root}")
    for phase in report.phases:
        parts.append(f"report: {layout.reports / f'{phase.phase}.md'}")
    return "\n".join(parts)


def result_json(report: RunReport, state: str, reason: str, code: ExitCode) -> str:
    """The report as JSON with ``state``, ``reason`` and ``exit_code``."""
    row = json.loads(report_json(report))
    row |= {"state": state, "reason": reason, "exit_code": int(code)}
    return json.dumps(row, indent=1, ensure_ascii=False)
