"""A run directory, a small file system, and the toy engine as a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentforge.config.load import load_config
from agentforge.config.schema import RunConfig
from agentforge.run.layout import RunLayout, create_run_dir
from agentforge.run.manifest import new_manifest, save_manifest

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]


@pytest.fixture(scope="session")
def config() -> RunConfig:
    return load_config(preset="smoke", env={}).config


@pytest.fixture
def layout(tmp_path: Path, config: RunConfig) -> RunLayout:
    made = create_run_dir(tmp_path / "runs", config.preset, config.seed)
    save_manifest(made, new_manifest(made, config, {}))
    return made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment in which a subprocess finds the package and the toy engine."""
    path = os.pathsep.join([str(CHECKOUT), str(HERE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def start_toy(
    layout: RunLayout, environment: dict[str, str]
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the toy engine in a run directory; what is left at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(where: RunLayout = layout, **extra: str) -> subprocess.Popen[bytes]:
        with where.console_log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "toy_engine", str(where.root)],
                env=environment | extra,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
