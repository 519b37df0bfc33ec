"""A second engine beside the run's own: it trains controls on the other half of the cores.

Controls need nothing of the models they are compared with, so they train while those do. Two
processes of one thread are about twice as fast as one of two threads at demo scale. The second
engine works in a folder of the run that is a run directory like any other: it has its own log,
checkpoints and lock, and resumes bit for bit. This process starts, pauses and stops it, passes its
events on, and takes over its models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from agentforge.errors import ExitCode, RunSuspended
from agentforge.events import (
    ActionTaken,
    Alert,
    ArtifactSaved,
    CurriculumStage,
    EvalDone,
    LogLine,
    StageEnded,
    StageStarted,
    StepDone,
)
from agentforge.phases.resources import as_before
from agentforge.run.context import RunContext
from agentforge.run.layout import RunLayout, prepare_run_dir
from agentforge.run.manifest import (
    Artifact,
    Resolved,
    load_manifest,
    new_manifest,
    save_manifest,
)
from agentforge.run.supervisor import adopt, console_tail
from agentforge.run.tail import EventTail

COMMAND = (sys.executable, "-m", "agentforge.controls_engine")
PASSED_ON = (StageStarted, StageEnded, StepDone, EvalDone, CurriculumStage)
TOLD_ON = (Alert, ActionTaken, LogLine)
"""Events of the controls that belong into the run's own log."""
STOP_S = 300.0
"""How long a stopped engine may take to its next step and checkpoint (25M on one thread: 110 s)."""


class SideRun:
    """A second engine that trains controls, as the run's own engine sees it.

    Args:
        context: The run.
        folder: Folder of the second engine within the run's.
        phase: Phase of the artefacts it makes, which is what the engine trains; its events are
            passed on as ``phase.controls``.
        given: What it must know, noted in its manifest.
    """

    def __init__(
        self,
        context: RunContext,
        folder: str,
        phase: str,
        given: Mapping[str, Resolved],
    ) -> None:
        self._context = context
        self._phase = phase
        self.layout = RunLayout(context.layout.root / folder)
        _end_leftover(self.layout)
        config = context.config.model_copy(
            update={
                "resources": as_before(context),
                "logging": context.config.logging.model_copy(update={"wandb": "off"}),
            }
        )
        if self.layout.manifest.exists():
            manifest = load_manifest(self.layout)
            manifest.config = config.model_dump(mode="json")
        else:
            prepare_run_dir(self.layout.root)
            manifest = new_manifest(self.layout, config, {})
            manifest.resolved.update(given)
        save_manifest(self.layout, manifest)
        self._tail = EventTail(self.layout.events)
        self._tail.skip_to_end()
        with self.layout.console_log.open("ab") as log:
            self._process = subprocess.Popen(
                [*COMMAND, str(self.layout.root), str(os.getpid()), phase],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        context.control.followers.append(self.layout)

    def pass_on(self) -> None:
        """Put new events of the controls into the run's log."""
        for stamped in self._tail.poll():
            event = stamped.event
            if isinstance(event, PASSED_ON):
                self._context.emit(dataclasses.replace(event, phase=f"{self._phase}.controls"))
            elif isinstance(event, TOLD_ON):
                self._context.emit(event)

    def wait(self, go_on: Callable[[], bool]) -> None:
        """Until all controls are trained, or somebody asks to finish.

        Args:
            go_on: Asked while waiting; False leaves, an exception too.

        Raises:
            RunSuspended: That engine had to suspend (disk, memory, an alert told to stop).
        """
        while self._process.poll() is None:
            if not go_on():
                return
            self.pass_on()
            time.sleep(0.05)
        self.pass_on()
        code = self._process.returncode
        if code in (ExitCode.SUSPENDED, ExitCode.PREFLIGHT):
            raise RunSuspended("the controls had to suspend; the log says why")
        if code != ExitCode.OK:
            tail = "\n".join(console_tail(self.layout))
            self._context.emit(
                Alert(
                    id=f"{self._phase}-controls-ended",
                    level="warning",
                    code="controls",
                    title="The second engine ended; its controls train in this one",
                    detail=f"exit code {code}",
                    cause=tail,
                )
            )

    def take_over(self) -> None:
        """Note the controls that are finished as the run's own artefacts."""
        context = self._context
        for artifact in load_manifest(self.layout).artifacts.values():
            path = f"{self.layout.root.name}/{artifact.path}"
            if context.manifest.artifacts.get(artifact.name) is not None:
                continue
            context.manifest.artifacts[artifact.name] = Artifact(
                name=artifact.name,
                phase=self._phase,
                path=path,
                bytes=artifact.bytes,
                sha256=artifact.sha256,
            )
            context.emit(
                ArtifactSaved(
                    phase=self._phase,
                    name=artifact.name,
                    path=path,
                    bytes=artifact.bytes,
                    sha256=artifact.sha256,
                )
            )
        context.save_manifest()

    def stop(self) -> None:
        """Let the engine write a checkpoint and leave; kill it when it does not."""
        with contextlib.suppress(ValueError):
            self._context.control.followers.remove(self.layout)
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.pass_on()


def _end_leftover(layout: RunLayout) -> None:
    """Kill an engine of the controls whose parent was killed before it could notice."""
    holder = adopt(layout) if layout.manifest.exists() else None
    if holder is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder.pid, signal.SIGKILL)
    deadline = time.monotonic() + STOP_S
    while adopt(layout) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
