"""The engine as a real process: lock, signals, commands, crashes, resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import wait_for

from agentforge.config.schema import RunConfig
from agentforge.errors import ExitCode, RunError
from agentforge.events import (
    ConfigChanged,
    ControlAck,
    Event,
    Heartbeat,
    LogLine,
    RunEnded,
    RunStarted,
    StateChanged,
    StepDone,
)
from agentforge.run import supervisor
from agentforge.run.commands import append_command
from agentforge.run.layout import RunLayout, create_run_dir
from agentforge.run.lock import read_lock
from agentforge.run.manifest import load_manifest, new_manifest, save_manifest
from agentforge.run.status import run_state, summarise
from agentforge.run.tail import EventTail, read_events

Start = Callable[..., subprocess.Popen[bytes]]
LIMIT = 30.0


def events(layout: RunLayout) -> list[Event]:
    return [s.event for s in read_events(layout.events)]


def steps(layout: RunLayout) -> list[int]:
    return [e.step for e in events(layout) if isinstance(e, StepDone)]


def ended(layout: RunLayout) -> RunEnded:
    last = events(layout)[-1]
    assert isinstance(last, RunEnded)
    return last


def answer_to(layout: RunLayout, command: str) -> ControlAck:
    def found() -> list[ControlAck]:
        return [e for e in events(layout) if isinstance(e, ControlAck) and e.id == command]

    wait_for(lambda: bool(found()), "an acknowledgement")
    assert len(found()) == 1
    return found()[0]


def wait_for_steps(layout: RunLayout, count: int = 3) -> None:
    wait_for(lambda: len(steps(layout)) >= count, f"{count} steps")


def test_a_whole_run(layout: RunLayout, start_toy: Start) -> None:
    process = start_toy(TOY_STEPS="5")
    told = list(supervisor.follow(layout, process))
    assert process.wait(LIMIT) == ExitCode.OK
    assert [s.seq for s in told] == list(range(len(told)))
    assert isinstance(told[0].event, RunStarted)
    assert told[0].event.resumed is False
    assert any(isinstance(s.event, Heartbeat) for s in told)
    assert ended(layout) == RunEnded(state="finished", reason="", exit_code=0)
    assert steps(layout) == [1, 2, 3, 4, 5]
    assert run_state(layout) == "finished"
    assert load_manifest(layout).state == "finished"
    assert layout.console_log.read_text() == ""
    left = {path.name for path in layout.root.iterdir()}
    assert not left & {"lock.json", ".heartbeat", ".events.reserve"}


def test_a_missed_gate_is_a_finished_run(layout: RunLayout, start_toy: Start) -> None:
    assert start_toy(TOY_STEPS="1", TOY_CODE="4").wait(LIMIT) == ExitCode.GATE_MISSED
    assert (ended(layout).state, ended(layout).exit_code) == ("finished", 4)


@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [
        ("data", ExitCode.PREFLIGHT, "line 7 is torn\n  -> repair the line"),
        ("defect", ExitCode.RUN_FAILED, "ZeroDivisionError: a defect"),
        ("exit", 9, "in the middle of its work"),
    ],
)
def test_a_failing_run_says_why(
    layout: RunLayout, start_toy: Start, how: str, code: int, reason: str
) -> None:
    assert start_toy(TOY_FAIL=how).wait(LIMIT) == code
    assert ended(layout).state == "failed"
    assert reason in ended(layout).reason
    # A traceback is for defects only, and never in what users read.
    assert ("Traceback" in layout.console_log.read_text()) == (how == "defect")
    assert "Traceback" not in ended(layout).reason
    assert run_state(layout) == "failed"


def test_pause_set_checkpoint_resume_finish(layout: RunLayout, start_toy: Start) -> None:
    process = start_toy()
    wait_for_steps(layout)
    assert run_state(layout) == "running"
    assert answer_to(layout, append_command(layout, "pause")).ok
    assert run_state(layout) == "paused"
    before = len(steps(layout))
    bad = append_command(layout, "set", {"key": "storage.keep_last", "value": 1})
    good = append_command(layout, "set", {"key": "storage.checkpoint_interval", "value": 77})
    saved = append_command(layout, "checkpoint")
    assert not answer_to(layout, bad).ok
    assert answer_to(layout, good).ok
    assert answer_to(layout, saved).ok
    assert (layout.checkpoints / "count").read_text() == str(before)
    assert len(steps(layout)) == before
    assert answer_to(layout, append_command(layout, "resume")).ok
    wait_for_steps(layout, before + 3)
    texts = [e.text for e in events(layout) if isinstance(e, LogLine)]
    assert texts == ["storage.checkpoint_interval is 77"]
    finish = append_command(layout, "finish")
    assert process.wait(LIMIT) == ExitCode.OK
    assert answer_to(layout, finish).ok
    assert ended(layout).state == "finished"
    states = [e.state for e in events(layout) if isinstance(e, StateChanged)]
    assert states == ["paused", "running"]
    assert sum(isinstance(e, ConfigChanged) for e in events(layout)) == 1


def test_suspend_and_resume_with_the_changed_value(layout: RunLayout, start_toy: Start) -> None:
    process = start_toy()
    wait_for_steps(layout)
    append_command(layout, "set", {"key": "storage.checkpoint_interval", "value": 55})
    suspend = append_command(layout, "suspend")
    assert process.wait(LIMIT) == ExitCode.SUSPENDED
    assert answer_to(layout, suspend).ok
    assert run_state(layout) == "suspended"
    assert read_lock(layout) is None
    done = steps(layout)
    stale = append_command(layout, "abort")
    time.sleep(0.05)  # the system tells a process's start to 10 ms
    assert start_toy(TOY_STEPS=str(done[-1] + 2)).wait(LIMIT) == ExitCode.OK
    assert steps(layout) == [*done, done[-1] + 1, done[-1] + 2]
    assert not answer_to(layout, stale).ok
    starts = [e.resumed for e in events(layout) if isinstance(e, RunStarted)]
    assert starts == [False, True]
    assert load_manifest(layout).config["storage"]["checkpoint_interval"] == 55  # type: ignore[index, call-overload]


def test_abort_by_command(layout: RunLayout, start_toy: Start) -> None:
    process = start_toy()
    wait_for_steps(layout)
    command = append_command(layout, "abort")
    assert process.wait(LIMIT) == ExitCode.RUN_FAILED
    assert answer_to(layout, command).ok
    assert ended(layout).state == "aborted"
    assert not (layout.checkpoints / "count").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_suspends(layout: RunLayout, start_toy: Start, number: signal.Signals) -> None:
    process = start_toy()
    wait_for_steps(layout)
    process.send_signal(number)
    assert process.wait(LIMIT) == ExitCode.SUSPENDED
    assert ended(layout).reason == f"suspended by {number.name}"
    assert (layout.checkpoints / "count").read_text() == str(steps(layout)[-1])


def test_a_second_signal_aborts(layout: RunLayout, start_toy: Start) -> None:
    process = start_toy()
    wait_for_steps(layout)
    assert answer_to(layout, append_command(layout, "pause")).ok
    os.kill(process.pid, signal.SIGSTOP)  # both signals arrive before the next look
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(LIMIT) == ExitCode.INTERRUPTED
    assert ended(layout).state == "aborted"
    assert not (layout.checkpoints / "count").exists()


def test_a_hangup_is_ignored(layout: RunLayout, start_toy: Start) -> None:
    process = start_toy()
    wait_for_steps(layout)
    process.send_signal(signal.SIGHUP)
    wait_for_steps(layout, len(steps(layout)) + 5)
    assert process.poll() is None
    assert supervisor.stop(layout)
    assert supervisor.wait(layout, process, LIMIT)
    assert ended(layout).state == "suspended"


def test_a_signal_at_birth_is_not_lost(layout: RunLayout, start_toy: Start) -> None:
    process = start_toy()
    wait_for(layout.lock.exists, "the lock")
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == ExitCode.SUSPENDED
    assert ended(layout).state == "suspended"


def test_kill_nine_then_resume(layout: RunLayout, start_toy: Start) -> None:
    for _ in range(3):
        process = start_toy()
        before = len(steps(layout))
        wait_for_steps(layout, before + 3)
        process.kill()
        process.wait(LIMIT)
        assert run_state(layout) == "crashed"
        assert supervisor.adopt(layout) is None
    assert start_toy(TOY_STEPS="4").wait(LIMIT) == ExitCode.OK
    log = list(read_events(layout.events))
    assert [s.seq for s in log] == list(range(len(log)))
    assert summarise(layout).state == "finished"


def test_a_second_engine_is_refused_and_harms_nothing(layout: RunLayout, start_toy: Start) -> None:
    first = start_toy()
    wait_for_steps(layout)
    second = start_toy()
    assert second.wait(LIMIT) == ExitCode.RUN_FAILED
    assert f"pid {first.pid}" in layout.console_log.read_text()
    assert "Traceback" not in layout.console_log.read_text()
    with pytest.raises(RunError, match=f"pid {first.pid}"):
        supervisor.start_worker(layout)
    wait_for_steps(layout, len(steps(layout)) + 3)
    assert supervisor.stop(layout, abort=True)
    first.wait(LIMIT)
    assert sum(isinstance(e, RunStarted) for e in events(layout)) == 1


def test_the_supervisor_starts_follows_and_stops(
    layout: RunLayout, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "WORKER_MODULE", "toy_engine")
    assert supervisor.adopt(layout) is None
    assert not supervisor.stop(layout)
    process = supervisor.start_worker(layout, env=environment)
    try:
        assert os.getsid(process.pid) == process.pid
        count = 0
        for stamped in supervisor.follow(layout, process):
            count += isinstance(stamped.event, StepDone)
            if count == 3:
                engine = supervisor.adopt(layout)
                assert engine is not None
                assert engine.pid == process.pid
                supervisor.stop(layout)
                count += 1000
        assert ended(layout).state == "suspended"
        assert process.returncode == ExitCode.SUSPENDED
    finally:
        process.kill()
        process.wait()
    tail = EventTail(layout.events)
    tail.skip_to_end()
    again = supervisor.start_worker(layout, env=environment | {"TOY_STEPS": "0"})
    told = [s.event for s in supervisor.follow(layout, again, tail=tail)]
    assert isinstance(told[0], RunStarted)
    assert told[0].resumed
    assert isinstance(told[-1], RunEnded)
    assert supervisor.wait(layout, timeout_s=LIMIT)


def test_a_run_directory_that_is_none(layout: RunLayout, start_toy: Start) -> None:
    layout.manifest.unlink()
    assert start_toy().wait(LIMIT) == ExitCode.RUN_FAILED
    assert any("no manifest.json" in line for line in supervisor.console_tail(layout))
    assert not layout.events.exists()
    assert read_lock(layout) is None


def test_a_disk_that_fills_up_suspends_the_run(
    small_disk: Path, config: RunConfig, start_toy: Start
) -> None:
    made = create_run_dir(small_disk, "smoke", 1)
    save_manifest(made, new_manifest(made, config, {}))
    process = start_toy(made)
    wait_for_steps(made)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096))
    assert process.wait(LIMIT) == ExitCode.PREFLIGHT
    assert ended(made).state == "suspended"
    assert "the disk is full" in ended(made).reason
    assert "Traceback" not in made.console_log.read_text()
    assert run_state(made) == "suspended"
    assert read_lock(made) is None
    ballast.unlink()
    assert start_toy(made, TOY_STEPS="5").wait(LIMIT) == ExitCode.OK
    assert ended(made).state == "finished"
