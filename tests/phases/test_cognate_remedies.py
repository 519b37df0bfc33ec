"""Phase 1's remedies: lost memory, NaN, divergence, plateaus, and every action one can choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agentforge.errors import RunSuspended, TrainingError
from agentforge.events import (
    CurriculumStage,
    StepDone,
)
from agentforge.model.loss import LossParts, training_loss
from agentforge.phases.cognate import train as loop
from agentforge.phases.cognate.train import restore, train
from agentforge.phases.cognate.training import StepResult
from tests.phases.cognate_rig import Rig, equal, weights

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


# --- memory runs out ------------------------------------------------------------------------------

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    MemoryError("no more"),
    MemoryError(),
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


def test_memory_lost_inside_the_optimiser_changes_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first optimiser step allocates its state: the likeliest place for a card to run out."""
    rig = Rig(tmp_path)
    training = rig.training(steps=1, micro=192)
    real, failed = training.optimizer.adamw.step, []

    def step(*args: Any) -> Any:
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args)

    monkeypatch.setattr(training.optimizer.adamw, "step", step)
    train(rig.bench, training)
    assert failed == [1]
    undisturbed = rig.training(steps=1, micro=training.micro_batch_tokens, saved=False)
    train(rig.bench, undisturbed)
    assert equal(weights(training), weights(undisturbed))


def test_memory_that_never_suffices_suspends_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    training = rig.training(micro=384)
    start = weights(training)
    monkeypatch.setattr(LOSS, FaultyLoss(lambda *_: True, MemoryError("none left")))
    with pytest.raises(RunSuspended, match="memory ran out"):
        train(rig.bench, training)
    assert [a.recommended for a in rig.alerts()] == ["smaller_batch"] * 2 + ["stop"]
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


def test_divergence_told_to_stop_suspends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert (training.halvings, training.rollbacks) == (3, 0)
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
