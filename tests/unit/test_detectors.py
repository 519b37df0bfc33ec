"""Divergence and plateau detection against numpy, and the state they save."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentforge.detectors import DIVERGENCE_SLOPE, PLATEAU_FLOOR, PLATEAU_VARIANCE, LossWatch

LOSSES = st.lists(st.floats(0, 20, allow_nan=False), min_size=0, max_size=60)


def watching(losses: list[float], divergence: int = 10, plateau: int = 7) -> LossWatch:
    watch = LossWatch(divergence, plateau)
    for loss in losses:
        watch.add(loss)
    return watch


def test_documented_thresholds() -> None:
    assert (DIVERGENCE_SLOPE, PLATEAU_VARIANCE, PLATEAU_FLOOR) == (0.01, 0.001, 0.5)


@given(LOSSES, st.integers(2, 30), st.integers(2, 30))
def test_slope_and_variance_are_numpys(losses: list[float], divergence: int, plateau: int) -> None:
    watch = watching(losses, divergence, plateau)
    if len(losses) < divergence:
        assert watch.slope() is None
    else:
        last = losses[-divergence:]
        expected = np.polyfit(np.arange(divergence), last, 1)[0]
        assert watch.slope() == pytest.approx(expected, abs=1e-9)
    if len(losses) < plateau:
        assert watch.variance() is None
    else:
        assert watch.variance() == pytest.approx(np.var(losses[-plateau:]), abs=1e-9)


def test_divergence_needs_a_steady_rise_over_the_whole_window() -> None:
    rising = [1 + 0.02 * i for i in range(10)]
    assert watching(rising).diverging()
    assert not watching(rising[:9]).diverging(), "the window is not full"
    assert not watching([1 + 0.009 * i for i in range(10)]).diverging()
    assert not watching([1 - 0.02 * i for i in range(10)]).diverging()
    assert watching([9.0] * 20 + rising).diverging(), "only the last window counts"


def test_a_single_spike_is_no_divergence_over_a_hundred_steps() -> None:
    falling = [3 - 0.01 * i for i in range(100)]
    falling[90] += 5
    assert not watching(falling, 100, 50).diverging()


def test_a_plateau_is_flat_and_high() -> None:
    flat = [1.0 + 0.01 * (-1) ** i for i in range(7)]
    assert watching(flat).stalled()
    assert not watching(flat[:6]).stalled()
    assert not watching([x - 0.6 for x in flat]).stalled(), "converged, not stalled"
    assert not watching([1.0 + 0.2 * (-1) ** i for i in range(7)]).stalled()


def test_reset_empties_both_windows() -> None:
    watch = watching([1.0] * 20)
    watch.reset()
    assert watch.slope() is None
    assert watch.variance() is None
    assert not watch.stalled()
    assert watch.state() == []


@given(LOSSES, LOSSES)
def test_saved_state_continues_identically(before: list[float], after: list[float]) -> None:
    watch = watching(before)
    other = LossWatch(10, 7)
    other.load_state(json.loads(json.dumps(watch.state())))
    for loss in after:
        watch.add(loss)
        other.add(loss)
        assert (watch.slope(), watch.variance()) == (other.slope(), other.variance())
        assert watch.diverging() == other.diverging()
        assert watch.stalled() == other.stalled()


def test_a_loss_that_is_no_number_raises_neither_alarm() -> None:
    """NaN has its own alert; it must not look like a plateau or a divergence."""
    watch = watching([1.0] * 9 + [math.nan])
    assert not watch.diverging()
    assert not watch.stalled()
