"""One engine a run directory, and a sign of life every two seconds.

Two things say who has it: the operating system's lock on ``.lock``, which ends with the process
whatever kills it, and ``lock.json``, which tells everyone else who that is. Where the file system
has no locks, ``lock.json`` alone decides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType

from agentforge.errors import AgentForgeError, RunError
from agentforge.events import Event, Heartbeat
from agentforge.run.atomic import disk_error, write_atomic
from agentforge.run.layout import RunLayout
from agentforge.run.process import ProcessId, is_alive, this_process

HEARTBEAT_S = 2.0
STALE_AFTER_S = 15.0
"""A heartbeat older than this is no sign of life any more."""

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class RunLock:
    """The right to be this run's engine; a context manager.

    Args:
        layout: The run to take.

    Raises:
        RunError: Another engine has it; names its pid and host.
        PreflightError: The run directory cannot be written.
    """

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout
        self._handle = -1
        try:
            handle = os.open(layout.lock_guard, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise disk_error(error, layout.lock_guard) from None
        try:
            self._take(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        _HELD.add(self)

    def _take(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refused(read_lock(self._layout)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise disk_error(error, self._layout.lock_guard) from None
        me = this_process()
        holder = read_lock(self._layout)
        if holder is not None and holder != me:
            alive = is_alive(holder)
            age = heartbeat_age(self._layout)
            # Of another machine only the heartbeat tells; a shared disk may not carry its lock.
            if alive or (alive is None and age is not None and age < STALE_AFTER_S):
                raise self._refused(holder)
        write_atomic(self._layout.lock, json.dumps(dataclasses.asdict(me)) + "\n")
        touch_heartbeat(self._layout)

    def _refused(self, holder: ProcessId | None) -> RunError:
        who = f"pid {holder.pid} on {holder.host}" if holder else "another process"
        return RunError(
            f"an engine ({who}) already runs in {self._layout.root}",
            remedy="watch it with agentforge-tui status, or suspend it first",
        )

    def release(self) -> None:
        """Give the run back; does nothing the second time."""
        if self._handle < 0:
            return
        for path in (self._layout.lock, self._layout.heartbeat):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        _HELD.discard(self)
        with contextlib.suppress(OSError):
            fcntl.flock(self._handle, fcntl.LOCK_UN)  # a child that was just forked has it open
        os.close(self._handle)
        self._handle = -1

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def forget(self) -> None:
        """In a forked child: let go of the inherited lock, which stays with the parent."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


_HELD: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _forget_all() -> None:
    # A data-loading child that outlives a killed engine would keep the run locked for ever.
    for lock in tuple(_HELD):
        lock.forget()
    _HELD.clear()


os.register_at_fork(after_in_child=_forget_all)


class HeartbeatThread:
    """Emits `Heartbeat` and touches the heartbeat file until it is stopped.

    Args:
        layout: The run.
        emit: Takes the event; its failures are left to the main thread, which meets them too.
        interval_s: Seconds between two beats.
    """

    def __init__(
        self,
        layout: RunLayout,
        emit: Callable[[Event], None],
        *,
        interval_s: float = HEARTBEAT_S,
    ) -> None:
        self._layout = layout
        self._emit = emit
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin; the first beat comes at once."""
        self._thread.start()

    def stop(self) -> None:
        """End; no event is emitted once this has returned."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        pid = os.getpid()
        while not self._stop.is_set():
            touch_heartbeat(self._layout)
            with contextlib.suppress(AgentForgeError, OSError):
                self._emit(Heartbeat(pid=pid))
            self._stop.wait(self._interval_s)


def read_lock(layout: RunLayout) -> ProcessId | None:
    """Who holds, or held when it crashed, the run; None when nobody does."""
    try:
        row = json.loads(layout.lock.read_bytes())
        return ProcessId(
            pid=int(row["pid"]),
            started=str(row["started"]),
            host=str(row["host"]),
            boot_id=str(row["boot_id"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def heartbeat_age(layout: RunLayout) -> float | None:
    """Seconds since the engine's last sign of life; None when there never was one."""
    try:
        return max(0.0, time.time() - layout.heartbeat.stat().st_mtime)
    except OSError:
        return None


def touch_heartbeat(layout: RunLayout) -> None:
    """Leave a sign of life."""
    with contextlib.suppress(OSError):
        layout.heartbeat.touch()
