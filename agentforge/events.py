"""Every event a run can emit: the contract between the engine and everything that watches it.

Events are frozen dataclasses. On disk an event is one JSON object a line,
``{"v": 1, "seq": 12, "t": 1763990000.1, "kind": "step_done", ...fields}``; `encode` and
`decode` are the only codec. Every number in an event was measured in that run. Fields named
``*_s`` are seconds of wall clock and the only ones that differ between two runs of one seed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

SCHEMA_VERSION = 1

Level = Literal["info", "warning", "error"]
RunState = Literal["running", "paused", "suspended", "finished", "failed", "aborted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events; `kind` on disk is the class name in snake case."""

    durable: ClassVar[bool] = False
    """True: the writer fsyncs after it (state changes, not steps)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """The engine has taken the run directory; also written when a run is resumed."""

    durable: ClassVar[bool] = True
    run_id: str
    preset: str
    phases: tuple[str, ...]
    seed: int
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The engine leaves the run in this state; `reason` is for people."""

    durable: ClassVar[bool] = True
    state: RunState
    reason: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(Event):
    """The run was paused or goes on."""

    durable: ClassVar[bool] = True
    state: RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseStarted(Event):
    """A phase begins (or begins again after a resume)."""

    durable: ClassVar[bool] = True
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnded(Event):
    """A phase is done; its gates and report are on disk."""

    durable: ClassVar[bool] = True
    phase: str
    gates_met: int
    gates_missed: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted(Event):
    """One part of a phase begins: training a model, an ablation, an evaluation."""

    phase: str
    stage: str
    model: str
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEnded(Event):
    """That part is done."""

    phase: str
    stage: str
    model: str
    steps: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumStage(Event):
    """The data mix changes: a new curriculum stage of one model."""

    phase: str
    model: str
    stage: int
    step: int
    mix: dict[str, float]
    """Share of each dataset or skill in a batch; sums to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """How far a phase is, in its own unit; `eta_s` is -1 until it can be told."""

    phase: str
    done: int
    total: int
    unit: str
    eta_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(Event):
    """One optimiser step of one model."""

    phase: str
    model: str
    step: int
    steps: int
    loss: float
    """Mean task loss in nats per target token."""
    lr: float
    """Learning rate of the hidden matrices after the schedule."""
    grad_norm: float
    tokens: int
    """Non-padding tokens of this step."""
    tokens_per_s: float
    extra: dict[str, float] = field(default_factory=dict)
    """Further metrics under their W&B names, such as ``act/avg_halting_steps``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDone(Event):
    """One generation of the merge search; fitness is relative to the parents' mean of 1."""

    phase: str
    generation: int
    generations: int
    best_fitness: float
    avg_fitness: float
    worst_fitness: float
    fitness_std: float
    champion_fitness: float
    """Best fitness of any member so far."""
    diversity: float
    """Mean pairwise cosine distance of the population's deltas from the base."""
    best_combo: str
    """Three digits: interpolation, task arithmetic, selection."""
    wall_s: float
    extra: dict[str, float] = field(default_factory=dict)
    """Further metrics under their W&B names, such as ``evolution/combo_101_count``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalDone(Event):
    """One measured figure with its provenance."""

    phase: str
    model: str
    name: str
    value: float
    n: int
    """Items (or tokens) it was measured on."""
    split: str
    stderr: float = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDone(Event):
    """A table for reports and W&B: columns and rows of JSON scalars."""

    phase: str
    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | bool | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateChecked(Event):
    """One success metric: met, missed, or not in this run."""

    durable: ClassVar[bool] = True
    name: str
    value: float | None
    op: str
    threshold: float
    n: int
    source: str
    status: Literal["met", "missed", "not_in_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSaved(Event):
    """A file that later phases or people use."""

    durable: ClassVar[bool] = True
    phase: str
    name: str
    path: str
    """Relative to the run directory."""
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed(Event):
    """A complete checkpoint is on disk."""

    durable: ClassVar[bool] = True
    phase: str
    stage: str
    step: int
    path: str
    bytes: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceSample(Event):
    """What the machine is doing; a field the machine does not tell is None."""

    rss_bytes: int
    ram_used_bytes: int
    ram_total_bytes: int
    disk_free_bytes: int
    cpu_percent: float
    vram_model_bytes: int | None = None
    vram_optimizer_bytes: int | None = None
    vram_activations_bytes: int | None = None
    vram_used_bytes: int | None = None
    vram_total_bytes: int | None = None
    gpu_percent: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertAction:
    """One thing that can be done about an alert."""

    key: str
    label: str
    consequence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert(Event):
    """Something needs attention; with actions it is an intervention that waits for an answer."""

    durable: ClassVar[bool] = True
    id: str
    level: Level
    code: str
    title: str
    detail: str
    """Numbers against thresholds."""
    cause: str = ""
    actions: tuple[AlertAction, ...] = ()
    recommended: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionTaken(Event):
    """The answer to an alert: by whom, and what was done."""

    durable: ClassVar[bool] = True
    alert_id: str
    action: str
    by: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlAck(Event):
    """The engine's answer to one control command."""

    durable: ClassVar[bool] = True
    id: str
    verb: str
    ok: bool
    step: int
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChanged(Event):
    """A tunable value was changed in the running phase."""

    durable: ClassVar[bool] = True
    key: str
    old: str
    new: str
    by: str
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine(Event):
    """A sentence for the log pane."""

    level: Level
    source: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Event):
    """The engine lives; written every two seconds by its own thread."""

    pid: int


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


KINDS: dict[str, type[Event]] = {_snake(c.__name__): c for c in Event.__subclasses__()}
_KIND_OF = {c: k for k, c in KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamped:
    """An event with its place in the run: sequence number and time (seconds since the epoch)."""

    seq: int
    t: float
    event: Event


def encode(stamped: Stamped) -> str:
    """The JSON line (without newline) of an event; NaN and infinities become null."""
    event = stamped.event
    row: dict[str, Any] = {
        "v": SCHEMA_VERSION,
        "seq": stamped.seq,
        "t": round(stamped.t, 3),
        "kind": _KIND_OF[type(event)],
    }
    for f in dataclasses.fields(event):
        row[f.name] = _plain(getattr(event, f.name))
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def decode(line: str) -> Stamped | None:
    """Read one line back.

    Returns None for a torn line, an unknown kind or a newer version: a reader of a live run must
    survive all three.
    """
    try:
        row = json.loads(line)
        cls = KINDS[row["kind"]]
        if row["v"] > SCHEMA_VERSION:
            return None
        values = {f.name: row[f.name] for f in dataclasses.fields(cls) if f.name in row}
        for f in dataclasses.fields(cls):
            if isinstance(values.get(f.name), list):
                values[f.name] = tuple(
                    tuple(v) if isinstance(v, list) else v for v in values[f.name]
                )
        if cls is Alert:
            values["actions"] = tuple(AlertAction(**a) for a in values.get("actions", ()))
        if cls is EvalDone:
            for name in ("value", "stderr"):
                if values.get(name) is None:
                    values[name] = float("nan")
        return Stamped(seq=int(row["seq"]), t=float(row["t"]), event=cls(**values))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    """JSON-ready copy of a field."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value
