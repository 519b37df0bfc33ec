"""``--batch``: start (or resume) a run, show its progress, give its result and exit code.

The engine is another process; this one follows its events. Ctrl-C (or SIGTERM) once asks the
engine to suspend: it writes a checkpoint, and the run can be resumed. A second one aborts it, a
third kills the engine. When this process is killed the engine goes on; ``status`` shows it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from agentforge.config.load import Loaded, load_config
from agentforge.config.resume import resumed_config
from agentforge.errors import ConfigError, ExitCode, RunError
from agentforge.events import RunEnded
from agentforge.gates import missed
from agentforge.hardware import summarise
from agentforge.preflight import check_run, require
from agentforge.report import build_report
from agentforge.result import result_json, result_text
from agentforge.run.commands import append_command
from agentforge.run.layout import RunLayout, create_run_dir, find_run
from agentforge.run.manifest import load_manifest, manifest_config, new_manifest, save_manifest
from agentforge.run.storage import directory_bytes
from agentforge.run.supervisor import console_tail, start_worker
from agentforge.run.tail import EventTail
from agentforge.sinks.progress import ProgressSink, make_progress

POLL_S = 0.1
LOG_LINES = 12


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What the command line asks for.

    Attributes:
        runs_root: Folder of runs.
        preset: ``--preset``.
        config_file: ``--config``.
        sets: ``--set`` texts in order.
        flags: Dotted key -> (flag, value) of flags that stand for one key.
        resume: Run to go on with, or None for a new one.
        as_json: Print the report as JSON.
        max_minutes: Suspend after so many; None: never.
        dry_run: Print the plan and start nothing.
    """

    runs_root: Path
    preset: str | None = None
    config_file: Path | None = None
    sets: tuple[str, ...] = ()
    flags: tuple[tuple[str, str, object], ...] = ()
    resume: str | None = None
    as_json: bool = False
    max_minutes: float | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a batch run ended: what to print on standard output, and the exit code."""

    text: str
    code: ExitCode


def run_batch(request: BatchRequest) -> Outcome:
    """Do what the command line asks.

    Under torchrun every rank comes here; all but the first only measure for the first one's engine.

    Raises:
        ConfigError: A key, value or flag that is not allowed.
        PreflightError: The machine lacks something; nothing was started.
        RunError: The run to resume is not there, or is live already.
    """
    if int(os.environ.get("RANK", "0")) > 0 and not request.dry_run:
        from agentforge.phases.evomerge.ranks import serve_rank

        return Outcome("", ExitCode(serve_rank()))
    if request.resume is not None:
        return _resume(request)
    loaded = load_config(
        preset=request.preset,
        file=request.config_file,
        sets=request.sets,
        flags={key: (flag, value) for key, flag, value in request.flags},
    )
    if request.dry_run:
        return _dry_run(request, loaded)
    require(check_run(loaded.config, request.runs_root))
    layout = create_run_dir(request.runs_root, loaded.config.preset, loaded.config.seed)
    hardware = summarise(with_torch=False).row()
    manifest = new_manifest(layout, loaded.config, loaded.provenance, hardware=hardware)
    save_manifest(layout, manifest)
    return _follow(layout, request)


def _resume(request: BatchRequest) -> Outcome:
    """Go on with a run under its own configuration."""
    if request.preset is not None or request.config_file is not None:
        flag = "--preset" if request.preset is not None else "--config"
        raise ConfigError(
            f"{flag} with --resume: a resumed run keeps its configuration",
            remedy="leave it out; --set changes what may change in a running phase",
        )
    layout = find_run(request.runs_root, request.resume or "latest")
    manifest = load_manifest(layout)
    saved = Loaded(manifest_config(layout, manifest), dict(manifest.provenance))
    loaded = resumed_config(saved, request.sets, request.flags)
    if request.dry_run:
        return _dry_run(request, loaded)
    if manifest.state == "finished":
        code = ExitCode.GATE_MISSED if missed(build_report(layout).gates) else ExitCode.OK
        return _result(layout, request, "finished", "nothing was left to do", code)
    require(check_run(loaded.config, layout.root, bytes_written=directory_bytes(layout.root)))
    if loaded != saved:
        manifest.config = loaded.config.model_dump(mode="json")
        manifest.provenance = dict(loaded.provenance)
        save_manifest(layout, manifest)
    return _follow(layout, request)


def _dry_run(request: BatchRequest, loaded: Loaded) -> Outcome:
    from agentforge.plan import build_plan, plan_json, plan_text

    plan = build_plan(loaded, request.runs_root)
    text = json.dumps(plan_json(plan), indent=1) if request.as_json else plan_text(plan)
    return Outcome(text, ExitCode.OK if plan.ready else ExitCode.PREFLIGHT)


def _follow(layout: RunLayout, request: BatchRequest) -> Outcome:
    """Start the engine and stay with it to its end."""
    tail = EventTail(layout.events)
    tail.skip_to_end()
    worker = start_worker(layout)
    progress = make_progress(sys.stderr)
    try:
        with _stop_keys(layout, progress, worker.kill) as stops:
            ended = _watch(layout, tail, worker, progress, request.max_minutes)
    finally:
        progress.close()
    if ended is None:
        died = _died(layout, worker.returncode)
        if stops.count:
            died.exit_code = ExitCode.INTERRUPTED
        raise died
    code = ExitCode.INTERRUPTED if stops.count > 1 else _exit_code(ended.exit_code)
    if ended.state == "suspended":
        progress.note(f"suspended; go on with: {resume_command(layout)}")
    return _result(layout, request, ended.state, ended.reason, code)


def _watch(
    layout: RunLayout,
    tail: EventTail,
    worker: subprocess.Popen[bytes],
    progress: ProgressSink,
    max_minutes: float | None,
) -> RunEnded | None:
    """Show events until the engine is gone; its last word, or None when it said none."""
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    ended: RunEnded | None = None
    while True:
        running = worker.poll() is None  # asked before reading, so that the last events are read
        for stamped in tail.poll():
            progress.show(stamped)
            if isinstance(stamped.event, RunEnded):
                ended = stamped.event
        if not running:
            return ended
        if deadline is not None and time.monotonic() >= deadline:
            deadline = None
            progress.note(f"--max-minutes {max_minutes:g} is over: suspending at the next step")
            append_command(layout, "suspend", by="--max-minutes")
        time.sleep(POLL_S)


@dataclass(slots=True)
class _Stops:
    """How often the user asked to stop."""

    count: int = 0


@contextmanager
def _stop_keys(
    layout: RunLayout, progress: ProgressSink, kill: Callable[[], object]
) -> Iterator[_Stops]:
    """Ctrl-C and SIGTERM: suspend, then abort, then kill."""
    stops = _Stops()

    def stop(number: int, frame: FrameType | None) -> None:
        stops.count += 1
        if stops.count == 1:
            append_command(layout, "suspend", by="batch")
            progress.note("suspending: a checkpoint is written at the next step (again: abort)")
        elif stops.count == 2:
            append_command(layout, "abort", by="batch")
            progress.note("aborting: nothing more is written (again: kill the engine)")
        else:
            kill()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _result(
    layout: RunLayout, request: BatchRequest, state: str, reason: str, code: ExitCode
) -> Outcome:
    """The final table or JSON, and the exit code."""
    report = build_report(layout)
    if request.as_json:
        return Outcome(result_json(report, state, reason, code), code)
    return Outcome(result_text(layout, report, state, reason), code)


def _died(layout: RunLayout, returncode: int) -> RunError:
    """The engine is gone and has not said why."""
    how = f"by signal {-returncode}" if returncode < 0 else f"with code {returncode}"
    lines = console_tail(layout, LOG_LINES)
    said = ":\n  " + "\n  ".join(lines) if lines else ""
    error = RunError(
        f"the engine of run {layout.run_id} ended {how} without a word{said}",
        remedy=f"see {layout.console_log}; go on from the last checkpoint with: "
        f"{resume_command(layout)}",
    )
    if returncode in (ExitCode.USAGE, ExitCode.PREFLIGHT):
        error.exit_code = ExitCode(returncode)
    return error


def resume_command(layout: RunLayout) -> str:
    """What to type to go on with a run."""
    root = layout.root.parent
    where = "" if root == Path("runs").absolute() else f" --run-dir {root}"
    return f"agentforge-tui --batch --resume {layout.run_id}{where}"


def _exit_code(number: int) -> ExitCode:
    try:
        return ExitCode(number)
    except ValueError:
        return ExitCode.RUN_FAILED
