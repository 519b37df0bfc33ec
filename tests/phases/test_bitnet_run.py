"""Phase 4 as a whole: what it leaves, what it tells, its three adverse paths, kills and resumes."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch

from agentforge.errors import ExitCode
from agentforge.events import EvalDone, RunEnded, StepDone
from agentforge.formats.packed import packed_module, read_packed
from agentforge.formats.twin import twin_module
from agentforge.model.behaviour import Behaviour
from agentforge.report import build_report
from agentforge.run.commands import append_command
from agentforge.run.layout import RunLayout
from agentforge.run.manifest import load_manifest
from agentforge.run.supervisor import start_worker
from agentforge.run.tail import read_events
from agentforge.run.tensor_file import load_model
from agentforge.sinks.wandb import WandbSink
from agentforge.sinks.wandb_metrics import REQUIRED_PHASE4
from tests.phases.bitnet_models import write_form_learner
from tests.phases.smoke_runs import console, events, finish, hashes, kill_after, new_run, wait_for
from tests.unit.fake_wandb import FakeWandb

TRIALS = int(os.environ.get("AGENTFORGE_KILL_TRIALS", "2"))
DESTROYED = "bitnet.finetune.adamw_lr=0.9"
"""A learning rate that leaves nothing of a model."""
LOST = ("bitnet.quantise.loss_budget=1000", "bitnet.accuracy_drop=0.1")
"""No stage is reverted, and the loss of accuracy counts."""


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learner") / "form.safetensors"
    write_form_learner(path)
    return path


def run_of(folder: Path, model: Path, *sets: str) -> RunLayout:
    return new_run(
        folder,
        'phases=["bitnet"]',
        f"bitnet.model={model}",
        "quietstar.max_new_tokens=30",
        "bitnet.accuracy_drop=1",  # what is right by luck is lost by luck: no fallback unless asked
        *sets,
        until="bitnet",
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, learner: Path) -> RunLayout:
    layout = run_of(tmp_path_factory.mktemp("undisturbed"), learner)
    assert finish(layout) == ExitCode.OK, console(layout)
    return layout


def alerts(layout: RunLayout, code: str) -> list[str]:
    found = [e for e in events(layout, "alert") if getattr(e, "code", "") == code]
    return [str(getattr(e, "detail", "")) for e in found]


def steps(layout: RunLayout, model: str) -> list[StepDone]:
    return [e for e in events(layout, "step_done") if isinstance(e, StepDone) and e.model == model]


def test_run_leaves_a_packed_directory_and_its_twin(undisturbed: RunLayout) -> None:
    assert set(hashes(undisturbed)) == {
        "bitnet.ternary",
        "bitnet.model",
        "bitnet.model_config",
        "bitnet.twin",
        "bitnet.compression_config",
    }
    folder = undisturbed.artifacts / "bitnet" / "model"
    packed = read_packed(folder)
    assert len(packed.ternary) == 26
    assert packed.generation.max_new_tokens == 30
    model = packed_module(packed)
    ids = torch.randint(0, packed.vocab_size, (2, 9))
    assert model(ids, packed.behaviour).answer.shape == (2, 9, 32)
    card = (folder / "README.md").read_text()
    assert "bitnet.compression" in card
    assert "agentforge-tui chat model" in card
    settings = json.loads((folder.parent / "compression_config.json").read_text())
    assert settings["attempt"] == "ternary"
    assert settings["steps"] == 12
    assert not settings["reverted"]


def test_twin_can_be_trained(undisturbed: RunLayout) -> None:
    path = undisturbed.artifacts / "bitnet" / "twin.safetensors"
    read = load_model(path)
    assert {t.dtype for t in read.tensors.values()} == {torch.float16}
    twin = twin_module(read, path, quantise_inputs=True)
    ids = torch.randint(0, twin.vocab_size, (2, 9))
    twin.embedding.logits(twin.answers(ids, Behaviour())[-1]).sum().backward()
    for name in json.loads(read.metadata["ternary"]):
        grad = twin.get_submodule(name).get_parameter("weight").grad
        assert grad is not None, name
    assert bool(twin.get_submodule("answer").get_parameter("weight").grad.abs().sum() > 0)  # type: ignore[union-attr]


def test_report_has_every_gate_and_table(undisturbed: RunLayout) -> None:
    (phase,) = build_report(undisturbed).phases
    assert {g.name for g in phase.gates} == {
        f"bitnet.{name}"
        for name in ("compression", "accuracy_drop", "speedup", "sparsity", "twin_agreement")
    }
    gates = {g.name: g for g in phase.gates}
    folder = undisturbed.artifacts / "bitnet" / "model"
    weights = (folder / "model.safetensors").stat().st_size
    model = json.loads(undisturbed.manifest.read_text())["config"]["bitnet"]["model"]
    assert gates["bitnet.compression"].value == pytest.approx(Path(model).stat().st_size / weights)
    assert gates["bitnet.twin_agreement"].n >= 300
    speedup = gates["bitnet.speedup"]
    assert speedup.value is None or speedup.value > 0
    # 3 sequences of 32 tokens, without the first of each burst of 8.
    assert speedup.n == (0 if speedup.value is None else 84)
    tables = {t.name: t for t in phase.tables}
    assert set(tables) - {"evaluation/speed"} == {
        "evaluation/comparison",
        "compression/breakdown",
        "compression/layers",
        "calibration/sensitivity",
    }
    assert len(tables["compression/layers"].rows) == 26
    rises = [row[2] for row in tables["calibration/sensitivity"].rows]
    assert rises == sorted(rises)
    assert sum(row[1] for row in tables["compression/breakdown"].rows) == sum(  # type: ignore[misc]
        t.numel() for t in load_model(Path(model)).tensors.values()
    ) + 3 * (32 + 64)  # the new norms
    assert any("its own control" in note for note in phase.notes)


def test_strength_rises_stage_by_stage_and_tiles_go(undisturbed: RunLayout) -> None:
    found = [e.extra["finetune/strength"] for e in steps(undisturbed, "ternary")]
    assert found == sorted(found)
    assert found[-1] == 1.0
    assert 0.0 < found[0] < 0.4


def test_emitted_wandb_names_are_the_declared_ones(undisturbed: RunLayout) -> None:
    fake = FakeWandb()
    sink = WandbSink(undisturbed.root, {"seed": 1}, mode="offline", project="p", module=fake)
    for stamped in read_events(undisturbed.events):
        sink.emit(stamped)
    assert sink.undeclared == set()
    assert REQUIRED_PHASE4 - sink.emitted == set()
    run = fake.runs["phase4-bitnet"]
    assert {a.name for a in run.artifacts} >= {
        "phase4-compressed-model",
        "phase4-compression-config",
    }


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_runs_end_with_the_same_models(
    trial: int, undisturbed: RunLayout, learner: Path, tmp_path: Path
) -> None:
    """The kills hit calibration or the stages, then the rest."""
    rng = random.Random(trial)
    layout = run_of(tmp_path, learner)
    killed = [kill_after(layout, 20 + 70 * trial + rng.randrange(60)), kill_after(layout, 30)]
    code = finish(layout) if load_manifest(layout).state != "finished" else ExitCode.OK
    assert killed[0], "the run was done before the first kill"
    assert code == ExitCode.OK, console(layout)
    assert hashes(layout) == hashes(undisturbed)


def test_sigterm_suspends_and_resume_goes_on(
    undisturbed: RunLayout, learner: Path, tmp_path: Path
) -> None:
    layout = run_of(tmp_path, learner)
    worker = start_worker(layout)
    wait_for(layout, "step_done", 3, "ternary")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == ExitCode.SUSPENDED
    assert finish(layout) == ExitCode.OK, console(layout)
    assert hashes(layout) == hashes(undisturbed)


def test_finish_keeps_what_is_ternary_so_far(learner: Path, tmp_path: Path) -> None:
    layout = run_of(tmp_path, learner, "bitnet.finetune.steps=3000")
    worker = start_worker(layout)
    wait_for(layout, "step_done", 2, "ternary")
    append_command(layout, "finish", by="test")
    assert worker.wait(timeout=90) == ExitCode.OK, console(layout)
    settings = json.loads((layout.artifacts / "bitnet" / "compression_config.json").read_text())
    assert len(settings["reverted"]) == 26
    assert settings["steps"] < 3000
    assert read_packed(layout.artifacts / "bitnet" / "model").ternary == {}
    (phase,) = build_report(layout).phases
    assert any("Ended early" in note for note in phase.notes)


def test_a_stage_over_its_budget_is_trained_on_then_reverted(learner: Path, tmp_path: Path) -> None:
    layout = run_of(tmp_path, learner, DESTROYED, "bitnet.quantise.requantisations=0")
    assert finish(layout) == ExitCode.OK, console(layout)
    assert len(alerts(layout, "stage_loss")) == 6  # each of three stages: train on, then revert
    settings = json.loads((layout.artifacts / "bitnet" / "compression_config.json").read_text())
    assert len(settings["reverted"]) == 26
    start = load_model(learner).tensors
    kept = load_model(layout.artifacts / "bitnet" / "ternary.safetensors").tensors
    assert load_manifest(layout).artifacts["bitnet.ternary"].bytes > 0
    assert kept["answer.weight"].shape == start["answer.weight"].shape


def test_too_much_lost_falls_back_to_the_conservative_form(learner: Path, tmp_path: Path) -> None:
    layout = run_of(tmp_path, learner, DESTROYED, *LOST)
    assert finish(layout) == ExitCode.OK, console(layout)
    (detail,) = alerts(layout, "accuracy_drop")
    assert "allowed 10 %" in detail
    settings = json.loads((layout.artifacts / "bitnet" / "compression_config.json").read_text())
    assert settings["attempt"] == "conservative"
    assert settings["threshold"] == 0.05
    assert settings["pruned_tiles"] == 0.0
    assert len(settings["ternary"]) == 25
    assert "answer" not in settings["ternary"]
    assert "bitnet.conservative" in hashes(layout)


def test_a_run_may_be_stopped_instead(learner: Path, tmp_path: Path) -> None:
    layout = run_of(tmp_path, learner, DESTROYED, *LOST, "on_alert=stop")
    assert finish(layout) == ExitCode.SUSPENDED, console(layout)
    ended = events(layout, "run_ended")[-1]
    assert isinstance(ended, RunEnded)
    assert "lost too much" in ended.reason


def test_too_few_zeros_are_quantised_again_with_a_higher_threshold(
    learner: Path, tmp_path: Path
) -> None:
    layout = run_of(
        tmp_path,
        learner,
        "bitnet.quantise.threshold=0.05",
        "bitnet.quantise.pruned_tiles=0",
        "bitnet.quantise.requantisations=2",
    )
    assert finish(layout) == ExitCode.OK, console(layout)
    details = alerts(layout, "sparsity")
    assert "threshold 0.05 -> 0.075" in details[0]
    assert "threshold 0.075 -> 0.1125" in details[1]
    zeros = [
        e.value
        for e in events(layout, "eval_done")
        if isinstance(e, EvalDone) and e.name == "final/sparsity"
    ]
    assert 0.05 < zeros[0] < 0.12
    settings = json.loads((layout.artifacts / "bitnet" / "compression_config.json").read_text())
    assert settings["attempt"] == "requantised_2"


def test_labels_bring_a_control_in_full_precision(learner: Path, tmp_path: Path) -> None:
    layout = run_of(tmp_path, learner, "bitnet.finetune.label_share=0.5")
    assert finish(layout) == ExitCode.OK, console(layout)
    assert "bitnet.control" in hashes(layout)
    (phase,) = build_report(layout).phases
    table = next(t for t in phase.tables if t.name == "evaluation/comparison")
    assert [row[0] for row in table.rows] == [
        "Phase 3 model",
        "packed ternary model",
        "full precision, trained on",
    ]
    assert any("with the same further training" in note for note in phase.notes)


def test_nothing_to_start_from_is_said(tmp_path: Path) -> None:
    layout = new_run(tmp_path, 'phases=["bitnet"]', until="bitnet")
    assert finish(layout) == ExitCode.PREFLIGHT
    ended = events(layout, "run_ended")[-1]
    assert isinstance(ended, RunEnded)
    assert "no reasoner of Phase 3" in ended.reason
