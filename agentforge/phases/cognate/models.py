"""A model of Phase 1: read back when it is finished, else trained from where it was left."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from agentforge.data.prepare import Prepared
from agentforge.errors import RunAborted, RunSuspended
from agentforge.events import EvalDone
from agentforge.model.language_model import CognateLM
from agentforge.phases.cognate.artifacts import Trained, load_trained, save_trained
from agentforge.phases.cognate.bench import Bench, finish
from agentforge.phases.cognate.measure import measure_model
from agentforge.phases.cognate.probe import fitting_micro_batch
from agentforge.phases.cognate.results import skills_of
from agentforge.phases.cognate.stages import Stage, base_stage, specialist_stages
from agentforge.phases.cognate.train import (
    FINISHED_EARLY,
    PHASE,
    keep_micro_batch,
    restore,
    save_checkpoint,
    train,
)
from agentforge.phases.cognate.training import Training, load_weights, start_training
from agentforge.phases.resources import controls_beside
from agentforge.resources import TrainingResources
from agentforge.run.checkpoint import CheckpointStore
from agentforge.run.context import RunContext
from agentforge.run.manifest import Resolved
from agentforge.sizing import longest_sequence

BEST_FITNESS = "cognate.best_fitness"


def fresh_model(
    context: RunContext, data: Prepared, resources: TrainingResources
) -> tuple[CognateLM, dict[str, Tensor]]:
    """The model on its device, and the weights the run's seed gives it."""
    torch.manual_seed(context.config.seed)
    model = CognateLM(context.config.model, data.tokenizer.vocab_size)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return model.to(torch.device(resources.device.value)), fresh


def make_bench(context: RunContext, data: Prepared, resources: TrainingResources) -> Bench:
    """The workbench of all trainings of the phase."""
    config = context.config
    trunk = base_stage(config)
    beside = controls_beside(config, resources.device.value)
    planned = trunk.steps * (1 + (0 if beside else len(config.cognate.ablations)))
    planned += sum(stage.steps for stage in specialist_stages(config))
    bench = Bench(
        context=context,
        data=data,
        resources=resources,
        store=CheckpointStore(context.layout.checkpoints, config.storage.keep_last),
        progress=(0, planned),
        fitness=lambda training: _validate(bench, training),
        finishing=FINISHED_EARLY in context.manifest.resolved,
    )
    return bench


def get_model(
    bench: Bench, stage: Stage, model: CognateLM, start: Mapping[str, Tensor], base_sha256: str
) -> Trained:
    """The stage's model: read back when it is finished, else trained from where it was left."""
    context, cognate = bench.context, bench.context.config.cognate
    found = load_trained(context, stage)
    if found is None:
        load_weights(model, start, stage.parent or "fresh weights")
        windows = (cognate.divergence_window, cognate.plateau_window)
        training = start_training(stage, model, bench.data, bench.resources, windows)
        if not restore(bench, training):
            if bench.resources.device.value == "cuda":
                longest = longest_sequence(context.config)
                fits = fitting_micro_batch(training, bench.resources, longest)
                if fits != training.micro_batch_tokens:
                    training.micro_batch_tokens = fits
                    keep_micro_batch(bench, fits)
            save_checkpoint(bench, training)
        train(bench, training)
        _finish(bench, training)
        save_trained(context, training, bench.data.tokenizer, base_sha256)
        found = load_trained(context, stage)
        assert found is not None
    bench.progress = (bench.progress[0] + found.steps, bench.progress[1])
    return found


def _finish(bench: Bench, training: Training) -> None:
    """The end of a training: its checkpoint, its fitness, the best one so far."""
    context = bench.context
    info = save_checkpoint(bench, training)
    fitness = _validate(bench, training)
    if training.stage.phase != PHASE:
        return
    best = context.manifest.resolved.get(BEST_FITNESS)
    if best is None or fitness >= float(str(best.value)):
        context.manifest.resolved[BEST_FITNESS] = Resolved(
            value=fitness, reason=f"search fitness of {training.stage.model}, marked as best"
        )
        bench.store.mark_best(info)


def _validate(bench: Bench, training: Training) -> float:
    """Measure a model in training on the search split; returns its fitness.

    Fitness is the mean exact match over the world's skills; real records, whose exact match is
    near 0 at this size, count exp(-loss) instead.
    """
    stage = training.stage
    found = measure_model(
        stage.model,
        training.model,
        stage.behaviour,
        bench.data,
        "search",
        bench.context.config.cognate.eval_batch,
        lambda: between(bench),
        timed=False,
    )
    loss, tokens = found.loss(list(found.results))
    skills = skills_of(bench.data)
    fitness = found.accuracy(skills) if skills else float(torch.tensor(-loss).exp())
    figures = {"val/loss": loss, "val/perplexity": float(torch.tensor(loss).exp())}
    for name, value in figures.items():
        _tell(bench, stage, name, value, tokens)
    items = sum(len(found.results[s].correct) for s in skills) if skills else tokens
    _tell(bench, stage, "val/fitness", fitness, items)
    return fitness


def between(bench: Bench) -> None:
    """Commands while measuring; nothing is lost, as all weights are on disk."""
    control = bench.context.control
    while True:
        asked = control.poll(0)
        if asked.abort:
            raise RunAborted("aborted while measuring")
        if asked.suspend:
            raise RunSuspended("suspended while measuring; all models are saved")
        if asked.checkpoint:
            control.done(asked, "checkpoint", message="measuring: all models are saved already")
        if asked.finish:
            finish(bench, "while measuring or waiting for the controls")
            control.done(asked, "finish", message="no more steps are taken")
        if not asked.paused:
            return


def _tell(bench: Bench, stage: Stage, name: str, value: float, n: int) -> None:
    """One figure of the search split."""
    bench.context.emit(
        EvalDone(phase=stage.phase, model=stage.model, name=name, value=value, n=n, split="search")
    )
