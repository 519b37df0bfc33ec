"""The ratchet on checked-in figures: what fails, what passes, what is only noted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from agentforge_kernels.verify import limits
from agentforge_kernels.verify.report import StaticReport

from tests.kernels import probe_kernels as probes

CASES = (probes.gemv_case(targets=("sm_75",)),)


@pytest.fixture(scope="module")
def good() -> StaticReport:
    return probes.report_of(probes.gemv_case(), "sm_75")


def entry(report: StaticReport, **figures: float) -> limits.Limits:
    return {"good_gemv": {"sm_75": {report.triton: {**limits.figures(report), **figures}}}}


@pytest.fixture
def ratcheted(good: StaticReport) -> StaticReport:
    """The good report as of a version with figures, whatever is installed."""
    return dataclasses.replace(good, triton=limits.RATCHETED[0])


def test_equal_and_better_figures_pass(ratcheted: StaticReport) -> None:
    assert limits.judge([ratcheted], entry(ratcheted), CASES) == limits.Verdict([], [], [])
    easier = entry(ratcheted, registers=60, occupancy=0.6, instructions_per_item=0.99)
    assert limits.judge([ratcheted], easier, CASES) == limits.Verdict([], [], [])


@pytest.mark.parametrize("name", limits.LARGER_IS_WORSE)
def test_more_than_five_percent_more_fails(ratcheted: StaticReport, name: str) -> None:
    assert not limits.worse(name, 105, 100)
    assert limits.worse(name, 105.1, 100)
    assert limits.worse(name, 1, 0)
    seen = limits.figures(ratcheted)[name]
    (failure,) = limits.judge(
        [ratcheted], entry(ratcheted, **{name: seen / 1.06 - 0.01}), CASES
    ).ratchet
    assert f"good_gemv on sm_75 with Triton 3.7.1: {name} " in failure


def test_more_than_five_percent_less_occupancy_fails(ratcheted: StaticReport) -> None:
    assert not limits.worse("occupancy", 0.95, 1.0)
    (failure,) = limits.judge([ratcheted], entry(ratcheted, occupancy=1.06), CASES).ratchet
    assert "occupancy" in failure


def test_a_figure_of_unknown_direction_is_an_error() -> None:
    with pytest.raises(ValueError, match="allowed: registers"):
        limits.worse("speed", 1, 1)


def test_missing_entries_and_figures_fail(ratcheted: StaticReport) -> None:
    (failure,) = limits.judge([ratcheted], {}, CASES).ratchet
    assert "no entry" in failure
    short = entry(ratcheted)
    del short["good_gemv"]["sm_75"][ratcheted.triton]["registers"]
    (failure,) = limits.judge([ratcheted], short, CASES).ratchet
    assert "no figure registers" in failure


def test_a_case_without_a_report_fails(ratcheted: StaticReport) -> None:
    verdict = limits.judge([], entry(ratcheted), CASES)
    assert verdict.gates == ["good_gemv on sm_75: no report"]


def test_stale_entries_fail(ratcheted: StaticReport) -> None:
    stale = entry(ratcheted)
    stale["gone"] = stale["good_gemv"]
    stale["good_gemv"] = {
        **stale["good_gemv"],
        "sm_80": stale["good_gemv"]["sm_75"],
        "sm_75": {**stale["good_gemv"]["sm_75"], "2.0.0": {}},
    }
    texts = limits.judge([ratcheted], stale, CASES).ratchet
    assert len(texts) == 3
    assert any("gone is no kernel case" in text for text in texts)
    assert any("does not ship for sm_80" in text for text in texts)
    assert any("2.0.0" in text for text in texts)


def test_an_unknown_version_is_held_to_the_gates_alone_and_says_so(good: StaticReport) -> None:
    newer = dataclasses.replace(good, triton="99.0.0")
    verdict = limits.judge([newer], {}, CASES)
    assert (verdict.gates, verdict.ratchet) == ([], [])
    (note,) = verdict.notes
    assert "Triton 99.0.0: no ratchet exists" in note
    assert limits.judge([dataclasses.replace(newer, spill_bytes=8)], {}, CASES).gates
    with pytest.raises(ValueError, match="99.0.0"):
        limits.updated({}, [newer], CASES)


def test_updating_keeps_other_versions_and_drops_what_is_gone(
    ratcheted: StaticReport, tmp_path: Path
) -> None:
    other = limits.RATCHETED[1]
    old = entry(ratcheted, registers=1)
    old["good_gemv"]["sm_75"][other] = {"registers": 40}
    old["good_gemv"]["sm_75"]["2.0.0"] = {"registers": 41}
    old["good_gemv"]["sm_80"] = {other: {"registers": 42}}
    old["gone"] = {"sm_75": {other: {"registers": 43}}}
    new = limits.updated(old, [ratcheted], CASES)
    assert new == {
        "good_gemv": {
            "sm_75": {ratcheted.triton: limits.figures(ratcheted), other: {"registers": 40}}
        }
    }
    file = tmp_path / "limits.json"
    limits.write_limits(new, file)
    assert limits.read_limits(file) == new
    limits.write_limits({}, file)
    assert limits.read_limits(file) == {}
