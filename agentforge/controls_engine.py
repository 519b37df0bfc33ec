"""The process of the controls: ``python -m agentforge.controls_engine FOLDER PARENT``.

Before anything heavy is imported it asks the kernel to end it with its parent (Linux), so that a
killed run leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path


def die_with_parent(parent: int) -> None:
    """End this process when its parent ends, or at once when that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def main() -> int:
    """Train the controls; the exit code is that of an engine."""
    die_with_parent(int(sys.argv[2]))
    from agentforge.phases.cognate.side import train_controls
    from agentforge.run.layout import RunLayout
    from agentforge.run.worker import run_engine

    return run_engine(RunLayout(Path(sys.argv[1]).absolute()), train_controls)


if __name__ == "__main__":
    sys.exit(main())
