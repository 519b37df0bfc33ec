"""What state a run is in and how far it is: derived from its directory, never stored."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentforge.errors import RunError
from agentforge.events import (
    ActionTaken,
    Alert,
    Event,
    GateChecked,
    GenerationDone,
    PhaseEnded,
    PhaseStarted,
    Progress,
    RunEnded,
    RunStarted,
    RunState,
    StageStarted,
    Stamped,
    StateChanged,
    StepDone,
)
from agentforge.run.layout import RunLayout, created_at, run_dirs
from agentforge.run.lock import STALE_AFTER_S, heartbeat_age, read_lock
from agentforge.run.manifest import load_manifest
from agentforge.run.process import is_alive
from agentforge.run.tail import EventTail, read_events

DerivedState = Literal[
    "created",
    "running",
    "paused",
    "suspended",
    "finished",
    "failed",
    "aborted",
    "crashed",
    "stalled",
]
RESUMABLE: frozenset[DerivedState] = frozenset(
    {"created", "suspended", "failed", "aborted", "crashed"}
)
"""States from which a new engine may go on."""

RARE_KINDS = (
    "run_started",
    "run_ended",
    "state_changed",
    "phase_started",
    "phase_ended",
    "stage_started",
    "gate_checked",
    "alert",
    "action_taken",
)
RECENT_BYTES = 1 << 18
"""How much of the log's end is read for the newest step and progress."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run in a list.

    Attributes:
        run_id: Its name.
        preset: What it was started with.
        state: Derived from lock, heartbeat and events.
        reason: Why it ended, for people; empty while it runs.
        phase: The phase it is, or was last, in.
        stage: Part of that phase.
        model: The model that part works on.
        step: Steps done in that part.
        steps: Steps it has.
        eta_s: Seconds left in the phase; None when unknown.
        loss: Loss of the last step; None before the first.
        gates_met: Gates met so far.
        gates_missed: Gates missed so far.
        gates_not_in_run: Gates the preset declares it does not show.
        alerts_open: Alerts that wait for an answer.
        warnings: Warnings and errors that need none.
        created: Seconds since the epoch.
        updated: Time of the last event, in seconds since the epoch; `created` without one.
        path: The run directory.
    """

    run_id: str
    preset: str
    state: DerivedState
    reason: str
    phase: str
    stage: str
    model: str
    step: int
    steps: int
    eta_s: float | None
    loss: float | None
    gates_met: int
    gates_missed: int
    gates_not_in_run: int
    alerts_open: int
    warnings: int
    created: float
    updated: float
    path: Path


@dataclass(frozen=True, slots=True)
class Vital:
    """The signs a state is derived from.

    Attributes:
        told: The last state the events tell; None when no engine ever started.
        lock_held: ``lock.json`` exists.
        alive: Its process lives; None when that cannot be known (another machine).
        heartbeat_s: Age of the heartbeat in seconds; None without one.
    """

    told: RunState | None
    lock_held: bool
    alive: bool | None
    heartbeat_s: float | None


def derive_state(signs: Vital) -> DerivedState:
    """The state of a run from its signs; a pure function."""
    if signs.told in ("finished", "failed", "aborted", "suspended"):
        return signs.told
    fresh = signs.heartbeat_s is not None and signs.heartbeat_s < STALE_AFTER_S
    if not signs.lock_held or signs.alive is False:
        return "created" if signs.told is None else "crashed"
    if not fresh:
        return "stalled"
    return "paused" if signs.told == "paused" else "running"


class RunFold:
    """What the events of a run add up to; the same for a live and a finished run."""

    def __init__(self) -> None:
        self.told: RunState | None = None
        self.preset = ""
        self.reason = ""
        self.phase = self.stage = self.model = ""
        self.step = self.steps = 0
        self.eta_s: float | None = None
        self.loss: float | None = None
        self.updated = 0.0
        self.gates: dict[str, str] = {}
        self.waiting: set[str] = set()
        self.warnings: set[str] = set()

    def add(self, stamped: Stamped) -> None:
        """Take the next event."""
        self.updated = max(self.updated, stamped.t)
        event = stamped.event
        if isinstance(event, RunStarted):
            self.told, self.preset, self.reason = "running", event.preset, ""
        elif isinstance(event, RunEnded):
            self.told, self.reason, self.eta_s = event.state, event.reason, None
            self.waiting.clear()
        elif isinstance(event, StateChanged):
            self.told = event.state
        else:
            self._add_detail(event)

    def _add_detail(self, event: Event) -> None:
        if isinstance(event, PhaseStarted | PhaseEnded):
            self.phase = event.phase
        elif isinstance(event, StageStarted | StepDone) and "." in event.phase:
            return  # a control that trains beside the run's own models
        elif isinstance(event, StageStarted):
            self.phase, self.stage, self.model = event.phase, event.stage, event.model
            self.step, self.steps = 0, event.steps
        elif isinstance(event, StepDone):
            self.model, self.step, self.steps = event.model, event.step, event.steps
            self.loss = event.loss
        elif isinstance(event, GenerationDone):
            self.step, self.steps = event.generation, event.generations
        elif isinstance(event, Progress):
            self.eta_s = event.eta_s if event.eta_s is not None and event.eta_s >= 0 else None
        elif isinstance(event, GateChecked):
            self.gates[event.name] = event.status
        elif isinstance(event, Alert):
            if event.actions:
                self.waiting.add(event.id)
            elif event.level != "info":
                self.warnings.add(event.id)
        elif isinstance(event, ActionTaken):
            self.waiting.discard(event.alert_id)
            self.warnings.discard(event.alert_id)


def vital_signs(layout: RunLayout, told: RunState | None) -> Vital:
    """Look at the lock, its process and the heartbeat."""
    holder = read_lock(layout)
    alive = is_alive(holder) if holder is not None else False
    return Vital(told, holder is not None, alive, heartbeat_age(layout))


def run_state(layout: RunLayout) -> DerivedState:
    """The state of a run now."""
    told: RunState | None = None
    for stamped in read_events(layout.events, ("run_started", "run_ended", "state_changed")):
        event = stamped.event
        if isinstance(event, RunStarted):
            told = "running"
        elif isinstance(event, RunEnded | StateChanged):
            told = event.state
    return derive_state(vital_signs(layout, told))


def summarise(layout: RunLayout) -> RunSummary:
    """How far a run is; reads the rare events of the whole log and the steps of its end."""
    fold = RunFold()
    rare = list(read_events(layout.events, RARE_KINDS))
    recent = EventTail(layout.events).read_last(RECENT_BYTES)
    steps = [s for s in recent if isinstance(s.event, StepDone | GenerationDone | Progress)]
    for stamped in sorted([*rare, *steps], key=lambda s: s.seq):
        fold.add(stamped)
    if recent:
        fold.updated = max(fold.updated, recent[-1].t)
    created = created_at(layout)
    if not fold.preset:
        try:
            fold.preset = str(load_manifest(layout).config.get("preset", ""))
        except RunError:
            fold.preset = "?"
    statuses = list(fold.gates.values())
    return RunSummary(
        run_id=layout.run_id,
        preset=fold.preset,
        state=derive_state(vital_signs(layout, fold.told)),
        reason=fold.reason,
        phase=fold.phase,
        stage=fold.stage,
        model=fold.model,
        step=fold.step,
        steps=fold.steps,
        eta_s=fold.eta_s,
        loss=fold.loss,
        gates_met=statuses.count("met"),
        gates_missed=statuses.count("missed"),
        gates_not_in_run=statuses.count("not_in_run"),
        alerts_open=len(fold.waiting),
        warnings=len(fold.warnings),
        created=created,
        updated=fold.updated or created or time.time(),
        path=layout.root,
    )


def list_runs(runs_root: Path) -> list[RunSummary]:
    """All runs below a folder, the newest first."""
    runs = [summarise(layout) for layout in run_dirs(runs_root)]
    return sorted(runs, key=lambda run: (run.created, run.run_id), reverse=True)
