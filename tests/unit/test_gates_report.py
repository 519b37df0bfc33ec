"""Gates fail closed; reports say the same in files, JSON and Markdown."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from agentforge.config.load import load_config
from agentforge.errors import RunError
from agentforge.events import GateChecked
from agentforge.gates import Gate, missed
from agentforge.report import (
    PhaseReport,
    Table,
    build_report,
    phase_markdown,
    report_json,
    report_markdown,
    save_phase_report,
    show,
)
from agentforge.run.layout import RunLayout, create_run_dir
from agentforge.run.manifest import Artifact, new_manifest, save_manifest


def gate(value: float | None, op: str = ">=", threshold: float = 0.5, n: int = 10) -> Gate:
    return Gate("cognate.x", value, op, threshold, n, "report split")


@pytest.mark.parametrize("op", [">", ">=", "<", "<=", "=="])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_was_not_measured_is_missed(op: str, value: float | None) -> None:
    found = gate(value, op)
    assert found.status == "missed"
    assert found.passed is False
    assert missed([found]) == [found]


@pytest.mark.parametrize("n", [0, -1])
@pytest.mark.parametrize("op", [">=", "<="])
def test_a_value_that_rests_on_nothing_is_missed(n: int, op: str) -> None:
    assert gate(0.5, op, n=n).status == "missed"


@pytest.mark.parametrize(
    ("op", "below", "equal", "above"),
    [
        (">", False, False, True),
        (">=", False, True, True),
        ("<", True, False, False),
        ("<=", True, True, False),
        ("==", False, True, False),
    ],
)
def test_operators(op: str, below: bool, equal: bool, above: bool) -> None:
    for value, expected in ((0.4, below), (0.5, equal), (0.6, above)):
        assert gate(value, op).passed is expected
        assert gate(value, op).status == ("met" if expected else "missed")


def test_a_gate_not_in_the_run_is_neither_met_nor_missed() -> None:
    for value in (None, 0.9, 0.1, math.nan):
        out = Gate("cognate.x", value, ">=", 0.5, 10, "none", in_run=False)
        assert out.status == "not_in_run"
        assert out.passed is None
        assert missed([out]) == []


def test_a_gates_event_carries_all_of_it() -> None:
    event = gate(0.7).event()
    assert event == GateChecked(
        name="cognate.x",
        value=0.7,
        op=">=",
        threshold=0.5,
        n=10,
        source="report split",
        status="met",
    )


REPORT = PhaseReport(
    phase="cognate",
    title="Phase 1: Cognate",
    gates=(
        gate(0.75),
        Gate("cognate.y", None, ">", 0.1, 0, "nowhere"),
        Gate("cognate.z", 0.2, "<", 1.0, 5, "clock", in_run=False),
        Gate("cognate.w", math.nan, "==", 3.0, 3, "files"),
    ),
    tables=(
        Table(
            name="accuracy",
            title="Exact match",
            columns=("model", "a/b", "n"),
            rows=(("base", 0.123456, 1234567), ("x|y\nz", math.nan, None), ("t", True, -3)),
            note="Report split.",
        ),
        Table("empty", "Nothing", ("figure",), ()),
    ),
    notes=("Ended early.",),
)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    config = load_config(preset="smoke", env={}).config
    made = create_run_dir(tmp_path, "smoke", 1)
    manifest = new_manifest(made, config, {})
    manifest.artifacts["cognate.base"] = Artifact(
        name="cognate.base", phase="cognate", path="artifacts/b.safetensors", bytes=7, sha256="ab"
    )
    save_manifest(made, manifest)
    return made


def test_a_report_comes_back_from_its_file(layout: RunLayout) -> None:
    save_phase_report(layout, REPORT)
    (back,) = build_report(layout).phases
    assert back.phase == REPORT.phase
    assert back.notes == REPORT.notes
    assert back.gates[:3] == REPORT.gates[:3]
    assert back.gates[3].value is None, "JSON has no NaN"
    assert [g.status for g in back.gates] == [g.status for g in REPORT.gates]
    assert back.tables[1] == REPORT.tables[1]
    assert back.tables[0].rows[0] == REPORT.tables[0].rows[0]
    assert back.tables[0].rows[1] == ("x|y\nz", None, None)
    assert back.tables[0].rows[2] == ("t", True, -3)
    assert phase_markdown(back) == phase_markdown(REPORT)
    assert (layout.reports / "cognate.md").read_text() == phase_markdown(REPORT)


def test_json_has_every_gate_with_its_verdict(layout: RunLayout) -> None:
    save_phase_report(layout, REPORT)
    row = json.loads(report_json(build_report(layout)), parse_constant=pytest.fail)
    keys = {"name", "value", "op", "threshold", "n", "source", "passed", "status"}
    assert all(set(g) == keys for g in row["gates"])
    assert [g["passed"] for g in row["gates"]] == [True, False, None, False]
    assert [g["value"] for g in row["gates"]] == [0.75, None, 0.2, None]
    assert row["phases"][0]["tables"][0]["columns"] == ["model", "a/b", "n"]
    assert row["artifacts"] == [["cognate.base", "artifacts/b.safetensors", 7]]
    assert row["preset"] == "smoke"


def table_of(text: str, heading: str) -> list[list[str]]:
    """Cells of the Markdown table behind a heading."""
    part = text.split(f"### {heading}\n")[1].split("\n#")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    return [[c.strip() for c in r.replace("\\|", "\0").strip("|").split("|")] for r in rows]


def test_markdown_shows_gates_tables_and_notes(layout: RunLayout) -> None:
    save_phase_report(layout, REPORT)
    text = report_markdown(build_report(layout))
    gates = table_of(text, "Gates")
    assert [r[3] for r in gates[2:]] == ["met", "**missed**", "not in this run", "**missed**"]
    assert gates[2][:3] == ["cognate.x", "0.75", ">= 0.5"]
    assert gates[4][1] == "-", "a gate that is not in the run shows no value"
    rows = table_of(text, "Exact match")
    assert all(len(r) == 3 for r in rows), "a bar or newline in a cell must not break the table"
    assert rows[2] == ["base", "0.1235", "1,234,567"]
    assert rows[3][1:] == ["-", "-"]
    assert rows[4] == ["t", "yes", "-3"]
    assert "Report split." in text
    assert "- Ended early." in text
    assert "artifacts/b.safetensors" in text


def test_a_run_without_a_finished_phase_says_so(layout: RunLayout) -> None:
    report = build_report(layout)
    assert report.gates == ()
    assert "No phase has finished yet." in report_markdown(report)
    assert json.loads(report_json(report))["gates"] == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"phase": "cognate"}', '{"phase":1,"title":2,"gates":[{}]}', "7"]
)
def test_a_damaged_report_is_one_clear_error(layout: RunLayout, text: str) -> None:
    layout.reports.mkdir(exist_ok=True)
    (layout.reports / "cognate.json").write_text(text)
    with pytest.raises(RunError, match=r"cognate\.json is damaged") as error:
        build_report(layout)
    assert error.value.remedy


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (0.0, "0"),
        (1 / 3, "0.3333"),
        (123456.7, "123,457"),
        (-0.00012345, "-0.0001234"),
        (True, "yes"),
        (False, "no"),
        (1234, "1,234"),
        ("a|b", "a\\|b"),
    ],
)
def test_cells(cell: float | str | None, text: str) -> None:
    assert show(cell) == text
