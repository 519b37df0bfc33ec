"""One whole run of `smoke`: what it leaves behind, and what a live run can be told."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from agentforge.data.tokenizers import load_saved
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.errors import ExitCode
from agentforge.events import ControlAck, RunEnded, StepDone
from agentforge.report import build_report, report_json, report_markdown
from agentforge.run.checkpoint import load_model
from agentforge.run.commands import append_command
from agentforge.run.layout import RunLayout
from agentforge.run.manifest import load_manifest
from agentforge.run.supervisor import start_worker
from agentforge.sinks.wandb_metrics import REQUIRED, is_declared, metrics_of
from tests.phases.smoke_runs import console, events, finish, hashes, new_run

SPECIALISTS = ("reasoning", "memory", "speed")
DERIVED_BY_THE_SINK = {
    "charts/loss_curve",
    "charts/act_distribution",
    "charts/ltm_heatmap",
    "diversity/model_comparison",
    "time/epoch_duration_minutes",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    layout = new_run(tmp_path_factory.mktemp("smoke"))
    assert finish(layout) == ExitCode.OK, console(layout)
    return layout


def test_specialists_branch_from_the_base_and_share_its_shapes(run: RunLayout) -> None:
    files = load_manifest(run).artifacts
    base = load_model(run.root / files["cognate.base"].path)
    for name in SPECIALISTS:
        model = load_model(run.root / files[f"cognate.{name}"].path)
        assert model.metadata["base_sha256"] == files["cognate.base"].sha256 == base.sha256
        assert {k: v.shape for k, v in model.tensors.items()} == {
            k: v.shape for k, v in base.tensors.items()
        }
        assert model.metadata["tokenizer"] == base.metadata["tokenizer"]
        assert any(not model.tensors[k].equal(base.tensors[k]) for k in base.tensors)
    assert load_saved(run.artifacts / "tokenizer").fingerprint == world_tokenizer().fingerprint


def test_report_has_every_gate_with_its_provenance(run: RunLayout) -> None:
    report = build_report(run)
    row = json.loads(report_json(report))
    for gate in row["gates"]:
        assert gate["name"].startswith("cognate.")
        assert set(gate) >= {"name", "value", "op", "threshold", "n", "source", "passed"}
        assert gate["passed"] is None, "smoke shows no mission gate"
    text = report_markdown(report)
    for heading in ("The models side by side", "Exact match by skill", "Ablations", "Parameters"):
        assert heading in text
    names = {t.name for p in report.phases for t in p.tables}
    assert {"diversity/model_comparison", "loss", "task_vectors", "halting/by_difficulty"} <= names


def test_emitted_metrics_are_the_declared_ones(run: RunLayout) -> None:
    emitted = {name for event in events(run) for name in metrics_of(event)}
    undeclared = {name for name in emitted if not is_declared(name)}
    assert undeclared == set()
    tables = {e.name for e in events(run, "table_done")}  # type: ignore[attr-defined]
    assert REQUIRED - emitted - DERIVED_BY_THE_SINK == set()
    assert {n for n in DERIVED_BY_THE_SINK if n not in tables} == {
        "charts/loss_curve",
        "time/epoch_duration_minutes",
    }


def test_no_metric_is_constant(run: RunLayout) -> None:
    steps = [e for e in events(run, "step_done") if isinstance(e, StepDone)]
    for read in (
        lambda e: e.loss,
        lambda e: e.grad_norm,
        lambda e: e.extra["act/avg_halting_steps"],
        lambda e: e.extra["ltm/avg_surprise_score"] if "ltm/avg_surprise_score" in e.extra else -1,
    ):
        assert len({read(e) for e in steps}) > len(steps) // 2
    assert len({e.lr for e in steps}) > 4


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(
    run: RunLayout, tmp_path: Path
) -> None:
    again = new_run(tmp_path)
    assert finish(again) == ExitCode.OK
    assert hashes(again) == hashes(run)
    other = new_run(tmp_path, "seed=7")
    assert finish(other) == ExitCode.OK
    assert not set(hashes(other).values()) & set(hashes(run).values())


def wait_for_steps(layout: RunLayout, count: int) -> None:
    """Until so many steps are in the log."""
    deadline = time.monotonic() + 60
    while len(events(layout, "step_done")) < count:
        assert time.monotonic() < deadline, console(layout)
        time.sleep(0.02)


def acks(layout: RunLayout) -> dict[str, ControlAck]:
    return {e.id: e for e in events(layout, "control_ack") if isinstance(e, ControlAck)}


def wait_for_ack(layout: RunLayout, command: str) -> ControlAck:
    deadline = time.monotonic() + 60
    while command not in acks(layout):
        assert time.monotonic() < deadline, console(layout)
        time.sleep(0.02)
    return acks(layout)[command]


def test_a_live_run_is_paused_tuned_checkpointed_and_finished(tmp_path: Path) -> None:
    layout = new_run(tmp_path, "cognate.base.steps=2000", "storage.checkpoint_interval=1000")
    worker = start_worker(layout)
    wait_for_steps(layout, 3)
    assert wait_for_ack(layout, append_command(layout, "pause", by="test")).ok
    held = len(events(layout, "step_done"))
    time.sleep(0.5)
    assert len(events(layout, "step_done")) == held
    saved = append_command(layout, "checkpoint", by="test")
    assert wait_for_ack(layout, saved).ok
    assert wait_for_ack(layout, append_command(layout, "resume", by="test")).ok
    wait_for_steps(layout, held + 2)
    good = {"key": "cognate.optim.lr_scale", "value": 0.5}
    assert wait_for_ack(layout, append_command(layout, "set", good, by="test")).ok
    bad = {"key": "model.d_model", "value": 64}
    refused = wait_for_ack(layout, append_command(layout, "set", bad, by="test"))
    assert not refused.ok
    assert "d_model" in refused.message
    seen = len(events(layout, "step_done"))
    wait_for_steps(layout, seen + 2)
    last = events(layout, "step_done")[-1]
    assert isinstance(last, StepDone)
    assert last.lr == pytest.approx(0.5 * 0.02)
    assert wait_for_ack(layout, append_command(layout, "finish", by="test")).ok
    assert worker.wait(timeout=60) == ExitCode.OK, console(layout)
    assert set(hashes(layout)) == {"cognate.base", *(f"cognate.{s}" for s in SPECIALISTS)}
    assert any("Ended early" in n for p in build_report(layout).phases for n in p.notes)


def test_abort_writes_nothing_more_and_the_run_can_go_on(tmp_path: Path) -> None:
    layout = new_run(tmp_path, "cognate.base.steps=400")
    worker = start_worker(layout)
    wait_for_steps(layout, 8)
    command = append_command(layout, "abort", by="test")
    assert worker.wait(timeout=60) == ExitCode.RUN_FAILED
    ended = events(layout, "run_ended")[-1]
    assert isinstance(ended, RunEnded)
    assert ended.state == "aborted"
    assert acks(layout)[command].ok
    assert hashes(layout) == {}
    assert any(layout.checkpoints.iterdir())
