from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from waiting import wait_for

from agentforge.errors import PreflightError, RunError
from agentforge.events import Event, Heartbeat
from agentforge.run import lock as lock_module
from agentforge.run.layout import RunLayout
from agentforge.run.lock import (
    STALE_AFTER_S,
    HeartbeatThread,
    RunLock,
    heartbeat_age,
    read_lock,
    touch_heartbeat,
)
from agentforge.run.process import ProcessId, is_alive, start_mark, started_at, this_process

HOLDER = """
import sys, time
from pathlib import Path
from agentforge.run.layout import RunLayout
from agentforge.run.lock import RunLock
lock = RunLock(RunLayout(Path(sys.argv[1])))
print("held", flush=True)
time.sleep(60)
"""


FORKING_HOLDER = """
import os, sys, time
from pathlib import Path
from agentforge.run.layout import RunLayout
from agentforge.run.lock import RunLock
lock = RunLock(RunLayout(Path(sys.argv[1])))
if os.fork() == 0:
    print("held", flush=True)
    sys.stdin.read()
    os._exit(0)
time.sleep(60)
"""


def start_holder(layout: RunLayout, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(layout.root)], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def write_lock(layout: RunLayout, **changes: object) -> ProcessId:
    row = dataclasses.asdict(this_process()) | changes
    layout.lock.write_text(json.dumps(row))
    holder = read_lock(layout)
    assert holder is not None
    return holder


def test_a_second_engine_is_refused_and_a_killed_one_replaced(
    layout: RunLayout, environment: dict[str, str]
) -> None:
    holder = start_holder(layout, environment)
    try:
        with pytest.raises(RunError, match=rf"pid {holder.pid} on ") as caught:
            RunLock(layout)
        assert str(layout.root) in caught.value.message
        known = read_lock(layout)
        assert known is not None
        assert is_alive(known) is True
        os.kill(holder.pid, signal.SIGKILL)
        # Before anyone has reaped it, it is a zombie: it holds nothing.
        wait_for(lambda: start_mark(holder.pid) is None, "the zombie")
        assert is_alive(known) is False
        with RunLock(layout) as lock:
            assert read_lock(layout) == this_process()
            with pytest.raises(RunError):
                RunLock(layout)
            lock.release()
        assert read_lock(layout) is None
        assert heartbeat_age(layout) is None
        RunLock(layout).release()
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 2**22 + 7},
        {"started": "1"},
        {"boot_id": "another boot"},
        {"host": "elsewhere"},
    ],
)
def test_a_dead_holders_lock_is_taken_over(layout: RunLayout, changes: dict[str, object]) -> None:
    write_lock(layout, **changes)
    with RunLock(layout):
        assert read_lock(layout) == this_process()


def test_a_live_holder_counts_even_without_the_systems_lock(layout: RunLayout) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        write_lock(layout, pid=child.pid, started=start_mark(child.pid))
        with pytest.raises(RunError, match=f"pid {child.pid}"):
            RunLock(layout)
    finally:
        child.communicate(b"\n")
    RunLock(layout).release()


def test_another_machine_counts_while_its_heart_beats(layout: RunLayout) -> None:
    holder = write_lock(layout, host="elsewhere", boot_id="other", pid=12)
    assert is_alive(holder) is None
    touch_heartbeat(layout)
    with pytest.raises(RunError, match="pid 12 on elsewhere"):
        RunLock(layout)
    past = time.time() - STALE_AFTER_S - 5
    os.utime(layout.heartbeat, (past, past))
    RunLock(layout).release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\0\0"])
def test_a_damaged_lock_file_is_no_lock(layout: RunLayout, text: str) -> None:
    layout.lock.write_text(text)
    assert read_lock(layout) is None
    RunLock(layout).release()


def test_a_child_that_outlives_a_killed_engine_does_not_keep_the_lock(
    layout: RunLayout, environment: dict[str, str]
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", FORKING_HOLDER, str(layout.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == b"held\n"  # said by the child
        with pytest.raises(RunError, match=f"pid {holder.pid}"):
            RunLock(layout)
        holder.kill()
        holder.wait()
        RunLock(layout).release()
    finally:
        holder.kill()
        holder.stdin.close()
        assert holder.stdout.read() == b""  # the child has gone too
        holder.stdout.close()


def test_release_frees_the_lock_whatever_a_child_has_open(layout: RunLayout) -> None:
    lock = RunLock(layout)
    inherited = os.dup(lock._handle)
    lock.release()
    RunLock(layout).release()
    os.close(inherited)


def test_the_childs_end_does_not_free_the_parents_lock(layout: RunLayout) -> None:
    with RunLock(layout):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(RunError):
            RunLock(layout)


def test_a_file_system_without_locks(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(lock_module.fcntl, "flock", unsupported)
    with RunLock(layout):
        assert read_lock(layout) == this_process()


def test_an_unwritable_directory_is_a_preflight_error(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: object, *arguments: int, **options: int) -> int:
        if str(path).endswith(".lock"):
            raise OSError(30, "Read-only file system")
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PreflightError, match="Read-only"):
        RunLock(layout)


def test_the_heart_beats_on_when_events_cannot_be_written(layout: RunLayout) -> None:
    beats: list[Event] = []

    def emit(event: Event) -> None:
        beats.append(event)
        if len(beats) < 3:
            raise PreflightError("the disk is full")

    thread = HeartbeatThread(layout, emit, interval_s=0.005)
    thread.start()
    wait_for(lambda: len(beats) >= 4, "four beats")
    thread.stop()
    count = len(beats)
    assert beats[0] == Heartbeat(pid=os.getpid())
    age = heartbeat_age(layout)
    assert age is not None
    assert age < STALE_AFTER_S
    time.sleep(0.02)
    assert len(beats) == count


def test_a_process_knows_its_start() -> None:
    code = (
        "import time; t = time.time(); "
        "from agentforge.run.process import started_at; print(t - started_at())"
    )
    before = time.time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert -0.05 <= float(done.stdout) <= time.time() - before + 0.05
    assert started_at() < before
