"""What Phase 4 decides by: rises of the loss with their noise, lost shares of accuracy, stages."""

from __future__ import annotations

import numpy as np
import pytest

from agentforge.phases.bitnet.calibrate import Sensitivity, stage_groups
from agentforge.phases.bitnet.losses import Losses, Rise, rise
from agentforge.phases.bitnet.measure import Scores, relative_drop


def scores(**tasks: list[float]) -> Scores:
    found = {n: np.array(v, dtype=np.float64) for n, v in tasks.items()}
    return Scores("model", found, 1.0, 1.0, 1.0)


def test_a_rise_is_per_token_and_its_error_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(0)

    def sample() -> Rise:
        tokens = rng.integers(3, 20, 400)
        before = Losses(rng.exponential(1.0, 400) * tokens, tokens)
        return rise(before, Losses(before.sums + tokens * rng.normal(0.2, 1.0, 400), tokens))

    found = [sample() for _ in range(300)]
    values = np.array([f.value for f in found])
    assert values.mean() == pytest.approx(0.2, abs=0.01)
    assert np.mean([f.stderr for f in found]) == pytest.approx(values.std(), rel=0.15)


def test_a_rise_counts_beyond_budget_and_noise_only() -> None:
    assert Rise(0.5, 0.1, 10).exceeds(0.3)
    assert not Rise(0.5, 0.3, 10).exceeds(0.3)
    assert not Rise(0.25, 0.01, 10).exceeds(0.3)
    assert not Rise(-1.0, 0.01, 10).exceeds(0.0)


def test_every_task_counts_the_same() -> None:
    before = scores(thinking=[1, 1, 1, 1], total=[1, 0] * 50)
    after = scores(thinking=[1, 1, 1, 0], total=[1, 0] * 50)
    assert before.accuracy == 0.75
    drop = relative_drop(before, after, seed=1)
    assert drop.mean == pytest.approx(1 - 0.625 / 0.75)
    assert drop.low <= drop.mean <= drop.high
    assert drop.n == 104


def test_equal_scores_lose_nothing_and_better_ones_less_than_nothing() -> None:
    before = scores(total=[1, 0, 1, 0] * 30)
    same = relative_drop(before, before, seed=1)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    assert relative_drop(before, scores(total=[1, 1, 1, 0] * 30), seed=1).high < 0


def test_nothing_right_before_is_no_number() -> None:
    drop = relative_drop(scores(total=[0, 0]), scores(total=[1, 0]), seed=1)
    assert np.isnan([drop.mean, drop.low, drop.high]).all()


def test_stages_take_the_least_sensitive_first() -> None:
    found = [Sensitivity(f"m{i}", 10, Rise(v, 0.1, 5), 0.3) for i, v in enumerate([3, 1, 2, 5, 4])]
    assert stage_groups(found, 2) == [["m1", "m2"], ["m0", "m4", "m3"]]
    assert stage_groups(found, 99) == [["m1"], ["m2"], ["m0"], ["m4"], ["m3"]]
    assert stage_groups(found, 1) == [["m1", "m2", "m0", "m4", "m3"]]
