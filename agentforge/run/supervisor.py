"""Starting, following and stopping the engine of a run from another process; no torch in here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from agentforge.errors import RunError
from agentforge.events import Stamped
from agentforge.run.atomic import disk_error
from agentforge.run.layout import RunLayout
from agentforge.run.lock import read_lock
from agentforge.run.process import ProcessId, is_alive
from agentforge.run.tail import EventTail

WORKER_MODULE = "agentforge.run.worker"
POLL_S = 0.1


SPIN_COUNT = "2000"
"""How long OpenMP threads spin before they sleep, unless the environment says otherwise. By default
they spin for milliseconds: two threads on a busy machine then wait for each other (up to 60 times
slower than one), while a short spin costs nothing on an idle machine."""


def start_worker(
    layout: RunLayout, *, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the engine of a run in a session of its own.

    It outlives the terminal and this process; its output goes to ``console.log``.

    Args:
        layout: The run; its manifest must exist.
        env: The engine's environment; default: this process's.

    Raises:
        RunError: An engine already runs there; names its pid and host.
        PreflightError: ``console.log`` cannot be written.
    """
    running = adopt(layout)
    if running is not None:
        raise RunError(
            f"an engine (pid {running.pid} on {running.host}) already runs in {layout.root}",
            remedy="watch it with agentforge-tui status, or suspend it first",
        )
    try:
        log = layout.console_log.open("ab")
    except OSError as error:
        raise disk_error(error, layout.console_log) from None
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", WORKER_MODULE, str(layout.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"GOMP_SPINCOUNT": SPIN_COUNT, **(os.environ if env is None else env)},
            start_new_session=True,
        )


def adopt(layout: RunLayout) -> ProcessId | None:
    """The engine that now runs in a run directory, whoever started it; None when there is none."""
    holder = read_lock(layout)
    return holder if holder is not None and is_alive(holder) else None


def stop(layout: RunLayout, *, abort: bool = False) -> bool:
    """Ask the running engine to suspend (or to abort) by signal; does not wait.

    Args:
        layout: The run.
        abort: Send a second signal at once: leave without a checkpoint.

    Returns:
        False when no engine runs on this machine.
    """
    engine = adopt(layout)
    if engine is None:
        return False
    for _ in range(2 if abort else 1):
        try:
            os.kill(engine.pid, signal.SIGTERM)
        except ProcessLookupError:
            return False
        if abort:
            time.sleep(0.05)  # two equal signals that wait together are delivered as one
    return True


def wait(
    layout: RunLayout,
    process: subprocess.Popen[bytes] | None = None,
    timeout_s: float | None = None,
) -> bool:
    """Wait until no engine runs there any more.

    Args:
        layout: The run.
        process: The engine when this process started it; else it is looked up.
        timeout_s: Seconds to wait at most; None: no limit.

    Returns:
        False when the time was up first.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while not _is_over(layout, process):
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def follow(
    layout: RunLayout,
    process: subprocess.Popen[bytes] | None = None,
    *,
    tail: EventTail | None = None,
) -> Iterator[Stamped]:
    """The events of a run as they come, until its engine has ended.

    Args:
        layout: The run.
        process: The engine when this process started it; else it is looked up.
        tail: Where to read on. For a resumed run make one before `start_worker` and call its
            `EventTail.skip_to_end`; by default the log is told from its beginning.
    """
    tail = tail or EventTail(layout.events)
    return tail.follow(lambda: _is_over(layout, process), POLL_S)


def console_tail(layout: RunLayout, n_lines: int = 20) -> list[str]:
    """The last lines of ``console.log``: why an engine died before it could say so."""
    try:
        size = layout.console_log.stat().st_size
        with Path(layout.console_log).open("rb") as file:
            file.seek(max(0, size - 200 * n_lines))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()[-n_lines:]


def _is_over(layout: RunLayout, process: subprocess.Popen[bytes] | None) -> bool:
    if process is not None:
        return process.poll() is not None
    return adopt(layout) is None
