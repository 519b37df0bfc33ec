"""The manifest: what a run is, in one JSON file that is replaced as a whole."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

import agentforge
from agentforge.config.schema import RunConfig
from agentforge.errors import RunError
from agentforge.events import RunState
from agentforge.run.atomic import write_atomic
from agentforge.run.layout import RunLayout

MANIFEST_VERSION = 1

PhaseStatus = Literal["pending", "running", "done", "failed"]
ManifestState = Literal["created"] | RunState
RECORDED_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "transformers",
    "datasets",
    "tokenizers",
    "safetensors",
    "pydantic",
)


@dataclass(slots=True, kw_only=True)
class PhaseRecord:
    """How far one phase is; times are seconds since the epoch, 0 when not yet."""

    status: PhaseStatus = "pending"
    started: float = 0.0
    ended: float = 0.0
    wall_s: float = 0.0
    """Time spent in it over all resumes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file that later phases or people use."""

    name: str
    phase: str
    path: str
    """Relative to the run directory."""
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """An "auto" value as it was resolved on this machine."""

    value: JsonValue
    reason: str


@dataclass(slots=True, kw_only=True)
class Manifest:
    """What a run is. Changed in place by the engine, written by `save_manifest`."""

    __pydantic_config__ = ConfigDict(extra="ignore", ser_json_inf_nan="constants")

    schema_version: int = MANIFEST_VERSION
    run_id: str
    created: float
    """Seconds since the epoch."""
    agentforge: str
    git_commit: str | None = None
    """Commit of the checkout, with ``-dirty`` for changed files; None for an installed package."""
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, str | int | float | None] = field(default_factory=dict)
    config: dict[str, JsonValue]
    """The whole resolved configuration."""
    provenance: dict[str, str] = field(default_factory=dict)
    """Dotted key -> where its value came from."""
    resolved: dict[str, Resolved] = field(default_factory=dict)
    """Dotted key -> what "auto" became and why."""
    phases: dict[str, PhaseRecord] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    state: ManifestState = "created"


def new_manifest(
    layout: RunLayout,
    config: RunConfig,
    provenance: Mapping[str, str],
    *,
    hardware: Mapping[str, str | int | float | None] | None = None,
) -> Manifest:
    """The manifest of a run that is about to start; not yet written."""
    return Manifest(
        run_id=layout.run_id,
        created=time.time(),
        agentforge=agentforge.__version__,
        git_commit=git_commit(),
        versions=package_versions(),
        hardware=dict(hardware or {}),
        config=config.model_dump(mode="json"),
        provenance=dict(provenance),
        phases={phase: PhaseRecord() for phase in config.phases},
    )


def save_manifest(layout: RunLayout, manifest: Manifest) -> None:
    """Replace ``manifest.json``.

    Raises:
        PreflightError: The disk refuses.
    """
    text = json.dumps(_adapter().dump_python(manifest, mode="json"), indent=1, ensure_ascii=False)
    write_atomic(layout.manifest, text + "\n")


def load_manifest(layout: RunLayout) -> Manifest:
    """Read ``manifest.json``.

    Raises:
        RunError: It is missing, unreadable, or of a newer version.
    """
    path = layout.manifest
    try:
        row = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(
            f"{layout.root} is not a run directory: it has no manifest.json",
            remedy="agentforge-tui status lists the runs",
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}", remedy=_UNREADABLE) from None
    version = row.get("schema_version") if isinstance(row, dict) else None
    if not isinstance(version, int):
        raise RunError(f"{path}: no schema_version, so it is no manifest", remedy=_UNREADABLE)
    if version > MANIFEST_VERSION:
        raise RunError(
            f"{path} has version {version}; this program reads up to {MANIFEST_VERSION}",
            remedy="open it with the newer agentforge-tui that wrote it",
        )
    try:
        return _adapter().validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunError(f"{path}: {where}: {first['msg']}", remedy=_UNREADABLE) from None


def manifest_config(layout: RunLayout, manifest: Manifest) -> RunConfig:
    """The run's configuration, validated by this version's schema.

    Raises:
        RunError: A key or value that this version does not know.
    """
    try:
        return RunConfig.model_validate(manifest.config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunError(
            f"{layout.manifest}: config.{where}: {first['msg']}",
            remedy=f"it was written by agentforge {manifest.agentforge}; use that version, "
            "or start a new run",
        ) from None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers (none is imported)."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the checkout this package runs from; None when it is installed."""
    checkout = Path(agentforge.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


_UNREADABLE = "the file is damaged; start a new run, or restore it from a copy"


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
