"""The process of a phase's controls: ``python -m agentforge.controls_engine FOLDER PARENT PHASE``.

Before anything heavy is imported it asks the kernel to end it with its parent (Linux), so that a
killed run leaves nothing behind.
"""

from __future__ import annotations

import sys
from pathlib import Path

from agentforge.run.orphan import die_with_parent


def main() -> int:
    """Train the controls; the exit code is that of an engine."""
    folder, parent, phase = sys.argv[1:]
    die_with_parent(int(parent))
    from agentforge.phases.cognate.side import train_controls
    from agentforge.phases.quietstar.side import train_further
    from agentforge.run.layout import RunLayout
    from agentforge.run.worker import run_engine

    pipeline = {"cognate": train_controls, "quietstar": train_further}[phase]
    return run_engine(RunLayout(Path(folder).absolute()), pipeline)


if __name__ == "__main__":
    sys.exit(main())
