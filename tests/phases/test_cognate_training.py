"""Phase 1's training step and loop: accumulation, commands, disk, extensions, resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agentforge.errors import RunAborted, RunSuspended
from agentforge.events import (
    Progress,
    StageEnded,
    StageStarted,
    StepDone,
)
from agentforge.phases.cognate import bench as bench_module
from agentforge.phases.cognate.train import restore, save_checkpoint, train
from agentforge.phases.cognate.training import take_step
from agentforge.run.commands import append_command
from tests.phases.cognate_rig import Rig, equal, weights

torch.set_num_threads(1)

# --- the step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 60, 150])
def test_accumulation_gives_the_gradient_and_figures_of_the_large_batch(
    tmp_path: Path, micro: int
) -> None:
    found = []
    for tokens in (100_000, micro):
        rig = Rig(tmp_path)
        training = rig.training(micro=tokens, saved=False)
        items = training.sampler.draw({"total": 0.4, "recall": 0.4, "story": 0.2}, 9)
        gradient: dict[str, torch.Tensor] = {}
        real = training.optimizer.step

        def step(
            index: int,
            real: Any = real,
            training: Any = training,
            gradient: dict[str, torch.Tensor] = gradient,
        ) -> Any:
            named = training.model.named_parameters()
            gradient |= {n: p.grad.clone() for n, p in named if p.grad is not None}
            return real(index)

        training.optimizer.step = step  # type: ignore[method-assign]
        result = take_step(training, rig.bench.data, items, rig.bench.resources, 0.02)
        found.append((gradient, result))
    (large, whole), (small, parts) = found
    size = torch.cat([g.flatten() for g in large.values()]).norm()
    gap = torch.cat([(large[n] - small[n]).flatten() for n in large]).norm()
    assert float(gap / size) < 1e-6
    assert parts.tokens == whole.tokens
    for name in ("loss", "last_loss", "writes", "surprise", "gate"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5), name
    assert parts.halting == pytest.approx(whole.halting, rel=1e-5)
    assert parts.stats.grad_norm == pytest.approx(whole.stats.grad_norm, rel=1e-5)


def test_a_step_reports_its_batch_and_two_move_every_parameter(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    training = rig.training(saved=False)
    before = weights(training)
    items = training.sampler.draw(dict.fromkeys(rig.bench.data.train, 1.0), 8)
    result = take_step(training, rig.bench.data, items, rig.bench.resources, 0.02)
    corpora = rig.bench.data.train
    assert result.tokens == sum(len(corpora[n].item(i)) - 1 for n, i in items)
    assert 0 < result.writes < training.stage.train_behaviour.write_budget
    assert 0 < result.gate < 1
    mean, most, least, variance = result.halting
    assert 1 <= least <= mean + 1e-5
    assert mean - 1e-5 <= most <= training.model.config.recursion_steps
    assert variance >= 0
    training.step = 1
    take_step(training, rig.bench.data, items, rig.bench.resources, 0.02)
    after = weights(training)
    # The halting norm gets its first gradient once the head's weights have left zero.
    assert [n for n in before if torch.equal(before[n], after[n])] == []


def test_attention_logits_are_clipped_after_the_step(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "cognate.optim.qk_clip_tau=0.01")
    training = rig.training(saved=False)
    items = training.sampler.draw({"total": 1.0}, 8)
    config = training.model.config
    result = take_step(training, rig.bench.data, items, rig.bench.resources, 0.02)
    assert result.clipped_heads == config.n_heads * (config.n_prelude + config.n_core)


# --- disk, commands, extension, resume ------------------------------------------------------------


def test_a_filling_disk_prunes_and_a_full_one_suspends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, "storage.disk_check_interval=2", "storage.checkpoint_interval=1")
    training = rig.training(steps=6)
    verdicts = iter(["ok", "prune", "ok", "prune", "suspend"])
    monkeypatch.setattr(bench_module, "look_at_disk", lambda *_: next(verdicts))
    with pytest.raises(RunSuspended, match="GB of disk are free"):
        train(rig.bench, training)
    assert training.step == 6
    first, second = rig.alerts("disk")
    assert "checkpoints removed" in first.detail
    assert first.actions == second.actions == ()


@pytest.mark.parametrize(
    ("verb", "error"), [("suspend", RunSuspended), ("abort", RunAborted), ("finish", None)]
)
def test_commands_are_obeyed_at_the_next_step(
    tmp_path: Path, verb: str, error: type[Exception] | None
) -> None:
    rig = Rig(tmp_path, "storage.checkpoint_interval=100")
    training = rig.training(steps=6)
    append_command(rig.layout, verb)
    if error is None:
        train(rig.bench, training)
        assert rig.bench.finishing
    else:
        with pytest.raises(error, match="at step 1 of base"):
            train(rig.bench, training)
    assert training.step == 1
    info = rig.bench.store.newest_valid().info
    assert info is not None
    assert info.step == (1 if verb == "suspend" else 0), "abort and finish write none here"


def test_a_checkpoint_on_demand(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "storage.checkpoint_interval=100")
    training = rig.training(steps=3)
    append_command(rig.layout, "checkpoint")
    train(rig.bench, training)
    info = rig.bench.store.newest_valid().info
    assert info is not None
    assert info.step == 1


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path, cut: int) -> None:
    whole = Rig(tmp_path)
    expected = whole.training(steps=9)
    train(whole.bench, expected)

    rig = Rig(tmp_path, "storage.checkpoint_interval=100")
    first = rig.training(steps=9)
    first.total_steps = cut
    first.optimizer.total_steps = 9
    train(rig.bench, first)
    first.total_steps = 9
    save_checkpoint(rig.bench, first)
    torch.manual_seed(999)
    second = rig.training(steps=9, saved=False)
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.normal_()
    assert restore(rig.bench, second)
    assert (second.step, second.curriculum) == (cut, first.curriculum)
    train(rig.bench, second)
    assert equal(weights(second), weights(expected))
    state, wanted = second.optimizer.state_tensors(), expected.optimizer.state_tensors()
    assert equal(state, wanted)
    assert second.state() == expected.state()


def test_a_checkpoint_of_another_stage_is_not_taken(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    training = rig.training()
    other = rig.training(saved=False)
    other.stage = replace(other.stage, model="speed")
    assert not restore(rig.bench, other)
    assert restore(rig.bench, training)


@pytest.mark.parametrize(("fitness", "steps"), [(0.6, 5), (0.4, 5 + 2 * 3)])
def test_a_base_short_of_its_fitness_trains_longer_within_bounds(
    tmp_path: Path, fitness: float, steps: int
) -> None:
    rig = Rig(
        tmp_path,
        "cognate.base.target_fitness=0.5",
        "cognate.base.max_extensions=2",
        "cognate.base.extension_steps=3",
    )
    training = rig.training(steps=5)
    rig.fitness = fitness
    train(rig.bench, training)
    assert training.step == training.total_steps == steps
    assert training.optimizer.total_steps == steps
    assert len(rig.alerts("extended")) == (steps - 5) // 3
    assert rig.bench.progress == (0, 100 + steps - 5)


def test_the_loop_tells_of_its_beginning_every_step_and_its_end(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    training = rig.training(steps=4)
    train(rig.bench, training)
    (started,), (ended,) = rig.of(StageStarted), rig.of(StageEnded)
    assert isinstance(started, StageStarted)
    assert isinstance(ended, StageEnded)
    assert (started.model, started.steps) == (ended.model, ended.steps) == ("base", 4)
    steps = [e for e in rig.of(StepDone) if isinstance(e, StepDone)]
    assert [e.step for e in steps] == [1, 2, 3, 4]
    assert all(e.tokens > 0 and e.tokens_per_s > 0 and e.lr > 0 for e in steps)
    assert [p.done for p in rig.of(Progress) if isinstance(p, Progress)] == [1, 2, 3, 4]
    usage = [e.extra["ltm/memory_usage"] for e in steps]
    assert all(0 < u < 1 for u in usage)
