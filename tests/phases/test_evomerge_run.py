"""Whole runs of Phase 2: what they leave, and that they repeat, resume and obey."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from agentforge.errors import ExitCode
from agentforge.events import GenerationDone, RunEnded
from agentforge.merge.apply import merge
from agentforge.model.behaviour import Behaviour
from agentforge.phases.evomerge.history import Evolution
from agentforge.report import build_report
from agentforge.run.commands import append_command
from agentforge.run.layout import RunLayout
from agentforge.run.manifest import load_manifest
from agentforge.run.supervisor import start_worker
from agentforge.run.tail import read_events
from agentforge.run.tensor_file import load_model
from agentforge.sinks.wandb import WandbSink
from agentforge.sinks.wandb_metrics import REQUIRED_PHASE2
from tests.phases.evomerge_family import write_family
from tests.phases.smoke_runs import console, events, finish, hashes, kill_after, new_run, wait_for
from tests.unit.fake_wandb import FakeWandb

TRIALS = int(os.environ.get("AGENTFORGE_KILL_TRIALS", "2"))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_family(tmp_path_factory.mktemp("family"))


def run_of(folder: Path, family: list[str], *sets: str) -> RunLayout:
    return new_run(folder, *family, *sets, until="evomerge")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, family: list[str]) -> RunLayout:
    layout = run_of(tmp_path_factory.mktemp("undisturbed"), family)
    assert finish(layout) == ExitCode.OK, console(layout)
    return layout


def evolution_of(layout: RunLayout) -> Evolution:
    text = (layout.artifacts / "evomerge" / "evolution_log.json").read_text()
    return Evolution.from_json(json.loads(text))


def test_run_leaves_champion_log_and_control(undisturbed: RunLayout) -> None:
    assert set(hashes(undisturbed)) == {
        "evomerge.champion",
        "evomerge.evolution_log",
        "evomerge.multi_task",
    }
    told = events(undisturbed, "generation_done")
    assert [e.generation for e in told if isinstance(e, GenerationDone)] == [0, 1, 2, 3]
    champions = [e.champion_fitness for e in told if isinstance(e, GenerationDone)]
    assert champions == sorted(champions)


def test_champion_follows_from_its_recipe(undisturbed: RunLayout, family: list[str]) -> None:
    read = load_model(undisturbed.artifacts / "evomerge" / "champion.safetensors")
    evolution = evolution_of(undisturbed)
    lineage = json.loads(read.metadata["lineage"])
    winner = next(m for m in evolution.members if m.number == lineage[0]["number"])
    assert json.loads(read.metadata["recipe"]) == json.loads(winner.recipe.to_json())
    behaviour = Behaviour(**json.loads(read.metadata["behaviour"]))
    assert behaviour == winner.behaviour
    files = json.loads(family[1].partition("=")[2])
    parents = [load_model(Path(f)).tensors for f in files]
    hashes_of = json.loads(read.metadata["parent_weights"])
    by_hash = dict(zip(hashes_of, parents, strict=True))
    base = load_model(Path(family[2].partition("=")[2])).tensors
    for row in reversed(lineage):
        member = next(m for m in evolution.members if m.number == row["number"])
        sources = [by_hash[s] for s in member.candidate.sources]
        by_hash[member.sha256] = merge(base, sources, member.recipe)
    made = by_hash[winner.sha256]
    assert all(torch.equal(made[n], t) for n, t in read.tensors.items())


def test_report_has_every_gate_and_every_comparison(undisturbed: RunLayout) -> None:
    (phase,) = build_report(undisturbed).phases
    gates = {g.name: g for g in phase.gates}
    assert set(gates) == {
        f"evomerge.{name}"
        for name in (
            "composite_gain",
            "exact_match_gain",
            "above_best_parent",
            "above_base",
            "parents_of_base",
            "parent_diversity",
            "combos_used",
            "distinct_combos",
            "champion_valid",
            "evolution_hours",
        )
    }
    for name in ("combos_used", "distinct_combos", "champion_valid", "evolution_hours"):
        assert gates[f"evomerge.{name}"].status == "met"
    assert gates["evomerge.above_base"].n == 3 * 32
    tables = {t.name: t for t in phase.tables}
    assert {
        "evomerge/comparison",
        "evomerge/rescore",
        "evolution/history",
        "combos/effectiveness",
        "combos/distances",
        "evomerge/lineage",
    } <= set(tables)
    names = [row[0] for row in tables["evomerge/comparison"].rows]
    assert names == [
        "champion",
        "one",
        "two",
        "three",
        "mean of parents",
        "base",
        "plain mean",
        "best combo",
        "multi-task control",
    ]
    assert len(tables["evolution/history"].rows) == 4
    assert len(tables["evomerge/rescore"].rows) == 2
    assert any("stretch goal" in n or "single item right" in n for n in phase.notes)
    assert any("same extra compute (6 steps)" in n for n in phase.notes)


def test_emitted_wandb_names_are_the_declared_ones(undisturbed: RunLayout) -> None:
    fake = FakeWandb()
    sink = WandbSink(undisturbed.root, {"seed": 1}, mode="offline", project="p", module=fake)
    for stamped in read_events(undisturbed.events):
        sink.emit(stamped)
    assert sink.undeclared == set()
    optional_here = {"final/score_improvement"}  # no parent of this family gets an item right
    assert REQUIRED_PHASE2 - sink.emitted - optional_here == set()
    run = fake.runs["phase2-evomerge"]
    assert run.axis == "evolution/generation"
    assert "phase2" in run.settings["tags"]
    assert {a.name for a in run.artifacts} == {"phase2-champion", "phase2-evolution-log"}
    counts = [run.last(f"evolution/combo_{n:03b}_count") for n in range(8)]
    assert sum(counts) == 8
    assert fake.runs["phase2-evomerge-multi_task"].axis == "train/step"
    usage = run.last("charts/combo_usage")
    assert [sum(row[1:]) for row in usage.data] == [8] * 4


def test_another_run_gives_the_same_champion_with_another_number_of_workers(
    undisturbed: RunLayout, family: list[str], tmp_path: Path
) -> None:
    layout = run_of(tmp_path, family, "evomerge.workers=2", "evomerge.control_steps=0")
    assert finish(layout) == ExitCode.OK, console(layout)
    wanted = hashes(undisturbed)
    found = hashes(layout)
    assert found == {n: wanted[n] for n in found}
    assert "evomerge.champion" in found


def test_another_seed_gives_another_champion(
    undisturbed: RunLayout, family: list[str], tmp_path: Path
) -> None:
    layout = run_of(tmp_path, family, "seed=7", "evomerge.control_steps=0")
    assert finish(layout) == ExitCode.OK, console(layout)
    assert hashes(layout)["evomerge.champion"] != hashes(undisturbed)["evomerge.champion"]


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_searches_end_with_the_same_champion(
    trial: int, undisturbed: RunLayout, family: list[str], tmp_path: Path
) -> None:
    """About 55 log lines make a run: the kills hit the scan, generations, control and report."""
    rng = random.Random(trial)
    layout = run_of(tmp_path, family)
    first = 14 + (trial * 24) // max(1, TRIALS) + rng.randrange(6)
    killed = [kill_after(layout, first), kill_after(layout, rng.randrange(8, 20))]
    code = finish(layout) if load_manifest(layout).state != "finished" else ExitCode.OK
    assert killed[0], "the run was done before the first kill"
    assert code == ExitCode.OK, console(layout)
    assert hashes(layout) == hashes(undisturbed)


def test_sigterm_suspends_and_resume_goes_on(
    undisturbed: RunLayout, family: list[str], tmp_path: Path
) -> None:
    layout = run_of(tmp_path, family)
    assert kill_after(layout, 22, signal.SIGTERM)
    ended = events(layout, "run_ended")[-1]
    assert isinstance(ended, RunEnded)
    assert (ended.state, ended.exit_code) == ("suspended", ExitCode.SUSPENDED)
    assert finish(layout) == ExitCode.OK
    assert hashes(layout) == hashes(undisturbed)


def test_a_search_is_paused_and_finished_with_what_it_has(
    family: list[str], tmp_path: Path
) -> None:
    layout = run_of(tmp_path, family, "evomerge.generations=5000", "evomerge.patience=0")
    worker = start_worker(layout)
    wait_for(layout, "generation_done", 2)
    append_command(layout, "pause", by="test")
    wait_for(layout, "state_changed", 1)
    held = len(events(layout, "generation_done"))
    time.sleep(0.7)
    assert len(events(layout, "generation_done")) <= held + 1
    append_command(layout, "resume", by="test")
    wait_for(layout, "generation_done", held + 3)
    append_command(layout, "finish", by="test")
    assert worker.wait(timeout=90) == ExitCode.OK, console(layout)
    evolution = evolution_of(layout)
    assert evolution.ended_by == "finish"
    assert 3 <= evolution.generation < 5000
    (phase,) = build_report(layout).phases
    assert any("Ended early" in n for n in phase.notes)
    assert any("no multi-task control" in n for n in phase.notes)
    assert "evomerge.champion" in hashes(layout)


def test_abort_keeps_whole_generations(family: list[str], tmp_path: Path) -> None:
    layout = run_of(tmp_path, family, "evomerge.generations=5000", "evomerge.patience=0")
    worker = start_worker(layout)
    wait_for(layout, "generation_done", 2)
    append_command(layout, "abort", by="test")
    assert worker.wait(timeout=60) == ExitCode.RUN_FAILED
    assert hashes(layout) == {}
    done = len(events(layout, "generation_done"))
    assert finish_with(layout, "finish") == ExitCode.OK, console(layout)
    assert evolution_of(layout).generation >= done - 1


def finish_with(layout: RunLayout, verb: str) -> int:
    """Start an engine, give a command once it works, wait for it."""
    before = len(events(layout, "generation_done"))
    worker = start_worker(layout)
    wait_for(layout, "generation_done", before + 1)
    append_command(layout, verb, by="test")
    return worker.wait(timeout=90)


def test_processes_end_with_a_killed_engine(family: list[str], tmp_path: Path) -> None:
    layout = run_of(tmp_path, family, "evomerge.generations=5000", "evomerge.patience=0")
    worker = start_worker(layout)
    wait_for(layout, "generation_done", 1)
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    assert children
    worker.kill()
    worker.wait(timeout=60)
    deadline = time.monotonic() + 10
    while any(_alive(int(pid)) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_early_stop_names_its_reason_and_a_data_flow_search_follows(
    family: list[str], tmp_path: Path
) -> None:
    layout = run_of(
        tmp_path,
        family,
        "evomerge.generations=60",
        "evomerge.patience=2",
        "evomerge.least_generations=2",
        "evomerge.least_change=0.5",
        "evomerge.control_steps=0",
        "evomerge.data_flow_steps=2",
    )
    assert finish(layout) == ExitCode.OK, console(layout)
    evolution = evolution_of(layout)
    assert evolution.ended_by == "early_stop"
    assert evolution.generation == 2
    (phase,) = build_report(layout).phases
    rows = dict(next(t for t in phase.tables if t.name == "evomerge/data_flow").rows)
    saved = json.loads((layout.artifacts / "evomerge" / "data_flow.json").read_text())
    assert saved["step"] == 2
    assert rows["fitness, search split"] == pytest.approx(saved["fitness"])
    assert str(rows["path"]).count("(x") == sum(saved["flow"]["indicator"])


@pytest.mark.parametrize(("policy", "code"), [("auto", ExitCode.OK), ("stop", ExitCode.SUSPENDED)])
def test_a_narrow_population_is_told_of_and_acted_on(
    policy: str, code: int, family: list[str], tmp_path: Path
) -> None:
    layout = run_of(
        tmp_path,
        family,
        "evomerge.diversity_warn=1.0",
        "evomerge.diversity_act=1.0",
        "evomerge.scheme=keep_six",
        "evomerge.control_steps=0",
        f"on_alert={policy}",
    )
    assert finish(layout) == code, console(layout)
    alerts = [e for e in events(layout, "alert") if getattr(e, "code", "") == "low_diversity"]
    if not alerts:
        pytest.skip("the population of these models never was narrower than generation 0")
    actions = [getattr(e, "action", "") for e in events(layout, "action_taken")]
    assert actions
    if policy == "auto":
        injected = [m for m in evolution_of(layout).members if m.candidate.origin == "injected"]
        assert injected
        assert evolution_of(layout).interventions[0][1] == "inject"
