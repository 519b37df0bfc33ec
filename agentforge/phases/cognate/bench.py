"""What every training loop of the phases works with, and what it does between two steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from agentforge.data.prepare import Prepared
from agentforge.errors import RunAborted, RunSuspended
from agentforge.events import Alert
from agentforge.phases.cognate.training import Training
from agentforge.resources import TrainingResources
from agentforge.run.checkpoint import CheckpointInfo, CheckpointStore
from agentforge.run.context import RunContext
from agentforge.run.manifest import Resolved
from agentforge.run.storage import look_at_disk

if TYPE_CHECKING:
    from agentforge.phases.side import SideRun


@dataclass(slots=True)
class Bench:
    """What every training of the phase works with.

    Attributes:
        context: The run.
        data: Corpora and tokenizer.
        resources: Device, precision, memory-saving means.
        store: Checkpoints.
        progress: Steps done before the running stage, and of the whole phase.
        fitness: Search fitness of the model in training; decides on extensions.
        finishing: A user asked to end the phase: no more steps are taken.
        side: The engine that trains the controls meanwhile.
        phase: The phase it works for.
    """

    context: RunContext
    data: Prepared
    resources: TrainingResources
    store: CheckpointStore
    progress: tuple[int, int]
    fitness: Callable[[Training], float]
    finishing: bool = False
    side: SideRun | None = None
    phase: str = "cognate"


def obey(bench: Bench, step: int, what: str, save: Callable[[], object]) -> None:
    """The step boundary: events of the side engine, commands, due checkpoints, the disk.

    Args:
        bench: The bench.
        step: Steps done.
        what: Name of what is trained.
        save: Writes a complete checkpoint.

    Raises:
        RunSuspended: It was asked for, or the disk is full; a checkpoint was written.
        RunAborted: It was asked for.
    """
    context, storage = bench.context, bench.context.config.storage
    due = step % storage.checkpoint_interval == 0
    if bench.side is not None:
        bench.side.pass_on()
    while True:
        asked = context.control.poll(step)
        if asked.abort:
            raise RunAborted(f"aborted at step {step} of {what}")
        if due or asked.checkpoint or asked.suspend:
            save()
            context.control.done(asked, "checkpoint")
            due = False
        if asked.suspend:
            raise RunSuspended(f"suspended at step {step} of {what}")
        if asked.finish:
            finish(bench, f"at step {step} of {what}")
            context.control.done(asked, "finish", message="no more steps are taken")
        if not asked.paused:
            break
    if step % storage.disk_check_interval == 0:
        _look_at_disk(bench, step, what, save)


def finish(bench: Bench, when: str) -> None:
    """End the phase: no more steps, now or after a resume."""
    bench.finishing = True
    bench.context.manifest.resolved[f"{bench.phase}.finished_early"] = Resolved(
        value=True, reason=f"asked for {when}"
    )
    bench.context.save_manifest()


def write_checkpoint(
    bench: Bench,
    stage: str,
    step: int,
    groups: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> CheckpointInfo:
    """Write a complete checkpoint, tell of it, and note the phase's clock."""
    info = bench.store.save(phase=bench.phase, stage=stage, step=step, groups=groups, state=state)
    bench.context.emit(info.event(bench.context.layout))
    record = bench.context.manifest.phases[bench.phase]
    now = time.time()
    record.wall_s += now - record.started if record.started else 0.0
    record.started = now
    bench.context.save_manifest()
    return info


def _look_at_disk(bench: Bench, step: int, what: str, save: Callable[[], object]) -> None:
    """Prune old checkpoints when the disk gets full, suspend when it is."""
    storage = bench.context.config.storage
    if look_at_disk(bench.context.layout.root, storage) == "ok":
        return
    removed = bench.store.prune(1)
    bench.context.emit(
        Alert(
            id=f"disk-{what}-{step}",
            level="warning",
            code="disk",
            title="The disk is getting full",
            detail=f"less than {storage.prune_below_gb} GB free; {removed} checkpoints removed",
        )
    )
    if look_at_disk(bench.context.layout.root, storage) == "suspend":
        save()
        raise RunSuspended(
            f"less than {storage.suspend_below_gb} GB of disk are free (step {step} of {what})"
        )
