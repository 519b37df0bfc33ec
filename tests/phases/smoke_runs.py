"""Runs of the `smoke` preset for tests: start an engine, kill it, resume it, compare its result."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from agentforge.config.load import load_config
from agentforge.events import Event, StepDone
from agentforge.run.layout import RunLayout, create_run_dir
from agentforge.run.manifest import load_manifest, new_manifest, save_manifest
from agentforge.run.supervisor import start_worker
from agentforge.run.tail import read_events


def new_run(root: Path, *sets: str, until: str = "cognate") -> RunLayout:
    """A run directory of `smoke` that no engine has touched."""
    root.mkdir(parents=True, exist_ok=True)
    loaded = load_config(preset="smoke", sets=[f"until={until}", *sets])
    layout = create_run_dir(root, "smoke", loaded.config.seed)
    save_manifest(layout, new_manifest(layout, loaded.config, loaded.provenance))
    return layout


def finish(layout: RunLayout, timeout_s: float = 120) -> int:
    """Let an engine work to the end; its exit code."""
    return start_worker(layout).wait(timeout=timeout_s)


def kill_after(layout: RunLayout, log_lines: int, how: signal.Signals = signal.SIGKILL) -> bool:
    """Start an engine and signal it once its log has grown by so many lines.

    Returns:
        False when it was done before that.
    """
    before = _lines(layout)
    worker = start_worker(layout)
    while worker.poll() is None:
        if _lines(layout) - before >= log_lines:
            worker.send_signal(how)
            worker.wait(timeout=60)
            return True
        time.sleep(0.005)
    return False


def _lines(layout: RunLayout) -> int:
    return layout.events.read_bytes().count(b"\n") if layout.events.exists() else 0


def hashes(layout: RunLayout) -> dict[str, str]:
    """SHA-256 of every artefact of a run."""
    return {name: a.sha256 for name, a in load_manifest(layout).artifacts.items()}


def events(layout: RunLayout, *kinds: str) -> list[Event]:
    """Events of some kinds, in order."""
    return [s.event for s in read_events(layout.events, kinds)]


def lost_steps(layout: RunLayout) -> int:
    """Most steps that were taken twice because an engine was killed."""
    furthest: dict[str, int] = {}
    lost = 0
    for event in events(layout, "step_done"):
        assert isinstance(event, StepDone)
        lost = max(lost, furthest.get(event.model, 0) - event.step + 1)
        furthest[event.model] = max(furthest.get(event.model, 0), event.step)
    return lost


def console(layout: RunLayout) -> str:
    """What the engines printed."""
    return layout.console_log.read_text() if layout.console_log.exists() else ""


def wait_for(layout: RunLayout, kind: str, count: int, model: str = "") -> None:
    """Until a live engine has told of so many events of a kind (of one model)."""
    deadline = time.monotonic() + 90
    while True:
        found = [e for e in events(layout, kind) if not model or getattr(e, "model", "") == model]
        if len(found) >= count:
            return
        assert time.monotonic() < deadline, console(layout)
        time.sleep(0.02)
