from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentforge.events import (
    ActionTaken,
    Alert,
    AlertAction,
    Event,
    GateChecked,
    Heartbeat,
    PhaseStarted,
    Progress,
    RunEnded,
    RunStarted,
    RunState,
    StageStarted,
    StateChanged,
    StepDone,
)
from agentforge.run.layout import RunLayout, create_run_dir
from agentforge.run.lock import touch_heartbeat
from agentforge.run.process import this_process
from agentforge.run.status import (
    DerivedState,
    Vital,
    derive_state,
    list_runs,
    run_state,
    summarise,
)
from agentforge.sinks.jsonl import JsonlSink
from agentforge.sinks.tee import TeeSink

STARTED = RunStarted(run_id="r", preset="demo", phases=("cognate",), seed=1, resumed=False)
ACTIONS = (AlertAction(key="go", label="Go", consequence="none"),)


def write(layout: RunLayout, *events: Event) -> None:
    times = iter(range(100, 10_000))
    tee = TeeSink(JsonlSink(layout.events), clock=lambda: float(next(times)))
    for event in events:
        tee.emit(event)
    tee.close()


def step(number: int, loss: float = 1.0) -> StepDone:
    return StepDone(
        phase="cognate",
        model="base",
        step=number,
        steps=9,
        loss=loss,
        lr=0.1,
        grad_norm=1.0,
        tokens=1,
        tokens_per_s=1.0,
    )


def alert(name: str, *, actions: tuple[AlertAction, ...] = (), level: str = "warning") -> Alert:
    return Alert(id=name, level=level, code="c", title="t", detail="d", actions=actions)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "held", "alive", "age", "state"),
    [
        (None, False, False, None, "created"),
        (None, True, False, None, "created"),
        (None, True, True, 1.0, "running"),
        ("running", True, True, 1.0, "running"),
        ("paused", True, True, 14.9, "paused"),
        ("running", True, True, 15.0, "stalled"),
        ("paused", True, True, None, "stalled"),
        ("running", True, False, 1.0, "crashed"),
        ("paused", False, False, None, "crashed"),
        ("running", True, None, 1.0, "running"),
        ("running", True, None, 99.0, "stalled"),
        ("finished", True, True, 1.0, "finished"),
        ("failed", False, False, None, "failed"),
        ("aborted", False, False, None, "aborted"),
        ("suspended", True, False, 99.0, "suspended"),
    ],
)
def test_the_state_follows_from_the_signs(
    told: RunState | None, held: bool, alive: bool | None, age: float | None, state: DerivedState
) -> None:
    assert derive_state(Vital(told, held, alive, age)) == state


def test_a_summary_of_everything(layout: RunLayout) -> None:
    def gate(name: str, status: str) -> GateChecked:
        return GateChecked(
            name=name,
            value=1.0,
            op=">",
            threshold=0.5,
            n=1,
            source="s",
            status=status,  # type: ignore[arg-type]
        )

    write(
        layout,
        STARTED,
        PhaseStarted(phase="cognate"),
        StageStarted(phase="cognate", stage="train base", model="base", steps=9),
        step(1),
        gate("a", "missed"),
        gate("a", "met"),
        gate("b", "missed"),
        gate("c", "not_in_run"),
        alert("sink"),
        alert("note", level="info"),
        alert("low", actions=ACTIONS),
        alert("high", actions=ACTIONS),
        ActionTaken(alert_id="low", action="go", by="user"),
        Progress(phase="cognate", done=2, total=10, unit="steps", eta_s=12.5),
        step(2, loss=0.25),
        Heartbeat(pid=1),
    )
    found = summarise(layout)
    assert (found.run_id, found.preset, found.path) == (layout.run_id, "demo", layout.root)
    assert (found.phase, found.stage, found.model) == ("cognate", "train base", "base")
    assert (found.step, found.steps, found.loss, found.eta_s) == (2, 9, 0.25, 12.5)
    assert (found.gates_met, found.gates_missed, found.gates_not_in_run) == (1, 1, 1)
    assert (found.alerts_open, found.warnings) == (1, 1)
    assert found.updated == 115.0
    assert found.state == "crashed"
    write(layout, RunEnded(state="failed", reason="no luck", exit_code=1))
    found = summarise(layout)
    assert (found.state, found.reason, found.alerts_open) == ("failed", "no luck", 0)


def test_a_new_stage_begins_at_zero_and_unknown_eta_is_none(layout: RunLayout) -> None:
    write(
        layout,
        STARTED,
        step(7),
        Progress(phase="cognate", done=7, total=9, unit="steps", eta_s=-1.0),
        StageStarted(phase="cognate", stage="train speed", model="speed", steps=4),
    )
    found = summarise(layout)
    assert (found.model, found.step, found.steps, found.eta_s) == ("speed", 0, 4, None)


def test_a_resumed_run_runs_again(layout: RunLayout) -> None:
    write(layout, STARTED, RunEnded(state="suspended", reason="", exit_code=5))
    assert run_state(layout) == "suspended"
    layout.lock.write_text(json.dumps(dataclasses.asdict(this_process())))
    touch_heartbeat(layout)
    write(layout, dataclasses.replace(STARTED, resumed=True))
    assert run_state(layout) == "running"
    write(layout, StateChanged(state="paused"))
    assert run_state(layout) == "paused"
    past = time.time() - 60
    os.utime(layout.heartbeat, (past, past))
    assert run_state(layout) == "stalled"


def test_a_killed_engine_has_crashed(layout: RunLayout) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    row = dataclasses.asdict(this_process()) | {"pid": child.pid}
    layout.lock.write_text(json.dumps(row))
    touch_heartbeat(layout)
    write(layout, STARTED)
    # The pid lives, but its start is another one: it is not the engine.
    assert run_state(layout) == "crashed"
    child.communicate(b"\n")


def test_runs_are_listed_newest_first_and_damage_is_survived(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert list_runs(runs) == []
    names = []
    for created in (3.0, 1.0, 2.0):
        made = create_run_dir(runs, "demo", 1)
        made.manifest.write_text(json.dumps({"created": created}))
        names.append((created, made.run_id))
    broken = create_run_dir(runs, "broken", 1)
    broken.manifest.write_text("{")
    broken.events.write_bytes(b"\0\0\0\n{torn")
    os.utime(broken.root, (0.5, 0.5))
    listed = list_runs(runs)
    assert [r.run_id for r in listed] == [n for _, n in sorted(names, reverse=True)] + [
        broken.run_id
    ]
    assert listed[-1].preset == "?"
    assert {r.state for r in listed} == {"created"}
