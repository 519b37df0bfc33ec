"""Progress of a batch run on standard error: a live bar on a terminal, plain lines elsewhere.

The plain form is one line at every change of stage, one about every ten seconds in between, and
every alert at once: no escapes, no spinner, so that it reads well in log files and screen readers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

from agentforge.events import (
    ActionTaken,
    Alert,
    ConfigChanged,
    ControlAck,
    Event,
    GenerationDone,
    LogLine,
    PhaseEnded,
    PhaseStarted,
    Progress,
    RunEnded,
    RunStarted,
    StageEnded,
    StageStarted,
    Stamped,
    StateChanged,
    StepDone,
)
from agentforge.tables import duration_text

if TYPE_CHECKING:
    from rich.console import Console

LINE_INTERVAL_S = 10.0


class ProgressSink(Protocol):
    """Shows events as they come."""

    def show(self, stamped: Stamped) -> None:
        """Take one event."""
        ...

    def note(self, text: str) -> None:
        """Say something of our own, such as what Ctrl-C will do."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


def notice(event: Event) -> str | None:
    """The line for an event that is told at once; None for steps, samples and other small ones."""
    match event:
        case RunStarted():
            verb = "resumed" if event.resumed else "started"
            return f"run {event.run_id} {verb}: {', '.join(event.phases)}, seed {event.seed}"
        case PhaseStarted():
            return f"phase {event.phase}"
        case PhaseEnded():
            return (
                f"phase {event.phase} done in {duration_text(event.wall_s)}: gates met "
                f"{event.gates_met}, missed {event.gates_missed}"
            )
        case StageStarted():
            steps = f", {event.steps} steps" if event.steps else ""
            return f"{_place(event.phase, event.stage, event.model)}{steps}"
        case StageEnded() if event.wall_s >= LINE_INTERVAL_S:
            place = _place(event.phase, event.stage, event.model)
            return f"{place} done in {duration_text(event.wall_s)}"
        case Alert():
            return _alert(event)
        case ActionTaken():
            detail = f": {event.detail}" if event.detail else ""
            return f"action {event.action} for {event.alert_id} (by {event.by}){detail}"
        case StateChanged():
            return f"run is {event.state}"
        case ConfigChanged():
            return f"{event.key}: {event.old} -> {event.new} (by {event.by}, step {event.step})"
        case ControlAck():
            outcome = "done" if event.ok else "refused"
            message = f": {event.message}" if event.message else ""
            return f"{event.verb} {outcome}{message}"
        case LogLine():
            prefix = "" if event.level == "info" else f"{event.level}: "
            return f"{prefix}{event.source}: {event.text}"
        case RunEnded():
            return f"run {event.state}: {event.reason}" if event.reason else f"run {event.state}"
        case _:
            return None


def step_line(event: StepDone, progress: Progress | None) -> str:
    """The figures of one step in one line."""
    text = (
        f"{event.phase} {event.model} step {event.step}/{event.steps} "
        f"loss {_figure(event.loss, 3)} lr {event.lr:.2e} {_figure(event.tokens_per_s, 0)} tok/s"
    )
    if progress is not None and progress.phase == event.phase and progress.total > 0:
        text += f", phase {100 * progress.done / progress.total:.0f} %"
        text += _left(progress)
    return text


def generation_line(event: GenerationDone, progress: Progress | None) -> str:
    """The figures of one generation in one line; fitness is relative to the parents' mean."""
    text = (
        f"{event.phase} generation {event.generation}/{event.generations} "
        f"champion {100 * (event.champion_fitness - 1):+.1f} % over the parents' mean, "
        f"population {event.avg_fitness:.3f}, diversity {event.diversity:.3f}, "
        f"combo {event.best_combo}"
    )
    if progress is not None and progress.phase == event.phase:
        text += _left(progress)
    return text


class PlainProgress:
    """Lines of text.

    Args:
        stream: Where they go; usually standard error.
        interval_s: Least seconds between two lines about steps.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        interval_s: float = LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._interval_s = interval_s
        self._clock = clock
        self._last = clock()
        self._progress: Progress | None = None

    def show(self, stamped: Stamped) -> None:
        """Take one event."""
        event = stamped.event
        if isinstance(event, Progress):
            self._progress = event
        if isinstance(event, StepDone):
            if self._clock() - self._last >= self._interval_s:
                self._write(stamped.t, step_line(event, self._progress))
            return
        if isinstance(event, GenerationDone):
            if self._clock() - self._last >= self._interval_s or not event.generation:
                self._write(stamped.t, generation_line(event, self._progress))
            return
        text = notice(event)
        if text is not None:
            self._write(stamped.t, text)

    def note(self, text: str) -> None:
        """Say something of our own."""
        self._write(time.time(), text)

    def close(self) -> None:
        """Nothing to restore."""

    def _write(self, t: float, text: str) -> None:
        self._last = self._clock()
        stamp = time.strftime("%H:%M:%S", time.localtime(t))
        self._stream.write(f"{stamp} {text}\n")
        self._stream.flush()


class LiveProgress:
    """A bar for the running stage, with notices above it; needs a terminal.

    Args:
        console: A rich console on standard error.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = console
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("starting", total=None, figures="")
        self._progress: Progress | None = None
        self._bar.start()

    def show(self, stamped: Stamped) -> None:
        """Take one event."""
        event = stamped.event
        if isinstance(event, Progress):
            self._progress = event
        elif isinstance(event, StageStarted | StepDone) and "." in event.phase:
            return  # a control that trains beside: the bar follows the run's own models
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, GenerationDone):
            self._generation(event)
        elif isinstance(event, StageStarted):
            self._bar.reset(
                self._task,
                total=event.steps or None,
                description=_place(event.phase, event.stage, event.model),
                figures="",
            )
        else:
            text = notice(event)
            if text is not None:
                self.note(text)

    def note(self, text: str) -> None:
        """Say something above the bar."""
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Remove the bar's live display."""
        self._bar.stop()

    def _generation(self, event: GenerationDone) -> None:
        figures = f"champion {100 * (event.champion_fitness - 1):+.1f} %"
        if self._progress is not None:
            figures += _left(self._progress)
        self._bar.update(
            self._task, completed=event.generation, total=event.generations, figures=figures
        )

    def _step(self, event: StepDone) -> None:
        figures = f"loss {_figure(event.loss, 3)} {_figure(event.tokens_per_s, 0)} tok/s"
        if self._progress is not None:
            figures += _left(self._progress)
        self._bar.update(self._task, completed=event.step, total=event.steps, figures=figures)


def make_progress(stream: TextIO) -> ProgressSink:
    """A live display when `stream` is a terminal that can show one, else plain lines."""
    if stream.isatty():
        from rich.console import Console

        console = Console(file=stream)
        if console.is_terminal and not console.is_dumb_terminal:
            return LiveProgress(console)
    return PlainProgress(stream)


def _figure(value: float | None, digits: int) -> str:
    """A number; what was not finite comes out of the log as None."""
    return "nan" if value is None else f"{value:,.{digits}f}"


def _left(progress: Progress) -> str:
    eta: float | None = progress.eta_s
    return f", {duration_text(eta)} left" if eta is not None and eta >= 0 else ""


def _place(phase: str, stage: str, model: str) -> str:
    return " ".join(dict.fromkeys(part for part in (phase, stage, model) if part))


def _alert(event: Alert) -> str:
    text = f"{event.level}: {event.title}: {event.detail}"
    if event.cause:
        text += f" ({event.cause})"
    if event.actions:
        text += f"; recommended: {event.recommended}"
    return text
