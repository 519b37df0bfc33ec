"""Two ranks under torchrun give the champion that one engine gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from agentforge.errors import ExitCode
from agentforge.run.layout import run_dirs
from tests.phases.evomerge_family import write_family
from tests.phases.smoke_runs import console, events, finish, hashes, new_run

SETS = ("evomerge.generations=2", "evomerge.control_steps=0")


def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    family = write_family(tmp_path / "family")
    alone = new_run(tmp_path, *family, *SETS, until="evomerge")
    assert finish(alone) == ExitCode.OK, console(alone)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("--no-python", str(Path(sys.executable).with_name("agentforge-tui"))),
        *("--batch", "--preset", "smoke", "--run-dir", str(tmp_path / "ranks")),
    ]
    for change in (*family, *SETS):
        command += ["--set", change]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == ExitCode.OK, done.stderr[-3000:]
    (layout,) = run_dirs(tmp_path / "ranks")
    assert hashes(layout) == hashes(alone)
    assert not [e for e in events(layout, "alert") if getattr(e, "code", "") == "worker"]
