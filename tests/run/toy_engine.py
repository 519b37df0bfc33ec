"""A real engine process around a toy pipeline: counts steps and obeys, without torch.

TOY_STEPS: steps to take (default: for ever). TOY_FAIL: how it shall fail at step 3.
The count is kept in ``checkpoints/count``, so that a resumed run goes on.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from agentforge.errors import DataError, RunAborted, RunSuspended
from agentforge.events import LogLine, StepDone
from agentforge.run.atomic import write_atomic
from agentforge.run.context import RunContext
from agentforge.run.layout import RunLayout
from agentforge.run.worker import run_engine


def pipeline(context: RunContext) -> int:
    saved = context.layout.checkpoints / "count"
    step = int(saved.read_text()) if saved.exists() else 0
    last = int(os.environ.get("TOY_STEPS", "1000000000"))
    while step < last:
        while True:
            asked = context.control.poll(step)
            if asked.abort:
                raise RunAborted
            if asked.checkpoint or asked.suspend:
                write_atomic(saved, str(step))
                context.control.done(asked, "checkpoint")
            if asked.suspend:
                raise RunSuspended
            for change in asked.changes:
                text = f"{change.key} is {context.config.storage.checkpoint_interval}"
                context.emit(LogLine(level="info", source="toy", text=text))
            if not asked.paused:
                break
        if asked.finish:
            context.control.done(asked, "finish")
            break
        if step == 3 and "TOY_FAIL" in os.environ:
            fail(os.environ["TOY_FAIL"])
        step += 1
        context.emit(
            StepDone(
                phase="toy",
                model="toy",
                step=step,
                steps=last,
                loss=1 / step,
                lr=0.1,
                grad_norm=1.0,
                tokens=1,
                tokens_per_s=1.0,
            )
        )
        time.sleep(0.01)
    return int(os.environ.get("TOY_CODE", "0"))


def fail(how: str) -> None:
    if how == "defect":
        raise ZeroDivisionError("a defect")
    if how == "exit":
        raise SystemExit(9)
    raise DataError("records.jsonl line 7 is torn", remedy="repair the line")


if __name__ == "__main__":
    sys.exit(run_engine(RunLayout(Path(sys.argv[1])), pipeline))
