"""``clean``: which old runs may go, and removing them.

Kept are finished runs for 30 days, failed, crashed and aborted ones for 7, and 100 runs in all. A
live run never goes. A suspended one waits for its owner: age does not remove it, only the limit of
100 does, after everything else.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentforge.run.storage import directory_bytes

DAY_S = 86_400.0
FINISHED_DAYS = 30.0
FAILED_DAYS = 7.0
MOST_RUNS = 100

LIVE = frozenset({"running", "paused", "stalled"})
FINISHED = frozenset({"finished"})
FAILED = frozenset({"failed", "crashed", "aborted", "created"})


@dataclass(frozen=True, slots=True)
class OldRun:
    """A run as far as cleaning is concerned.

    Attributes:
        run_id: Name of its directory.
        path: The directory.
        status: Derived state, such as ``finished`` or ``crashed``.
        last_sign: When it last wrote anything, in seconds since the epoch.
    """

    run_id: str
    path: Path
    status: str
    last_sign: float


@dataclass(frozen=True, slots=True)
class Removal:
    """A run that may go, and why."""

    run: OldRun
    reason: str
    bytes: int


def choose(runs: Sequence[OldRun], now: float) -> list[Removal]:
    """The runs that may go, oldest first.

    Args:
        runs: All runs of a folder.
        now: Seconds since the epoch.
    """
    reasons: dict[str, str] = {}
    for run in runs:
        days = (now - run.last_sign) / DAY_S
        if run.status in FINISHED and days > FINISHED_DAYS:
            reasons[run.run_id] = f"finished {days:.0f} days ago (kept {FINISHED_DAYS:.0f})"
        elif run.status in FAILED and days > FAILED_DAYS:
            reasons[run.run_id] = f"{run.status} {days:.0f} days ago (kept {FAILED_DAYS:.0f})"
    left = [r for r in runs if r.run_id not in reasons]
    removable = [r for r in left if r.status not in LIVE]
    # Ended runs go before suspended ones, which can still be resumed.
    removable.sort(key=lambda r: (r.status not in FINISHED | FAILED, r.last_sign))
    for run in removable[: max(0, len(left) - MOST_RUNS)]:
        reasons[run.run_id] = f"{len(runs)} runs, {MOST_RUNS} are kept"
    chosen = sorted((r for r in runs if r.run_id in reasons), key=lambda r: r.last_sign)
    return [Removal(run, reasons[run.run_id], directory_bytes(run.path)) for run in chosen]


def remove(removals: Sequence[Removal]) -> list[tuple[Removal, str]]:
    """Delete the directories.

    Returns:
        Those that could not be removed, with the reason.
    """
    failed = []
    for removal in removals:
        try:
            shutil.rmtree(removal.run.path)
        except OSError as error:
            failed.append((removal, error.strerror or str(error)))
    return failed
