"""The multi-task control: the base trained on with the compute its three specialists took.

It answers the question a merge must face: would one training on everything have been better?
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from agentforge.config.schema import SPECIALTIES, RunConfig
from agentforge.data.prepare import Prepared
from agentforge.model.language_model import CognateLM
from agentforge.phases.cognate.artifacts import Trained, load_trained
from agentforge.phases.cognate.models import get_model, make_bench
from agentforge.phases.cognate.stages import BASE, Stage, base_stage, specialist_stages
from agentforge.phases.evomerge.evolution import FINISHED_EARLY, PHASE
from agentforge.resources import TrainingResources
from agentforge.run.context import RunContext
from agentforge.run.manifest import Resolved

CONTROL = "multi_task"
THREADS = "evomerge.control_threads"


def control_stage(config: RunConfig) -> Stage:
    """The specialists' steps and learning rates, on the mean of their mixes by steps.

    So it sees as much of every skill as the three specialists did together; halting prior,
    threshold and write budget are the base's.
    """
    trunk, branches = base_stage(config), specialist_stages(config)
    total = sum(s.steps for s in branches)
    mix: dict[str, float] = {}
    for stage in branches:
        share = stage.steps / total / sum(stage.mix.values())
        for name, weight in stage.mix.items():
            mix[name] = mix.get(name, 0.0) + weight * share
    wanted = config.evomerge.control_steps
    return Stage(
        model=CONTROL,
        parent=BASE,
        steps=total if wanted < 0 else wanted,
        mix=mix,
        optim=branches[0].optim,
        objective=trunk.objective,
        train_behaviour=trunk.train_behaviour,
        behaviour=trunk.behaviour,
        seed=config.seed * 1000 + len(SPECIALTIES),
        curriculum=False,
        phase=PHASE,
    )


def train_control(
    context: RunContext,
    data: Prepared,
    resources: TrainingResources,
    model: CognateLM,
    base: Mapping[str, Tensor],
    base_sha256: str,
) -> Trained | None:
    """Train the control, go on with it, or read it back.

    Returns:
        None when the configuration wants none, or the phase was asked to end before it began.
        One that was ended early says its own number of steps.

    Raises:
        RunSuspended, RunAborted, TrainingError: As every training.
    """
    stage = control_stage(context.config)
    if not stage.steps:
        return None
    found = load_trained(context, stage)
    if found is not None or FINISHED_EARLY in context.manifest.resolved:
        return found
    _use_all_cores(context)
    bench = make_bench(context, data, resources)
    bench.phase = PHASE
    bench.progress = (0, stage.steps)
    bench.finishing = False
    return get_model(bench, stage, model, base, base_sha256)


def _use_all_cores(context: RunContext) -> None:
    """Nothing trains beside this one; a resumed control goes on with the threads it began with."""
    config = context.config
    noted = context.manifest.resolved.get(THREADS)
    if noted is None:
        cores = len(os.sched_getaffinity(0))
        asked = config.resources.threads
        reason = "asked for" if asked else "all cores: nothing trains beside the control"
        noted = Resolved(value=asked or cores, reason=reason)
        context.manifest.resolved[THREADS] = noted
        context.save_manifest()
    torch.set_num_threads(int(str(noted.value)))
