"""kill -9 at any moment of a run, then resume: the same weights, at most one interval lost."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from agentforge.errors import ExitCode
from agentforge.events import RunEnded
from agentforge.run.manifest import load_manifest
from tests.phases.smoke_runs import console, events, finish, hashes, kill_after, lost_steps, new_run

TRIALS = int(os.environ.get("AGENTFORGE_KILL_TRIALS", "3"))
INTERVAL = 5
"""storage.checkpoint_interval of the preset."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    layout = new_run(tmp_path_factory.mktemp("undisturbed"))
    assert finish(layout) == ExitCode.OK, console(layout)
    return hashes(layout)


def test_run_makes_every_model(undisturbed: dict[str, str]) -> None:
    assert set(undisturbed) == {
        "cognate.base",
        "cognate.reasoning",
        "cognate.memory",
        "cognate.speed",
        "cognate.memory_off",
    }
    assert len(set(undisturbed.values())) == 5


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_runs_end_with_the_same_weights(
    trial: int, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """Kills are placed by log lines, about 130 in a whole run, so that all stages are hit.

    The first trial trains the control in a second engine: the weights are the same.
    """
    rng = random.Random(trial)
    first = 5 + (trial * 120) // max(1, TRIALS) + rng.randrange(40 // max(1, TRIALS) + 6)
    beside = "on" if trial == 0 else "off"
    layout = new_run(tmp_path, f"cognate.side_process='{beside}'")
    killed = [kill_after(layout, first), kill_after(layout, rng.randrange(1, 40))]
    code = finish(layout) if load_manifest(layout).state != "finished" else ExitCode.OK
    assert killed[0], "the run was done before the first kill"
    assert code == ExitCode.OK, console(layout)
    assert hashes(layout) == undisturbed
    assert lost_steps(layout) <= INTERVAL


def test_sigterm_suspends_and_resume_goes_on(undisturbed: dict[str, str], tmp_path: Path) -> None:
    layout = new_run(tmp_path)
    assert kill_after(layout, 30, signal.SIGTERM)
    ended = events(layout, "run_ended")[-1]
    assert isinstance(ended, RunEnded)
    assert (ended.state, ended.exit_code) == ("suspended", ExitCode.SUSPENDED)
    assert finish(layout) == ExitCode.OK
    assert hashes(layout) == undisturbed
    assert lost_steps(layout) == 0
