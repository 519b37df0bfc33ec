"""Phase 1's training step and loop: accumulation, lost memory, NaN, plateaus, commands, resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.phases.cognate_rig import Rig, equal, weights

from agentforge.errors import RunAborted, RunSuspended, TrainingError
from agentforge.events import (
    CurriculumStage,
    Progress,
    StageEnded,
    StageStarted,
    StepDone,
)
from agentforge.model.loss import LossParts, training_loss
from agentforge.phases.cognate import train as loop
from agentforge.phases.cognate.train import restore, save_checkpoint, train
from agentforge.phases.cognate.training import StepResult, take_step
from agentforge.run.commands import append_command

torch.set_num_threads(1)

LOSS = "agentforge.phases.cognate.training.training_loss"


class FaultyLoss:
    """`training_loss` that fails or turns to NaN at chosen calls (0-based)."""

    def __init__(self, at: Callable[[int, torch.Tensor], bool], fault: BaseException | float):
        self.at, self.fault, self.calls = at, fault, 0

    def __call__(self, model: Any, ids: torch.Tensor, *args: Any) -> LossParts:
        call, self.calls = self.calls, self.calls + 1
        if not self.at(call, ids):
            return training_loss(model, ids, *args)
        if isinstance(self.fault, BaseException):
            raise self.fault
        parts = training_loss(model, ids, *args)
        bad = parts.total * self.fault
        return replace(parts, total=bad, task_sum=parts.task_sum * self.fault)


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
        result = take_step(training, rig.bench.data, items, rig.bench.resources)
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


def test_a_step_moves_every_parameter_and_reports_its_batch(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    training = rig.training(saved=False)
    before = weights(training)
    items = training.sampler.draw(dict.fromkeys(rig.bench.data.train, 1.0), 8)
    result = take_step(training, rig.bench.data, items, rig.bench.resources)
    corpora = rig.bench.data.train
    assert result.tokens == sum(len(corpora[n].item(i)) - 1 for n, i in items)
    assert 0 < result.writes < training.stage.train_behaviour.write_budget
    assert 0 < result.gate < 1
    mean, most, least, variance = result.halting
    assert 1 <= least <= mean + 1e-5
    assert mean - 1e-5 <= most <= training.model.config.recursion_steps
    assert variance >= 0
    after = weights(training)
    assert [n for n in before if torch.equal(before[n], after[n])] == []


def test_attention_logits_are_clipped_after_the_step(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "cognate.optim.qk_clip_tau=0.01")
    training = rig.training(saved=False)
    items = training.sampler.draw({"total": 1.0}, 8)
    config = training.model.config
    result = take_step(training, rig.bench.data, items, rig.bench.resources)
    assert result.clipped_heads == config.n_heads * (config.n_prelude + config.n_core)


# --- memory runs out ------------------------------------------------------------------------------

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    MemoryError("no more"),
    pytest.param(
        MemoryError(),
        marks=pytest.mark.xfail(
            strict=True, raises=IndexError, reason="a MemoryError without words has no first line"
        ),
    ),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("call", [0, 1])
def test_lost_memory_halves_the_micro_batch_and_takes_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, call: int
) -> None:
    """Nothing of the broken attempt remains: bit-equal to a run with the smaller micro-batch."""
    rig = Rig(tmp_path)
    training = rig.training(steps=1, micro=192)
    broken = FaultyLoss(lambda n, _: n == call, error)
    monkeypatch.setattr(LOSS, broken)
    train(rig.bench, training)
    assert training.micro_batch_tokens == 96
    assert training.step == 1
    (alert,) = rig.alerts("out_of_memory")
    assert "192 tokens; next try: 96" in alert.detail
    assert rig.actions() == ["smaller_batch"]

    monkeypatch.setattr(LOSS, training_loss)
    undisturbed = rig.training(steps=1, micro=96, saved=False)
    train(rig.bench, undisturbed)
    assert equal(weights(training), weights(undisturbed))
    assert training.sampler.state() == undisturbed.sampler.state()
    large = rig.training(steps=1, micro=192, saved=False)
    train(rig.bench, large)
    first, second = rig.of(StepDone)[0], rig.of(StepDone)[-1]
    assert isinstance(first, StepDone)
    assert isinstance(second, StepDone)
    assert first.loss == pytest.approx(second.loss, rel=1e-6)
    for name, tensor in weights(large).items():
        # Newton-Schulz runs in bf16 and magnifies the last bit of a gradient.
        torch.testing.assert_close(weights(training)[name], tensor, rtol=0, atol=2e-4)


def test_memory_that_never_suffices_suspends_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    training = rig.training(micro=384)
    start = weights(training)
    monkeypatch.setattr(LOSS, FaultyLoss(lambda *_: True, MemoryError("none left")))
    with pytest.raises(RunSuspended, match="memory ran out"):
        train(rig.bench, training)
    assert [a.recommended for a in rig.alerts()] == ["smaller_batch"] * 3 + ["stop"]
    info = rig.bench.store.newest_valid().info
    assert info is not None
    saved = rig.bench.store.load(info)
    assert saved.state["step"] == 0
    assert equal(dict(saved.groups["model"]), start)


def test_other_runtime_errors_are_not_taken_for_lost_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    training = rig.training()
    monkeypatch.setattr(LOSS, FaultyLoss(lambda *_: True, RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(rig.bench, training)
    assert rig.alerts() == []


# --- NaN and divergence ---------------------------------------------------------------------------


def nan_at_step(training: Any, steps: set[int], times: int = 10**6) -> FaultyLoss:
    """NaN whenever one of these steps is taken, so many times in all."""
    left = [times]

    def at(_call: int, _ids: torch.Tensor) -> bool:
        if training.step in steps and left[0] > 0:
            left[0] -= 1
            return True
        return False

    return FaultyLoss(at, float("nan"))


def test_nan_goes_back_to_the_checkpoint_with_half_the_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, "storage.checkpoint_interval=3")
    training = rig.training(steps=8)
    monkeypatch.setattr(LOSS, nan_at_step(training, {5}, times=1))
    train(rig.bench, training)
    assert training.step == 8
    assert training.rollbacks == 1
    assert rig.actions() == ["roll_back"]
    (alert,) = rig.alerts("nan")
    assert alert.level == "error"
    done = [e for e in rig.of(StepDone) if isinstance(e, StepDone)]
    assert [e.step for e in done] == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8]
    again = {e.step: e.lr for e in done[5:]}
    assert [again[s] / e.lr for e in done[3:5] for s in (e.step,)] == pytest.approx([0.5, 0.5])

    # The same as: three steps, then half the learning rate from there.
    other = Rig(tmp_path, "storage.checkpoint_interval=3")
    monkeypatch.setattr(LOSS, training_loss)
    expected = other.training(steps=8)
    real = loop.take_step

    def slower(training: Any, *args: Any) -> StepResult:
        training.optimizer.lr_scale = 1.0 if training.step < 3 else 0.5
        return real(training, *args)

    monkeypatch.setattr(loop, "take_step", slower)
    train(other.bench, expected)
    assert equal(weights(training), weights(expected))
    assert training.sampler.state() == expected.sampler.state()


def test_a_rollback_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path, "storage.checkpoint_interval=2")
    training = rig.training(steps=6)
    monkeypatch.setattr(LOSS, nan_at_step(training, {3}, times=1))
    train(rig.bench, training)
    other = rig.training(steps=6, saved=False)
    assert restore(rig.bench, other)
    assert other.rollbacks == 1
    assert equal(weights(other), weights(training))


def test_nan_that_comes_again_ends_the_training_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    training = rig.training(steps=8)
    monkeypatch.setattr(LOSS, nan_at_step(training, {2}))
    with pytest.raises(TrainingError, match="after 3 returns to a checkpoint") as error:
        train(rig.bench, training)
    assert "muon_lr" in error.value.remedy
    assert rig.actions() == ["roll_back"] * 3


def test_nan_without_a_readable_checkpoint_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    training = rig.training(saved=False)
    monkeypatch.setattr(LOSS, nan_at_step(training, {1}))
    with pytest.raises(TrainingError, match="no checkpoint of this stage is readable"):
        train(rig.bench, training)


def test_nan_told_to_stop_suspends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path, "on_alert=stop")
    training = rig.training()
    monkeypatch.setattr(LOSS, nan_at_step(training, {2}))
    with pytest.raises(RunSuspended, match="not a number"):
        train(rig.bench, training)
    assert rig.actions() == ["stop"]
    info = rig.bench.store.newest_valid().info
    assert info is not None
    assert all(
        bool(t.isfinite().all()) for t in rig.bench.store.load(info).groups["model"].values()
    )


def test_nan_ignored_drops_the_step_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, "on_alert=ignore")
    training = rig.training(steps=4)
    monkeypatch.setattr(LOSS, nan_at_step(training, {1}))
    train(rig.bench, training)
    assert rig.actions() == ["continue"]
    assert (training.step, training.rollbacks) == (4, 0)
    assert all(bool(t.isfinite().all()) for t in weights(training).values())
    done = [e.step for e in rig.of(StepDone) if isinstance(e, StepDone)]
    assert done == [1, 3, 4], "a step that was dropped reports no loss"


def test_nan_answered_with_halving_keeps_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, answers={"nan": "halve_lr"})
    training = rig.training(steps=4)
    monkeypatch.setattr(LOSS, nan_at_step(training, {1}))
    train(rig.bench, training)
    assert rig.actions() == ["halve_lr"]
    assert (training.step, training.rollbacks) == (4, 1)
    assert training.optimizer.lr_scale == 0.5


def forged(monkeypatch: pytest.MonkeyPatch, loss: Callable[[int], float]) -> None:
    """Real steps that report another loss."""
    real = loop.take_step

    def step(training: Any, *args: Any) -> StepResult:
        index = training.step
        return replace(real(training, *args), loss=loss(index))

    monkeypatch.setattr(loop, "take_step", step)


@pytest.mark.parametrize(
    ("answer", "rollbacks", "last"),
    [("roll_back", 1, None), ("halve_lr", 1, 12), ("continue", 0, 12)],
)
def test_divergence_offers_its_actions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    rollbacks: int,
    last: int | None,
) -> None:
    rig = Rig(tmp_path, "storage.checkpoint_interval=100", answers={"divergence": answer})
    training = rig.training(steps=12, curriculum=False)
    rise = [0.05]
    forged(monkeypatch, lambda i: 1 + rise[0] * i)
    emit = rig.bench.context.emit

    def calm(event: Any) -> None:
        if getattr(event, "code", "") == "divergence":
            rise[0] = -0.05  # the remedy worked
        emit(event)

    object.__setattr__(rig.context, "emit", calm)
    train(rig.bench, training)
    (alert,) = rig.alerts("divergence")
    assert "0.0500 a step over 10" in alert.detail
    assert [a.key for a in alert.actions] == ["roll_back", "halve_lr", "continue", "stop"]
    assert rig.actions()[0] == answer
    assert training.rollbacks == rollbacks
    assert training.step == 12
    steps = [e.step for e in rig.of(StepDone) if isinstance(e, StepDone)]
    expected = [*range(1, 11), *range(1, 13)] if last is None else list(range(1, 13))
    assert steps == expected


def test_divergence_told_to_stop_suspends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, "on_alert=stop")
    training = rig.training(steps=12, curriculum=False)
    forged(monkeypatch, lambda i: 1 + 0.05 * i)
    with pytest.raises(RunSuspended, match="diverges"):
        train(rig.bench, training)


def test_plateaus_halve_the_rate_three_times_and_then_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    training = rig.training(steps=52, curriculum=False)
    forged(monkeypatch, lambda _: 1.0)
    train(rig.bench, training)
    assert [a.code for a in rig.alerts()] == ["plateau"] * 5
    assert rig.actions() == ["halve_lr"] * 3 + ["continue"] * 2
    assert training.rollbacks == 3
    assert training.optimizer.lr_scale == pytest.approx(1 / 8)


def test_a_plateau_told_to_stop_suspends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path, "on_alert=stop")
    training = rig.training(steps=12, curriculum=False)
    forged(monkeypatch, lambda _: 1.0)
    with pytest.raises(RunSuspended, match="stands still"):
        train(rig.bench, training)


def test_a_plateau_right_after_a_new_curriculum_stage_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages change at 30 % and 60 % of 30 steps: no window of ten ever lies within one."""
    rig = Rig(tmp_path, "cognate.plateau_window=13")
    training = rig.training(steps=30)
    forged(monkeypatch, lambda _: 1.0)
    train(rig.bench, training)
    assert [e.step for e in rig.of(CurriculumStage) if isinstance(e, CurriculumStage)] == [0, 9, 18]
    assert rig.alerts() == []


# --- disk, commands, extension, resume ------------------------------------------------------------


def test_a_filling_disk_prunes_and_a_full_one_suspends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, "storage.disk_check_interval=2", "storage.checkpoint_interval=1")
    training = rig.training(steps=6)
    verdicts = iter(["ok", "prune", "ok", "prune", "suspend"])
    monkeypatch.setattr(loop, "look_at_disk", lambda *_: next(verdicts))
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
