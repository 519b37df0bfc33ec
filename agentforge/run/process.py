"""Who a process is: a pid alone is not enough, because the system gives it out again."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that can be told from a later one with the same pid.

    Attributes:
        pid: Its number.
        started: Its start in the system's own unit (clock ticks since boot on Linux); compared
            for equality only.
        host: The machine's name.
        boot_id: Changes with every boot of the machine.
    """

    pid: int
    started: str
    host: str
    boot_id: str


def this_process() -> ProcessId:
    """The process that calls this."""
    pid = os.getpid()
    return ProcessId(pid, start_mark(pid) or "", socket.gethostname(), boot_id())


def is_alive(who: ProcessId) -> bool | None:
    """True while that very process lives, False when it is gone, None when it cannot be known.

    A zombie is gone: it holds nothing any more. A process of another machine is unknown.
    """
    if who.host != socket.gethostname():
        return None
    if who.boot_id != boot_id():
        return False
    return start_mark(who.pid) == who.started


def start_mark(pid: int) -> str | None:
    """When `pid` was started, in the system's own unit; None when it is gone or a zombie."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
        return None if fields[0] in ("Z", "X", "x") else fields[19]
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{process.create_time():.3f}"
    except psutil.Error:
        return None


def boot_id() -> str:
    """What tells this boot of the machine from the one before."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    import psutil

    return f"{psutil.boot_time():.0f}"


def started_at() -> float:
    """When this process was started, in seconds since the epoch; up to 10 ms early, never late."""
    if sys.platform == "linux":
        mark = start_mark(os.getpid())
        if mark is not None:
            ticks = int(mark) / os.sysconf("SC_CLK_TCK")
            # Not psutil's create_time: that rests on the boot time in whole seconds.
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks
            return time.time() - age
    import psutil

    return psutil.Process().create_time()
