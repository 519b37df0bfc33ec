"""Checkpoints: whole or not there, checked when read, the last few and the best one kept.

One checkpoint is a folder such as ``000012-base-step-000100``; the leading number only rises, so
the newest is the last by name. It holds one safetensors file a group of tensors, ``state.json``,
and ``COMPLETE`` with the size and SHA-256 of each file. All is written to ``.tmp-...``, synced, and
renamed, so that a crash at any moment leaves the earlier checkpoints as they were.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from agentforge.errors import CheckpointError
from agentforge.events import Checkpointed
from agentforge.run.atomic import DiskFullError, disk_error, sync_folder, write_atomic
from agentforge.run.layout import RunLayout
from agentforge.run.tensor_file import (
    LoadedModel,
    SavedFile,
    Tensors,
    content_problem,
    file_sha256,
    load_model,
    require_shapes,
    save_model,
    tensor_bytes,
)

FORMAT = 1
COMPLETE = "COMPLETE"
STATE = "state.json"
BEST = "best.json"
TEMPORARY = ".tmp-"
OVERHEAD_BYTES = 1 << 16
"""Headers, state and folders of a checkpoint, besides its tensors."""
_NAME = re.compile(r"(\d{6,})-.+-step-\d{6,}")

__all__ = [
    "CheckpointInfo",
    "CheckpointStore",
    "Loaded",
    "LoadedModel",
    "SavedFile",
    "Search",
    "Skipped",
    "load_model",
    "require_shapes",
    "save_model",
]


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A complete checkpoint.

    Attributes:
        path: Its folder.
        number: Rises with every checkpoint of a run.
        phase: Phase it was made in.
        stage: Part of the phase, such as ``base``.
        step: Steps done in that stage.
        files: What is in it, by file name.
        wall_s: Seconds the saving took; 0 for one found on disk.
    """

    path: Path
    number: int
    phase: str
    stage: str
    step: int
    files: dict[str, SavedFile]
    wall_s: float = 0.0

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(file.bytes for file in self.files.values())

    def event(self, layout: RunLayout) -> Checkpointed:
        """The event that tells of it."""
        return Checkpointed(
            phase=self.phase,
            stage=self.stage,
            step=self.step,
            path=layout.relative(self.path),
            bytes=self.bytes,
            wall_s=self.wall_s,
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of a checkpoint; tensors are on the CPU, tuples of the state are lists."""

    groups: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A folder that looked like a checkpoint and was not usable."""

    path: Path
    problem: str


@dataclass(frozen=True, slots=True)
class Search:
    """The newest checkpoint that verifies, and what was wrong with newer ones."""

    info: CheckpointInfo | None
    skipped: tuple[Skipped, ...]


class CheckpointStore:
    """The checkpoints of one run; used by its engine only.

    Args:
        folder: ``RunLayout.checkpoints``.
        keep_last: How many are kept besides the best one.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last {keep_last}: at least one checkpoint must be kept")
        self._folder = folder
        self._keep_last = keep_last

    def save(
        self,
        *,
        phase: str,
        stage: str,
        step: int,
        groups: Mapping[str, Tensors],
        state: Mapping[str, JsonValue],
    ) -> CheckpointInfo:
        """Write a checkpoint, then remove those that are no longer kept.

        Args:
            phase: The phase.
            stage: Part of the phase, such as ``base``.
            step: Steps done in that stage.
            groups: File name (without ending) -> tensors, such as ``model`` and ``optimizer``.
                Tensors may share memory and be views.
            state: Everything else, as JSON. Numbers come back exactly, NaN and infinities too;
                tuples come back as lists and the keys of tables as text.

        Raises:
            DiskFullError: Less than twice its size is free, even without the old ones.
            PreflightError: The folder cannot be written.
        """
        begin = time.monotonic()
        self._remove_leftovers()
        self._make_room(sum(map(tensor_bytes, groups.values())) + OVERHEAD_BYTES)
        number = max((n for n, _ in self._numbered()), default=0) + 1
        label = re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-") or "stage"
        path = self._folder / f"{number:06d}-{label}-step-{step:06d}"
        temporary = self._folder / f"{TEMPORARY}{path.name}"
        try:
            temporary.mkdir(parents=True)
            files: dict[str, SavedFile] = {}
            for group, tensors in groups.items():
                name = f"{group}.safetensors"
                files[name] = save_model(temporary / name, tensors, {})
            text = json.dumps(state, ensure_ascii=False)
            write_atomic(temporary / STATE, text)
            files[STATE] = _saved(temporary / STATE)
            head = {"format": FORMAT, "number": number, "phase": phase, "stage": stage}
            rows = {n: {"bytes": f.bytes, "sha256": f.sha256} for n, f in files.items()}
            complete = {**head, "step": step, "files": rows}
            write_atomic(temporary / COMPLETE, json.dumps(complete, indent=1))
            temporary.rename(path)
            sync_folder(self._folder)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError):
                raise disk_error(error, path) from None
            raise
        files = {name: SavedFile(path / name, f.bytes, f.sha256) for name, f in files.items()}
        self.prune()
        return CheckpointInfo(
            path, number, phase, stage, step, files, wall_s=time.monotonic() - begin
        )

    def complete(self) -> list[CheckpointInfo]:
        """Checkpoints whose ``COMPLETE`` can be read, oldest first; contents are not verified."""
        found = []
        for _, path in self._numbered():
            with contextlib.suppress(CheckpointError):
                found.append(read_info(path))
        return found

    def newest_valid(self) -> Search:
        """The newest checkpoint whose every file has the size and hash it was written with."""
        skipped = []
        for _, path in reversed(self._numbered()):
            try:
                info = read_info(path)
                verify(info)
            except CheckpointError as error:
                skipped.append(Skipped(path, error.message))
                continue
            return Search(info, tuple(skipped))
        return Search(None, tuple(skipped))

    def load(self, info: CheckpointInfo) -> Loaded:
        """Read a checkpoint; every file is checked against its hash.

        Raises:
            CheckpointError: A file is missing, truncated, altered or unreadable.
        """
        groups = {}
        for name, file in info.files.items():
            if name.endswith(".safetensors"):
                tensors = load_model(file.path, expected=file).tensors
                groups[name.removesuffix(".safetensors")] = tensors
        verify_file(info.files[STATE])
        state = json.loads(info.files[STATE].path.read_bytes())
        return Loaded(groups, state)

    def mark_best(self, info: CheckpointInfo) -> None:
        """Keep this one whatever its age, instead of the one marked before.

        Raises:
            PreflightError: The folder cannot be written.
        """
        write_atomic(self._folder / BEST, json.dumps({"checkpoint": info.path.name}))

    def best(self) -> CheckpointInfo | None:
        """The checkpoint marked as best; None when there is none."""
        path = self._best_path()
        if path is None:
            return None
        try:
            return read_info(path)
        except CheckpointError:
            return None

    def prune(self, keep_last: int | None = None) -> int:
        """Remove old checkpoints; the best one and the last few stay.

        Args:
            keep_last: How many stay; None: as the store was made. At least one always stays.

        Returns:
            How many were removed.
        """
        keep = max(1, self._keep_last if keep_last is None else keep_last)
        best = self._best_path()
        old = [path for _, path in self._numbered()[:-keep] if path != best]
        for path in old:
            self._remove(path)
        return len(old)

    def _make_room(self, needed: int) -> None:
        """Keep twice the size of a checkpoint free: for it, and for the artefact after it."""
        kept = self._keep_last
        while (free := _free_bytes(self._folder)) < 2 * needed:
            if kept <= 1:
                raise DiskFullError(
                    f"{self._folder}: {free:,} bytes are free, a checkpoint needs {2 * needed:,} "
                    "(twice its size)",
                    remedy="free some space (agentforge-tui clean --dry-run lists what can go), "
                    "then continue with --resume",
                )
            kept -= 1
            self.prune(kept)

    def _numbered(self) -> list[tuple[int, Path]]:
        """Folders with a checkpoint's name, oldest first."""
        if not self._folder.is_dir():
            return []
        found = []
        for path in self._folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[1]), path))
        return sorted(found)

    def _best_path(self) -> Path | None:
        try:
            name = json.loads((self._folder / BEST).read_bytes())["checkpoint"]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        path = self._folder / str(name)
        return path if _NAME.fullmatch(path.name) and path.is_dir() else None

    def _remove(self, path: Path) -> None:
        # Under its own name a half-removed checkpoint would be reported as damaged.
        trash = path.with_name(f"{TEMPORARY}{path.name}")
        with contextlib.suppress(OSError):
            path.rename(trash)
            shutil.rmtree(trash)

    def _remove_leftovers(self) -> None:
        for path in self._folder.glob(f"{TEMPORARY}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def read_info(path: Path) -> CheckpointInfo:
    """Read a checkpoint's ``COMPLETE``; the files it names are not looked at.

    Raises:
        CheckpointError: It is missing, unreadable or of a newer format.
    """
    try:
        row = json.loads((path / COMPLETE).read_bytes())
        if row["format"] > FORMAT:
            raise CheckpointError(
                f"{path} has format {row['format']}; this program reads up to {FORMAT}",
                remedy="resume with the newer agentforge-tui that wrote it",
            )
        files = {
            str(name): SavedFile(path / str(name), int(file["bytes"]), str(file["sha256"]))
            for name, file in row["files"].items()
        }
        if STATE not in files or any(Path(name).name != name for name in files):
            raise KeyError(STATE)
        return CheckpointInfo(
            path, int(row["number"]), str(row["phase"]), str(row["stage"]), int(row["step"]), files
        )
    except FileNotFoundError:
        problem = "it has no COMPLETE, so it was not finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"its COMPLETE cannot be read ({type(error).__name__}: {error})"
    raise CheckpointError(f"{path}: {problem}", remedy=REMEDY)


def verify(info: CheckpointInfo) -> None:
    """Compare every file of a checkpoint with what was written.

    Raises:
        CheckpointError: Names the first file that is missing, truncated or altered.
    """
    for file in info.files.values():
        verify_file(file)


def verify_file(file: SavedFile) -> None:
    """Compare one file with what was written.

    Raises:
        CheckpointError: It is missing, truncated or altered.
    """
    try:
        size = file.path.stat().st_size
        digest = file_sha256(file.path) if size == file.bytes else None
    except FileNotFoundError:
        raise CheckpointError(f"{file.path} is missing", remedy=REMEDY) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {file.path}: {error}", remedy=REMEDY) from None
    problem = content_problem(file.path, size, digest, file)
    if problem:
        raise CheckpointError(problem, remedy=REMEDY)


REMEDY = "resume takes the newest intact checkpoint by itself; this one can be deleted"


def _saved(path: Path) -> SavedFile:
    return SavedFile(path, path.stat().st_size, file_sha256(path))


def _free_bytes(folder: Path) -> int:
    existing = folder if folder.exists() else folder.parent
    return shutil.disk_usage(existing).free
