"""Looks at the disk while a run trains: prune, then suspend, before it is full."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Literal

from agentforge.config.schema import StorageConfig


def look_at_disk(folder: Path, storage: StorageConfig) -> Literal["ok", "prune", "suspend"]:
    """What the free space of a folder's disk asks for.

    Args:
        folder: Where the run writes.
        storage: Thresholds in 10^9 bytes (documented: 2 GB prunes, 0.5 GB stops).
    """
    free = shutil.disk_usage(folder).free / 1e9
    if free < storage.suspend_below_gb:
        return "suspend"
    return "prune" if free < storage.prune_below_gb else "ok"


def directory_bytes(path: Path) -> int:
    """Bytes of all files below a folder; links are not followed."""
    total = 0
    for here, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(here, name)).st_size
    return total
