"""Whole runs of Phase 3: what they leave, and that they repeat, resume, roll back and obey."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from agentforge.config.load import load_config
from agentforge.data.prepare import prepare
from agentforge.data.thinking_tokens import THINKING_TOKENS
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.errors import ExitCode
from agentforge.events import RunEnded, StepDone
from agentforge.model.language_model import CognateLM
from agentforge.phases.quietstar.data import prepare_reasoning
from agentforge.phases.quietstar.policy import start_policy
from agentforge.phases.quietstar.start import with_thinking_rows
from agentforge.reasoning.dataset import read_set
from agentforge.report import build_report
from agentforge.run.commands import append_command
from agentforge.run.layout import RunLayout
from agentforge.run.manifest import load_manifest
from agentforge.run.supervisor import start_worker
from agentforge.run.tail import read_events
from agentforge.run.tensor_file import load_model
from agentforge.sinks.wandb import WandbSink
from agentforge.sinks.wandb_metrics import REQUIRED_PHASE3
from tests.phases.evomerge_family import random_weights, write
from tests.phases.smoke_runs import console, events, finish, hashes, kill_after, new_run, wait_for
from tests.unit.fake_wandb import FakeWandb

TRIALS = int(os.environ.get("AGENTFORGE_KILL_TRIALS", "2"))


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("champion") / "champion.safetensors"
    write(path, random_weights(), "champion")
    return path


def run_of(folder: Path, champion: Path, *sets: str) -> RunLayout:
    return new_run(
        folder,
        'phases=["quietstar"]',
        f"quietstar.model={champion}",
        # Untrained models never get a reward: the window is as wide as it can be.
        "quietstar.reinforce.least_reward=0.0",
        *sets,
        until="quietstar",
    )


QUICK = ("quietstar.baking.steps=2", "quietstar.baking.max_extensions=0", "quietstar.control=false")
"""For tests that look at one part: what comes before it is short."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, champion: Path) -> RunLayout:
    layout = run_of(tmp_path_factory.mktemp("undisturbed"), champion)
    assert finish(layout) == ExitCode.OK, console(layout)
    return layout


def rewards(layout: RunLayout) -> list[float]:
    found = events(layout, "step_done")
    return [
        e.extra["rl/reward"] for e in found if isinstance(e, StepDone) and e.model == "reasoner"
    ]


def test_run_leaves_models_and_the_data_it_baked(undisturbed: RunLayout) -> None:
    assert set(hashes(undisturbed)) == {
        "quietstar.baked",
        "quietstar.baked_further",
        "quietstar.reasoner",
        "quietstar.dataset",
    }
    found = read_set(undisturbed.artifacts / "quietstar" / "dataset")
    assert found.accepted
    assert len(found.examples) == 400
    read = load_model(undisturbed.artifacts / "quietstar" / "reasoner.safetensors")
    defaults = json.loads(read.metadata["generation"])
    assert defaults == {"temperature": 1.0, "max_new_tokens": 12, "thinking": True}
    assert json.loads(read.metadata["thoughts_passed"]) is False
    assert len(rewards(undisturbed)) >= 6


def test_report_has_every_gate_and_table(undisturbed: RunLayout) -> None:
    (phase,) = build_report(undisturbed).phases
    assert {g.name for g in phase.gates} == {
        f"quietstar.{name}"
        for name in (
            "convergence",
            "given_right_thought",
            "thinking_usage",
            "gain",
            "gain_interval",
            "gain_over_champion",
            "anti_theater",
            "forgetting",
            "answer_ms",
        )
    }
    tables = {t.name: t for t in phase.tables}
    assert set(tables) == {
        "quietstar/comparison",
        "baking/strategy_accuracy_table",
        "anti_theater/tests",
        "anti_theater/controls",
        "quietstar/skills",
        "quietstar/coherence",
        "quietstar/examples",
    }
    assert [row[0] for row in tables["quietstar/comparison"].rows] == [
        "baked",
        "baked further",
        "reasoning",
        "champion (cannot think)",
    ]
    assert len(tables["baking/strategy_accuracy_table"].rows) == 10
    assert len(tables["anti_theater/tests"].rows) == 11
    assert any("majority of 2" in note.lower() for note in phase.notes)
    assert any("Baking on for the same compute" in note for note in phase.notes)


def test_emitted_wandb_names_are_the_declared_ones(undisturbed: RunLayout) -> None:
    fake = FakeWandb()
    sink = WandbSink(undisturbed.root, {"seed": 1}, mode="offline", project="p", module=fake)
    for stamped in read_events(undisturbed.events):
        sink.emit(stamped)
    assert sink.undeclared == set()
    missing = REQUIRED_PHASE3 - sink.emitted
    # Untrained models do not think: distances between their thoughts do not exist.
    assert missing <= {"rl/thought_diversity", "rl/divergence_from_direct"}
    run = fake.runs["phase3-quietstar"]
    assert "phase3" in run.settings["tags"]
    assert {a.name for a in run.artifacts} >= {
        "phase3-baked-model",
        "phase3-reasoning-model",
        "phase3-reasoning-dataset",
    }


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_runs_end_with_the_same_models(
    trial: int, undisturbed: RunLayout, champion: Path, tmp_path: Path
) -> None:
    """The kills hit baking first, then the reinforcement or the control."""
    rng = random.Random(trial)
    layout = run_of(tmp_path, champion)
    killed = [
        kill_after(layout, 18 + 6 * trial + rng.randrange(6)),
        kill_after(layout, 40 + 30 * trial + rng.randrange(30)),
    ]
    code = finish(layout) if load_manifest(layout).state != "finished" else ExitCode.OK
    assert killed[0], "the run was done before the first kill"
    assert code == ExitCode.OK, console(layout)
    assert hashes(layout) == hashes(undisturbed)


def test_sigterm_suspends_and_resume_goes_on(
    undisturbed: RunLayout, champion: Path, tmp_path: Path
) -> None:
    layout = run_of(tmp_path, champion)
    worker = start_worker(layout)
    wait_for(layout, "step_done", 2, "reasoner")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == ExitCode.SUSPENDED
    ended = events(layout, "run_ended")[-1]
    assert isinstance(ended, RunEnded)
    assert ended.state == "suspended"
    assert finish(layout) == ExitCode.OK, console(layout)
    assert hashes(layout) == hashes(undisturbed)
    # The tests of `smoke` fail and the baked model is handed on, whatever the reinforcement did:
    # so step by step. Stopped within a test, it does the steps since the last checkpoint again.
    undisturbed_steps = steps_of(undisturbed, "reasoner")
    assert steps_of(layout, "reasoner")[-len(undisturbed_steps) :] == undisturbed_steps


def steps_of(layout: RunLayout, model: str) -> list[tuple[int, float, float]]:
    found = [e for e in events(layout, "step_done") if isinstance(e, StepDone) and e.model == model]
    assert found
    return [(e.step, e.loss, e.grad_norm) for e in found]


def test_reinforcement_is_paused_and_finished_with_what_it_has(
    champion: Path, tmp_path: Path
) -> None:
    layout = run_of(
        tmp_path,
        champion,
        *QUICK,
        "quietstar.reinforce.steps=5000",
        "quietstar.reinforce.check_interval=5000",
    )
    worker = start_worker(layout)
    wait_for(layout, "step_done", 2, "reasoner")
    append_command(layout, "pause", by="test")
    wait_for(layout, "state_changed", 1)
    held = len(rewards(layout))
    time.sleep(0.7)
    assert len(rewards(layout)) <= held + 1
    append_command(layout, "resume", by="test")
    change = {"key": "quietstar.reinforce.kl", "value": 0.5}
    append_command(layout, "set", change, by="test")
    wait_for(layout, "step_done", held + 3, "reasoner")
    append_command(layout, "finish", by="test")
    assert worker.wait(timeout=90) == ExitCode.OK, console(layout)
    last = events(layout, "step_done")[-1]
    assert isinstance(last, StepDone)
    assert last.extra["rl/kl_weight"] == 0.5
    (phase,) = build_report(layout).phases
    assert any("Ended early" in note for note in phase.notes)
    assert any("no control that was baked on" in note for note in phase.notes)
    assert "quietstar.reasoner" in hashes(layout)


def test_abort_keeps_the_baked_model(champion: Path, tmp_path: Path) -> None:
    layout = run_of(tmp_path, champion, *QUICK, "quietstar.reinforce.steps=5000")
    worker = start_worker(layout)
    wait_for(layout, "step_done", 1, "reasoner")
    append_command(layout, "abort", by="test")
    assert worker.wait(timeout=60) == ExitCode.RUN_FAILED
    assert set(hashes(layout)) == {"quietstar.baked", "quietstar.dataset"}


@pytest.mark.parametrize(("policy", "code"), [("auto", ExitCode.OK), ("stop", ExitCode.SUSPENDED)])
def test_failed_tests_roll_back_with_twice_the_kl_or_stop(
    policy: str, code: int, champion: Path, tmp_path: Path
) -> None:
    layout = run_of(
        tmp_path,
        champion,
        *QUICK,
        "quietstar.reinforce.steps=7",
        f"on_alert={policy}",
    )
    assert finish(layout) == code, console(layout)
    alerts = [e for e in events(layout, "alert") if getattr(e, "code", "") == "theater"]
    assert alerts
    assert [a.key for a in alerts[0].actions] == [  # type: ignore[attr-defined]
        "roll_back",
        "adjust",
        "continue",
        "stop",
    ]
    if policy == "auto":
        weights = [
            e.extra["rl/kl_weight"]
            for e in events(layout, "step_done")
            if isinstance(e, StepDone) and e.model == "reasoner"
        ]
        assert weights == pytest.approx([0.1] * 3 + [0.2] * 3 + [0.4] * 3 + [0.8] * 3)
        steps = [
            e.step
            for e in events(layout, "step_done")
            if isinstance(e, StepDone) and e.model == "reasoner"
        ]
        assert steps == [1, 2, 3] * 4
        # Nothing of what failed is handed on: the last weights not found wanting are the baked.
        handed, baked = (
            load_model(layout.artifacts / "quietstar" / f"{name}.safetensors")
            for name in ("reasoner", "baked")
        )
        assert handed.metadata["steps"] == "0"
        assert handed.tensors.keys() == baked.tensors.keys()
        assert all(torch.equal(t, baked.tensors[n]) for n, t in handed.tensors.items())
        assert "step 0 is handed on" in alerts[-1].detail  # type: ignore[attr-defined]


def test_a_reward_below_the_window_bakes_longer(champion: Path, tmp_path: Path) -> None:
    layout = run_of(
        tmp_path,
        champion,
        "quietstar.baking.steps=2",
        "quietstar.control=false",
        "quietstar.reinforce.least_reward=0.3",
        "quietstar.reinforce.steps=1",
    )
    assert finish(layout) == ExitCode.OK, console(layout)
    alerts = [e for e in events(layout, "alert") if getattr(e, "code", "") == "reward_window"]
    assert len(alerts) == 2  # one longer baking is allowed; it does not help an untrained model
    assert "quietstar.baked_longer_1" in hashes(layout)


def test_a_reward_outside_the_window_can_stop_the_run(champion: Path, tmp_path: Path) -> None:
    layout = run_of(
        tmp_path,
        champion,
        *QUICK,
        "quietstar.reinforce.least_reward=0.3",
        "quietstar.reinforce.steps=1",
        "on_alert=stop",
    )
    assert finish(layout) == ExitCode.SUSPENDED, console(layout)
    assert set(hashes(layout)) == {"quietstar.baked", "quietstar.dataset"}


def test_generated_sets_are_baked_and_bad_ones_refused(
    undisturbed: RunLayout, champion: Path, tmp_path: Path
) -> None:
    folder = undisturbed.artifacts / "quietstar" / "dataset"
    layout = run_of(
        tmp_path / "a",
        champion,
        *QUICK,
        "quietstar.reinforce.steps=1",
        f"quietstar.data.path={folder}",
    )
    assert finish(layout) == ExitCode.OK, console(layout)
    (phase,) = build_report(layout).phases
    table = next(t for t in phase.tables if t.name == "baking/strategy_accuracy_table")
    assert len(table.rows) == 10
    # Of every strategy some prompts fall into the report split, and none of them was trained on.
    gates = {g.name: g for g in phase.gates}
    assert 20 <= gates["quietstar.convergence"].n <= 80
    few = tmp_path / "few"
    few.mkdir()
    rows = (folder / "examples.jsonl").read_text().splitlines()[::40]
    (few / "examples.jsonl").write_text("\n".join(rows))
    (few / "metadata.json").write_text('{"target": 10, "tried": 10}')
    small = run_of(tmp_path / "c", champion, f"quietstar.data.path={few}")
    assert finish(small) == ExitCode.PREFLIGHT
    ended = events(small, "run_ended")[-1]
    assert isinstance(ended, RunEnded)
    assert "example" in ended.reason
    missing = run_of(tmp_path / "b", champion, f"quietstar.data.path={tmp_path}")
    assert finish(missing) != ExitCode.OK
    ended = events(missing, "run_ended")[-1]
    assert isinstance(ended, RunEnded)
    assert "metadata.json" in ended.reason


def test_without_a_champion_it_says_what_to_do(tmp_path: Path) -> None:
    layout = new_run(tmp_path, 'phases=["quietstar"]', until="quietstar")
    assert finish(layout) == ExitCode.PREFLIGHT
    ended = events(layout, "run_ended")[-1]
    assert isinstance(ended, RunEnded)
    assert "nothing to start from" in ended.reason


def test_only_the_rows_of_the_twelve_tokens_are_initialised() -> None:
    tokenizer, weights = world_tokenizer(), random_weights()
    found = with_thinking_rows(weights, tokenizer)
    table, before = found["embedding.table"], weights["embedding.table"]
    rows = list(tokenizer.thinking_ids)
    others = [i for i in range(len(table)) if i not in rows]
    assert torch.equal(table[others], before[others])
    assert len(rows) == len(THINKING_TOKENS) == 12
    assert not any(torch.equal(table[i], before[i]) for i in rows)
    step = tokenizer.encode(" step by step")
    assert torch.allclose(table[rows[2]], before[torch.tensor(step)].mean(0))
    assert all(torch.equal(found[n], t) for n, t in weights.items() if n != "embedding.table")


def test_the_reference_has_storage_of_its_own_and_rolling_back_restores_everything() -> None:
    config = load_config(preset="smoke", env={}).config
    data = prepare(config)
    torch.manual_seed(0)
    model = CognateLM(config.model, data.tokenizer.vocab_size)
    reasoning = prepare_reasoning(config, data)
    policy = start_policy(config, model, reasoning)
    skills = dict.fromkeys(reasoning.replayed, 1.0)
    policy.replay.draw(skills, 7)
    ours = {p.data_ptr() for p in policy.model.parameters()}
    assert not ours & {p.data_ptr() for p in policy.reference.parameters()}
    assert not any(p.requires_grad for p in policy.reference.parameters())
    groups = {g: {n: t.clone() for n, t in v.items()} for g, v in policy.groups().items()}
    state = json.loads(json.dumps(policy.state()))
    wanted, replayed = torch.rand(3), policy.replay.draw(skills, 20)
    for p in policy.model.parameters():
        p.grad = torch.ones_like(p)
    policy.optimizer.step(0)
    policy.step, policy.kl_factor = 9, 3.0
    policy.rewards.append(1.0)
    torch.rand(5)
    policy.load(groups, state)
    assert all(torch.equal(t, groups["model"][n]) for n, t in policy.model.state_dict().items())
    assert (policy.step, policy.kl_factor, policy.rewards) == (0, 1.0, [])
    restored = policy.optimizer.state_tensors()
    assert all(torch.equal(t, groups["optim"][n]) for n, t in restored.items())
    assert torch.equal(torch.rand(3), wanted)
    assert policy.replay.draw(skills, 20) == replayed


def test_another_run_with_a_side_engine_gives_the_same_models(
    undisturbed: RunLayout, champion: Path, tmp_path: Path
) -> None:
    layout = run_of(tmp_path, champion, "cognate.side_process='on'")
    assert finish(layout) == ExitCode.OK, console(layout)
    assert (layout.root / "further" / "manifest.json").is_file()
    assert hashes(layout) == hashes(undisturbed)
    passed_on = [
        e
        for e in events(layout, "step_done")
        if isinstance(e, StepDone) and e.phase == "quietstar.controls"
    ]
    assert {e.model for e in passed_on} == {"baked_further"}


TEXT = (
    *QUICK,
    "quietstar.reinforce.steps=0",
    "quietstar.token_level.steps=7",
    "quietstar.token_level.text_tokens=24",
    "quietstar.token_level.length=3",
    "quietstar.token_level.thoughts=2",
    "quietstar.token_level.talk=2",
    "quietstar.token_level.places=3",
    "quietstar.token_level.report_texts=8",
)


def test_thoughts_within_text_are_trained_apart_and_reported(
    champion: Path, tmp_path: Path
) -> None:
    layout, again = (run_of(tmp_path / name, champion, *TEXT) for name in ("killed", "again"))
    worker = start_worker(layout)
    wait_for(layout, "step_done", 6, "token_level")
    worker.kill()
    worker.wait(timeout=60)
    assert finish(layout) == ExitCode.OK, console(layout)
    assert finish(again) == ExitCode.OK, console(again)
    assert hashes(again) == hashes(layout)
    (phase,) = build_report(layout).phases
    table = next(t for t in phase.tables if t.name == "quietstar/token_level")
    assert [row[0] for row in table.rows] == [
        "with thoughts over without, before training",
        "with thoughts over without",
        "own thoughts over swapped ones",
        "own thoughts over random ones",
        "own thoughts over filler ones",
    ]
    assert table.rows[0][5] == 8 * 3
    read = load_model(layout.artifacts / "quietstar" / "token_level.safetensors")
    assert {"extra.start", "extra.end"} <= set(read.tensors)


def test_asking_for_a_strategy_can_be_baked_in(champion: Path, tmp_path: Path) -> None:
    layout = run_of(
        tmp_path,
        champion,
        *QUICK,
        "quietstar.reinforce.steps=0",
        "quietstar.baking.kl_steps=6",
        "quietstar.baking.kl_strategy=doubt",
    )
    worker = start_worker(layout)
    wait_for(layout, "step_done", 6, "prompt_baked")
    worker.kill()
    worker.wait(timeout=60)
    assert finish(layout) == ExitCode.OK, console(layout)
    found = hashes(layout)
    assert {"quietstar.baked", "quietstar.prompt_baked", "quietstar.reasoner"} <= set(found)
    read = load_model(layout.artifacts / "quietstar" / "reasoner.safetensors")
    assert read.metadata["baked_sha256"] == found["quietstar.prompt_baked"]
    kl = [
        e.extra["baking/prompt_kl"]
        for e in events(layout, "step_done")
        if isinstance(e, StepDone) and e.model == "prompt_baked"
    ]
    assert kl[5] < kl[0]
