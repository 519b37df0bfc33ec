"""What a phase gets: configuration, files, a way to tell, and a way to listen. Nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from agentforge.config.schema import RunConfig
from agentforge.events import Event
from agentforge.run.control import Control
from agentforge.run.layout import RunLayout
from agentforge.run.manifest import Manifest, save_manifest

Emit = Callable[[Event], None]
"""Takes one event; raises only `DiskFullError`, when the log itself cannot be written."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """The engine's side of one run.

    Attributes:
        layout: Files of the run directory.
        manifest: Changed in place; `save_manifest` writes it.
        emit: Tells everyone who watches.
        control: Commands from users; polled at every step boundary.
        resumed: True when an engine has worked on this run before.
    """

    layout: RunLayout
    manifest: Manifest
    emit: Emit
    control: Control
    resumed: bool

    @property
    def config(self) -> RunConfig:
        """The configuration now in force, changes by ``set`` included."""
        return self.control.config

    def save_manifest(self) -> None:
        """Write the manifest as it is now.

        Raises:
            PreflightError: The disk refuses.
        """
        save_manifest(self.layout, self.manifest)

    def phase_hours(self, phase: str) -> float:
        """Clock hours of a phase so far, over all resumes."""
        record = self.manifest.phases[phase]
        return (record.wall_s + max(0.0, time.time() - record.started)) / 3600
