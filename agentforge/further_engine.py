"""The process of Phase 3's control: ``python -m agentforge.further_engine FOLDER PARENT``.

Before anything heavy is imported it asks the kernel to end it with its parent (Linux), so that a
killed run leaves nothing behind.
"""

from __future__ import annotations

import sys
from pathlib import Path

from agentforge.run.orphan import die_with_parent


def main() -> int:
    """Bake on; the exit code is that of an engine."""
    die_with_parent(int(sys.argv[2]))
    from agentforge.phases.quietstar.side import train_further
    from agentforge.run.layout import RunLayout
    from agentforge.run.worker import run_engine

    return run_engine(RunLayout(Path(sys.argv[1]).absolute()), train_further)


if __name__ == "__main__":
    sys.exit(main())
