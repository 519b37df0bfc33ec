"""The command line with an engine that trains nothing: a real worker process, a fake pipeline.

Usage: python fake_engine.py ARGUMENTS...   (those of agentforge-tui)
       python fake_engine.py --engine RUN_DIR
The environment variable FAKE_ENGINE says what the pipeline does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from agentforge.errors import DataError, ExitCode, RunAborted, RunSuspended
from agentforge.events import Alert, AlertAction, PhaseEnded, PhaseStarted, StageStarted, StepDone
from agentforge.gates import Gate
from agentforge.run.context import RunContext
from agentforge.run.layout import RunLayout
from agentforge.run.worker import run_engine

STEPS = {"forever": 10**9, "ignores": 10**9}


def pipeline(context: RunContext) -> int:
    """A phase of small steps, with gates at its end."""
    from agentforge.report import PhaseReport, save_phase_report

    what = os.environ.get("FAKE_ENGINE", "")
    if what == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "bad-data":
        raise DataError("gsm8k: line 7 is not JSON", remedy="fix or remove that line")
    if what == "defect":
        raise ZeroDivisionError("a defect of ours")
    steps = STEPS.get(what, 5)
    context.emit(PhaseStarted(phase="cognate"))
    context.emit(StageStarted(phase="cognate", stage="train", model="base", steps=steps))
    if what == "alert":
        stop = AlertAction(key="stop", label="Stop", consequence="suspends")
        context.emit(
            Alert(
                id="a1",
                level="warning",
                code="plateau",
                title="Plateau",
                detail="variance 0.0005 < 0.001",
                actions=(stop,),
                recommended="stop",
            )
        )
    for step in range(steps):
        asked = context.control.poll(step)
        if what != "ignores":
            if asked.abort:
                raise RunAborted
            if asked.suspend:
                context.control.done(asked, "checkpoint")
                raise RunSuspended
            if asked.finish:
                context.control.done(asked, "finish")
                break
        context.emit(
            StepDone(
                phase="cognate",
                model="base",
                step=step + 1,
                steps=steps,
                loss=float("nan") if step == 0 else 2.0,
                lr=0.02,
                grad_norm=1.0,
                tokens=100,
                tokens_per_s=1000.0,
            )
        )
        time.sleep(0.01)
    value = 0.1 if what == "missed" else 0.9
    gates = (
        Gate("cognate.diversity", value, ">", 0.3, 100, "report split"),
        Gate("cognate.gsm8k", None, ">", 0.1, 0, "GSM8K", in_run=False),
    )
    save_phase_report(context.layout, PhaseReport("cognate", "Phase 1", gates, ()))
    for gate in gates:
        context.emit(gate.event())
    context.emit(PhaseEnded(phase="cognate", gates_met=1, gates_missed=0, wall_s=1.0))
    return ExitCode.GATE_MISSED if what == "missed" else ExitCode.OK


def start_worker(layout: RunLayout) -> subprocess.Popen[bytes]:
    """As `agentforge.run.supervisor.start_worker`, with this file as the engine."""
    with layout.console_log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, __file__, "--engine", str(layout.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


if __name__ == "__main__":
    if sys.argv[1] == "--engine":
        sys.exit(run_engine(RunLayout(Path(sys.argv[2])), pipeline))
    import agentforge.batch
    from agentforge.cli import main

    agentforge.batch.start_worker = start_worker
    sys.exit(main(sys.argv[1:]))
