"""The engine process: ``python -m agentforge.run.worker RUN_DIR``.

Under torchrun one rank is that engine and the others measure for Phase 2.
It takes the run directory, opens the event log, obeys signals, and runs the pipeline. However that
ends, the log's last event says in which state the run was left. Its own output is ``console.log``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentforge.config.schema import RunConfig
from agentforge.errors import (
    AgentForgeError,
    ExitCode,
    PreflightError,
    RunAborted,
    RunSuspended,
)
from agentforge.events import RunEnded, RunStarted, RunState
from agentforge.run.atomic import DiskFullError
from agentforge.run.context import RunContext
from agentforge.run.control import Control, install_signal_handlers
from agentforge.run.layout import RunLayout
from agentforge.run.lock import HeartbeatThread, RunLock
from agentforge.run.manifest import Manifest, load_manifest, manifest_config, save_manifest
from agentforge.run.tail import read_events
from agentforge.sinks.base import Sink
from agentforge.sinks.jsonl import JsonlSink
from agentforge.sinks.tee import TeeSink

UNEXPECTED = "the engine stopped in the middle of its work\n  -> console.log has the details"

Pipeline = Callable[[RunContext], int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run was left."""

    state: RunState
    reason: str
    exit_code: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the engine; the exit code is the run's (see `ExitCode`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 1:
        _say("usage: python -m agentforge.run.worker RUN_DIR\n")
        return ExitCode.USAGE
    layout = RunLayout(Path(arguments[0]).absolute())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _run_ranks(layout)
    return run_engine(layout, _run_pipeline)


def _run_ranks(layout: RunLayout) -> int:
    """Under torchrun: rank 0 is the engine, the others measure for it."""
    from agentforge.phases.evomerge import ranks

    if ranks.rank() > 0:
        return ranks.serve_rank()
    ranks.join()
    try:
        return run_engine(layout, _run_pipeline)
    finally:
        ranks.dismiss()


def run_engine(layout: RunLayout, pipeline: Pipeline) -> int:
    """Take the run directory, run the pipeline in it, and say how it ended.

    Args:
        layout: The run; its manifest must exist.
        pipeline: Runs the phases and returns an exit code.
    """
    # A signal that comes before there is anyone to note it waits.
    stopping = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    try:
        manifest = load_manifest(layout)
        config = manifest_config(layout, manifest)
        lock = RunLock(layout)
    except AgentForgeError as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
        _say(f"{error}\n")
        return error.exit_code
    with lock:
        try:
            tee = TeeSink(JsonlSink(layout.events), _other_sinks(layout, config))
        except AgentForgeError as error:
            _say(f"{error}\n")
            return error.exit_code
        with contextlib.closing(tee):
            resumed = any(True for _ in read_events(layout.events, ("run_started",)))
            heartbeat = HeartbeatThread(layout, tee.emit)
            outcome = Outcome("failed", UNEXPECTED, ExitCode.RUN_FAILED)
            control: Control | None = None
            try:
                tee.emit(
                    RunStarted(
                        run_id=layout.run_id,
                        preset=config.preset,
                        phases=config.phases,
                        seed=config.seed,
                        resumed=resumed,
                    )
                )
                heartbeat.start()
                control = Control(layout, config, tee.emit, manifest=manifest)
                install_signal_handlers(control)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
                context = RunContext(layout, manifest, tee.emit, control, resumed)
                outcome = _run(context, pipeline)
            except AgentForgeError as error:  # the log refused before the pipeline began
                outcome = _outcome(error, ())
            finally:
                heartbeat.stop()
                _leave(tee, control, layout, manifest, outcome)
    return outcome.exit_code


def _other_sinks(layout: RunLayout, config: RunConfig) -> list[Sink]:
    """The sinks that may fail without harm; they load their libraries at the first event."""
    if config.logging.wandb == "off":
        return []
    from agentforge.sinks.wandb import WandbSink

    settings = config.model_dump(mode="json")
    mode, project = config.logging.wandb, config.logging.wandb_project
    return [WandbSink(layout.root, settings, mode=mode, project=project)]


def _run(context: RunContext, pipeline: Pipeline) -> Outcome:
    """Run the pipeline and turn whatever comes out of it into an outcome."""
    try:
        context.manifest.state = "running"
        context.save_manifest()
        code = pipeline(context)
    except Exception as error:
        if not isinstance(error, AgentForgeError | RunSuspended | RunAborted):
            traceback.print_exc()
        return _outcome(error, context.control.signals)
    if code in (ExitCode.OK, ExitCode.GATE_MISSED):
        reason = "" if code == ExitCode.OK else "one or more gates were missed"
        return Outcome("finished", reason, code)
    return Outcome("failed", f"the pipeline returned {code}", code)


def _outcome(error: Exception, signals: Sequence[str]) -> Outcome:
    if isinstance(error, RunSuspended):
        reason = str(error) or (f"suspended by {signals[0]}" if signals else "suspended")
        return Outcome("suspended", reason, ExitCode.SUSPENDED)
    if isinstance(error, RunAborted):
        code = ExitCode.INTERRUPTED if len(signals) > 1 else ExitCode.RUN_FAILED
        reason = str(error) or (f"aborted by {signals[-1]}" if signals else "aborted")
        return Outcome("aborted", reason, code)
    if isinstance(error, DiskFullError):
        # Nothing is lost but the steps since the last checkpoint: it can go on from there.
        return Outcome("suspended", str(error), error.exit_code)
    if isinstance(error, AgentForgeError):
        return Outcome("failed", str(error), error.exit_code)
    reason = f"{type(error).__name__}: {error}\n  -> console.log has the details"
    return Outcome("failed", reason, ExitCode.RUN_FAILED)


def _leave(
    tee: TeeSink,
    control: Control | None,
    layout: RunLayout,
    manifest: Manifest,
    outcome: Outcome,
) -> None:
    """Answer what is open and write the last event; a full disk does not stop it."""
    if outcome.state == "failed" or outcome.exit_code == ExitCode.PREFLIGHT:
        _say(f"{outcome.reason}\n")
    with contextlib.suppress(PreflightError):
        if control is not None:
            control.close(outcome.state)
    with contextlib.suppress(PreflightError):
        manifest.state = outcome.state
        save_manifest(layout, manifest)
    with contextlib.suppress(PreflightError):
        tee.emit(
            RunEnded(state=outcome.state, reason=outcome.reason, exit_code=int(outcome.exit_code))
        )


def _say(text: str) -> None:
    """Write to ``console.log``; on a full disk the exit code has to do."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _run_pipeline(context: RunContext) -> int:
    from agentforge.pipeline import run_pipeline

    return run_pipeline(context)


if __name__ == "__main__":
    sys.exit(main())
