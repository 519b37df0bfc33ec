"""Where each file of a run lives, how a run directory is made, and how a run is found again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentforge.errors import RunError
from agentforge.run.atomic import disk_error

LATEST = "latest"
SHOWN_RUNS = 8
"""How many runs an error message names."""


@dataclass(frozen=True, slots=True)
class RunLayout:
    """The files of one run directory.

    The engine writes all of them but ``control.jsonl``, which everyone may append to.

    Attributes:
        root: The run directory; its name is the run's id.
    """

    root: Path

    @property
    def run_id(self) -> str:
        """Name of the directory."""
        return self.root.name

    @property
    def manifest(self) -> Path:
        """What was run: config, versions, hardware, phase states, artefacts."""
        return self.root / "manifest.json"

    @property
    def events(self) -> Path:
        """First file of the event log; later ones are ``events-0001.jsonl`` and so on."""
        return self.root / "events.jsonl"

    @property
    def control(self) -> Path:
        """Commands to the engine, one JSON object a line."""
        return self.root / "control.jsonl"

    @property
    def lock(self) -> Path:
        """Who runs the engine; there only while it runs, or after a crash."""
        return self.root / "lock.json"

    @property
    def lock_guard(self) -> Path:
        """The file that carries the operating system's lock."""
        return self.root / ".lock"

    @property
    def heartbeat(self) -> Path:
        """Empty file whose modification time is the engine's last sign of life."""
        return self.root / ".heartbeat"

    @property
    def console_log(self) -> Path:
        """Raw stdout and stderr of the engine."""
        return self.root / "console.log"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def packed_model(self) -> Path:
        """The model directory that Phase 4 writes."""
        return self.artifacts / "bitnet" / "model"

    @property
    def artifacts(self) -> Path:
        """Folder of the models and tables a phase leaves."""
        return self.root / "artifacts"

    @property
    def reports(self) -> Path:
        """Folder of reports for people and programs."""
        return self.root / "reports"

    @property
    def exports(self) -> Path:
        """Folder of what a person exported by hand."""
        return self.root / "exports"

    def relative(self, path: Path) -> str:
        """`path` as events and the manifest name it: relative to the run directory."""
        return path.relative_to(self.root).as_posix()


def create_run_dir(runs_root: Path, preset: str, seed: int) -> RunLayout:
    """Make a new run directory below `runs_root`, such as ``2026-11-24-0153-demo-ab12``.

    The name holds local time and the preset; its last part keeps runs of one minute apart.

    Raises:
        PreflightError: The folder cannot be made or written.
    """
    name = re.sub(r"[^a-z0-9]+", "-", preset.lower()).strip("-")[:24] or "custom"
    minute = time.strftime("%Y-%m-%d-%H%M")
    while True:
        salt = f"{preset} {seed} {os.getpid()} {time.time_ns()}"
        suffix = hashlib.sha256(salt.encode()).hexdigest()[:4]
        layout = RunLayout(Path(os.path.abspath(runs_root)) / f"{minute}-{name}-{suffix}")
        try:
            layout.root.parent.mkdir(parents=True, exist_ok=True)
            layout.root.mkdir()
        except FileExistsError as error:
            if layout.root.exists():
                continue
            raise disk_error(error, layout.root.parent) from None  # the parent is a file
        except OSError as error:
            raise disk_error(error, layout.root) from None
        return prepare_run_dir(layout.root)


def prepare_run_dir(root: Path) -> RunLayout:
    """Make `root` usable as a run directory: its folders exist and it can be written.

    Raises:
        PreflightError: It cannot be made or written.
    """
    layout = RunLayout(Path(os.path.abspath(root)))
    try:
        for folder in (layout.checkpoints, layout.artifacts, layout.reports, layout.exports):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, layout.root) from None
    check_writable(layout.root)
    return layout


def check_writable(folder: Path) -> None:
    """Write, sync and remove a small file in `folder`.

    Permission bits are not enough: a file system may be mounted read-only or be full.

    Raises:
        PreflightError: The folder cannot be written; names the folder and the reason.
    """
    try:
        handle, probe = tempfile.mkstemp(prefix=".probe-", dir=folder)
    except OSError as error:
        raise disk_error(error, folder) from None
    try:
        os.write(handle, b"\0" * 4096)
        os.fsync(handle)
    except OSError as error:
        raise disk_error(error, folder) from None
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            os.unlink(probe)


def find_run(runs_root: Path, which: str) -> RunLayout:
    """The run that a user named.

    Args:
        runs_root: Folder of runs.
        which: ``latest`` (the run created last), a run id, a part of it that only one run has, or
            the path of a run directory.

    Raises:
        RunError: No such run, or several; names the runs that exist.
    """
    runs = list(run_dirs(runs_root))
    if which == LATEST:
        if not runs:
            raise RunError(
                f"no runs in {runs_root}",
                remedy="start one with agentforge-tui --batch, or name its folder's path",
            )
        return max(runs, key=lambda run: (created_at(run), run.run_id))
    for run in runs:
        if run.run_id == which:
            return run
    path = Path(which)
    if which and path.is_dir():
        layout = RunLayout(Path(os.path.abspath(path)))
        if is_run_dir(layout.root):
            return layout
        raise RunError(
            f"{path} is not a run directory: it has no manifest.json",
            remedy=_existing(runs_root, runs),
        )
    alike = [run for run in runs if which and which in run.run_id]
    if len(alike) == 1:
        return alike[0]
    what = f"{which!r} names {len(alike)} runs" if alike else f"no run {which!r} in {runs_root}"
    raise RunError(what, remedy=_existing(runs_root, alike or runs))


def model_folder(model: str, runs_root: Path) -> Path:
    """The directory of a model that a user named.

    Args:
        model: The directory itself, or a run as `find_run` takes it: then what its Phase 4 packed.
        runs_root: Folder of runs.

    Raises:
        RunError: It names no directory and no run, or the run has no packed model.
    """
    path = Path(model).expanduser()
    if path.is_dir() and not is_run_dir(path):
        return path
    try:
        layout = find_run(runs_root, model)
    except RunError as error:
        raise RunError(
            f"{model} is neither a model directory nor a run: {error.message}",
            remedy=error.remedy,
        ) from None
    packed = layout.packed_model
    if not packed.is_dir():
        raise RunError(
            f"run {layout.run_id} has no packed model: {packed} is missing",
            remedy="let its bitnet phase finish, or name a model directory",
        )
    return packed


def run_dirs(runs_root: Path) -> Iterator[RunLayout]:
    """The run directories directly below `runs_root`, by name."""
    if runs_root.is_dir():
        for path in sorted(runs_root.iterdir()):
            if is_run_dir(path):
                yield RunLayout(Path(os.path.abspath(path)))


def is_run_dir(path: Path) -> bool:
    """True for a folder that an engine has, or is about to, run in."""
    return (path / "manifest.json").is_file() or (path / "events.jsonl").is_file()


def created_at(layout: RunLayout) -> float:
    """When the run was created, in seconds since the epoch; 0 when nothing tells."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return float(json.loads(layout.manifest.read_bytes())["created"])
    with contextlib.suppress(OSError):
        return layout.root.stat().st_mtime
    return 0.0


def _existing(runs_root: Path, runs: list[RunLayout]) -> str:
    if not runs:
        return f"there are no runs in {runs_root}; start one with agentforge-tui --batch"
    newest = sorted(runs, key=created_at, reverse=True)
    names = ", ".join(run.run_id for run in newest[:SHOWN_RUNS])
    more = f" and {len(newest) - SHOWN_RUNS} more" if len(newest) > SHOWN_RUNS else ""
    return f"runs in {runs_root}: {names}{more}"
