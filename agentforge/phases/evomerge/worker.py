"""A process that measures members: one thread, one model, jobs over a pipe.

One thread each, so that a result does not depend on how many workers there are, and because two
processes of one thread are about twice as fast as one of two at these sizes.
"""

from __future__ import annotations

import os
import signal
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from agentforge.config.schema import ModelConfig
from agentforge.phases.evomerge.measuring import Answer, Job, Settings
from agentforge.run.orphan import die_with_parent


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that raised: the traceback goes into the engine's log."""

    text: str


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker is started with."""

    parent: int
    model: ModelConfig
    vocab_size: int
    settings: Settings
    device: str = "cpu"


def serve(pipe: Connection, start: Start) -> None:
    """Do jobs until the pipe closes."""
    die_with_parent(start.parent)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the engine decides, and closes the pipe
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from agentforge.model.language_model import CognateLM
    from agentforge.phases.evomerge.measuring import do_job

    torch.set_num_threads(1)
    device = torch.device(start.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    model = CognateLM(start.model, start.vocab_size).to(device)
    while True:
        try:
            job = unpacked(pipe.recv())
        except (EOFError, OSError):
            return
        try:
            found: Answer | Failure = do_job(model, start.settings, job)
        except Exception:
            found = Failure(traceback.format_exc())
        pipe.send(found)


def packed(job: Job) -> tuple[dict[str, Any], Job]:
    """A job as it goes over the pipe: arrays instead of tensors, which would go by file handles."""
    from dataclasses import replace

    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in job.weights.items()}
    return arrays, replace(job, weights={})


def unpacked(sent: tuple[dict[str, Any], Job]) -> Job:
    """From `packed`."""
    from dataclasses import replace

    import torch

    arrays, job = sent
    return replace(job, weights={name: torch.from_numpy(a) for name, a in arrays.items()})
