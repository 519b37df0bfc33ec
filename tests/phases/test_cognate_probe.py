"""The batch-size probe: a real step at full length, halved until it fits, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentforge.errors import PreflightError
from agentforge.phases.cognate import probe
from tests.phases.cognate_rig import Rig, equal, weights


def limited(rows: int) -> Any:
    """A loss that runs out of memory above so many rows."""
    real = probe.training_loss

    def loss(model: Any, ids: torch.Tensor, *rest: Any) -> Any:
        if ids.shape[0] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, ids, *rest)

    return loss


@pytest.mark.parametrize(("rows", "fits"), [(100, 768), (8, 768), (5, 384), (1, 96)])
def test_the_largest_halving_that_fits_is_taken_and_the_weights_stay(
    rows: int, fits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    training = rig.training(micro=768)
    before = weights(training)
    monkeypatch.setattr(probe, "training_loss", limited(rows))
    assert probe.fitting_micro_batch(training, rig.bench.resources, 96) == fits
    assert equal(weights(training), before)
    assert all(p.grad is None for p in training.model.parameters())
    assert training.optimizer.state_tensors() == {}


def test_not_even_one_sequence_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    monkeypatch.setattr(probe, "training_loss", limited(0))
    with pytest.raises(PreflightError, match="one sequence of 96 tokens"):
        probe.fitting_micro_batch(rig.training(micro=384), rig.bench.resources, 96)


def test_other_errors_are_not_taken_for_lost_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    rig = Rig(tmp_path)
    monkeypatch.setattr(probe, "training_loss", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        probe.fitting_micro_batch(rig.training(), rig.bench.resources, 96)
