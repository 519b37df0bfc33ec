"""The engine that trains the controls beside the run: commands reach it, its death is survived."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from agentforge.errors import ExitCode
from agentforge.events import Alert, ControlAck, StageStarted, StepDone
from agentforge.report import build_report
from agentforge.run.commands import append_command
from agentforge.run.layout import RunLayout
from agentforge.run.supervisor import adopt, start_worker
from tests.phases.smoke_runs import console, events, finish, hashes, new_run

LONG = ("cognate.base.steps=60", "cognate.side_process='on'")
WAIT_S = 90.0


def control_steps(layout: RunLayout) -> int:
    """Furthest step of the control that the run's log knows of."""
    found = [e for e in events(layout, "step_done") if isinstance(e, StepDone)]
    return max((e.step for e in found if e.model == "memory_off"), default=0)


def wait_until(condition: object, layout: RunLayout) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, console(layout)
        time.sleep(0.02)


def test_pause_holds_both_engines_and_finish_ends_the_waiting(tmp_path: Path) -> None:
    layout = new_run(tmp_path, "cognate.base.steps=160", "cognate.side_process='on'")
    worker = start_worker(layout)
    wait_until(lambda: control_steps(layout) >= 3, layout)
    pause = append_command(layout, "pause", by="test")
    acks = lambda: {e.id for e in events(layout, "control_ack") if isinstance(e, ControlAck)}  # noqa: E731
    wait_until(lambda: pause in acks(), layout)
    controls = RunLayout(layout.root / "controls")
    wait_until(lambda: any(True for _ in events(controls, "state_changed")), layout)
    held = len(events(controls, "step_done"))
    time.sleep(0.5)
    assert len(events(controls, "step_done")) == held
    append_command(layout, "resume", by="test")
    wait_until(lambda: len(events(controls, "step_done")) > held + 2, layout)
    append_command(layout, "finish", by="test")
    assert worker.wait(timeout=WAIT_S) == ExitCode.OK, console(layout)
    assert "cognate.memory_off" not in hashes(layout)
    assert adopt(controls) is None, "no engine may be left behind"
    assert any("Ended early" in n for p in build_report(layout).phases for n in p.notes)


def test_a_killed_side_engine_costs_nothing_but_time(tmp_path: Path) -> None:
    whole, struck = new_run(tmp_path / "whole", *LONG), new_run(tmp_path / "struck", *LONG)
    assert finish(whole) == ExitCode.OK, console(whole)
    worker = start_worker(struck)
    wait_until(lambda: control_steps(struck) >= 2, struck)
    engine = adopt(RunLayout(struck.root / "controls"))
    assert engine is not None
    os.kill(engine.pid, signal.SIGKILL)
    assert worker.wait(timeout=WAIT_S) == ExitCode.OK, console(struck)
    assert hashes(struck) == hashes(whole)
    alerts = [e for e in events(struck, "alert") if isinstance(e, Alert)]
    assert [a.code for a in alerts] == ["controls"]
    begun = [e.phase for e in events(struck, "stage_started") if isinstance(e, StageStarted)]
    assert "cognate.controls" in begun
