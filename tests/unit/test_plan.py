"""What ``--dry-run`` says of Phase 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentforge.config.load import load_config
from agentforge.plan import build_plan, plan_text


@pytest.mark.parametrize(
    ("sets", "merges", "control"),
    [
        ((), 8 + 50 * 6, 210),
        (("evomerge.scheme=six_and_two",), 8 + 50 * 8, 210),
        (("evomerge.scheme=keep_six", "evomerge.control_steps=30"), 8 + 50 * 2, 30),
        (("evomerge.generations=0", "evomerge.control_steps=0"), 8, None),
        (("until=cognate",), 0, None),
    ],
)
def test_search_and_control_are_planned(tmp_path: Path, sets, merges, control):
    plan = build_plan(load_config(preset="demo", env={}, sets=list(sets)), tmp_path)
    assert plan.merges == merges
    steps = {t.model: t.steps for t in plan.trainings}
    assert steps.get("control multi_task") == control
    assert (f"merge search: {merges} models" in plan_text(plan)) == bool(merges)


def test_phase_2_alone_trains_its_control_only(tmp_path: Path):
    sets = ['phases=["evomerge"]', 'evomerge.models=["a","b","c"]', "evomerge.base=d"]
    plan = build_plan(load_config(preset="demo", env={}, sets=sets), tmp_path)
    assert [t.model for t in plan.trainings] == ["control multi_task"]
