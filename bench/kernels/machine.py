"""The machine: which CPUs, at what priority, under what load."""

from __future__ import annotations

import os
import platform
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")
HIGHEST = -20


def raise_priority(session: bool) -> bool:
    """Highest priority for this process, if permitted (root on Linux).

    With the scheduler's autogroups on, ``nice`` only orders the processes of one session; sessions
    have a niceness of their own, and without raising it two threads were stopped for 4 to 8 ms at a
    time. Workers are sessions of their own, so nobody else is raised.

    Args:
        session: Raise the session as well.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, HIGHEST)
        if session and AUTOGROUP.exists():
            AUTOGROUP.write_text(str(HIGHEST), encoding="ascii")
    except (OSError, AttributeError):
        return False
    return True


def worker_environment(threads: int) -> dict[str, str]:
    """Environment of a contestant's process: its OpenMP threads bound to the last CPUs there are.

    The last first, because interrupts are mostly served by the first. numpy's own threads are off.
    """
    cpus = usable_cpus()[::-1][:threads]
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_PLACES": ",".join(f"{{{cpu}}}" for cpu in cpus),
        "OMP_PROC_BIND": "true",
        "OPENBLAS_NUM_THREADS": "1",
    }


def usable_cpus() -> list[int]:
    """CPUs this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(cpu: int) -> None:
    """Keep the calling thread on one CPU, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cpu})


def load() -> float:
    """Processes that ran or wanted to run, averaged over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def cpu_name() -> str:
    """Name of the processor, with family and model where the name says little."""
    wanted = {"model name": "", "cpu family": "", "model": ""}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in wanted and not wanted[key.strip()]:
            wanted[key.strip()] = value.strip()
    name = wanted["model name"] or platform.machine()
    return f"{name} (family {wanted['cpu family']} model {wanted['model']})"
