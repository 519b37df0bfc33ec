"""The staged quantisation: a group at a time, checked on held-out loss, reverted where it hurts."""

from __future__ import annotations

import math
import time

from agentforge.errors import RunSuspended, TrainingError
from agentforge.events import (
    AlertAction,
    EvalDone,
    LogLine,
    Progress,
    StageEnded,
    StageStarted,
    StepDone,
)
from agentforge.interventions import decide, intervention
from agentforge.model.behaviour import Behaviour
from agentforge.phases.bitnet.data import BitData
from agentforge.phases.bitnet.finetune import FinetuneStep, Finetuning, take_finetune_step
from agentforge.phases.bitnet.losses import Losses, Rise, measure_losses, rise
from agentforge.phases.cognate.bench import Bench, obey, write_checkpoint
from agentforge.phases.cognate.models import between

PHASE = "bitnet"

LONGER = AlertAction(
    key="train_on",
    label="Train the stage on",
    consequence="as many steps again at full strength, then it is judged once more",
)
REVERT = AlertAction(
    key="revert",
    label="Revert the stage",
    consequence="its matrices go back to what they were and stay in full precision",
)


def quantise(
    bench: Bench,
    training: Finetuning,
    name: str,
    behaviour: Behaviour,
    data: BitData,
    before: Losses | None,
    pruned: float,
) -> None:
    """Train all stages and the rest of the steps, from wherever a checkpoint was left.

    Args:
        bench: The phase's bench.
        training: At step 0; changed in place.
        name: Of the model that is made, and of its checkpoints.
        behaviour: How the model is deployed.
        data: What it trains on.
        before: Held-out losses in full precision; None: there are no stages to judge.
        pruned: Share of the tiles that are pruned in the end.

    Raises:
        RunSuspended, RunAborted: They were asked for.
        TrainingError: The loss is not finite.
    """
    context = bench.context
    context.emit(
        StageStarted(phase=PHASE, stage="finetune", model=name, steps=training.total_steps)
    )
    began = time.perf_counter()
    found = bench.store.newest_valid().info
    if found is not None and (found.phase, found.stage) == (PHASE, name):
        loaded = bench.store.load(found)
        training.load(loaded.groups, loaded.state)
        if training.staged and training.stage_step == training.retries == 0:
            # Killed between writing it and marking it: a revert must not go further back.
            bench.store.mark_best(found)
    else:
        _save_start_of_stage(bench, training, name)
    first = training.step
    while training.step < training.total_steps and not bench.finishing:
        training.set_strengths(context.config.bitnet.quantise.ramp)
        if pruned and training.staged:
            training.prune(pruned)
        result = take_finetune_step(training, context.config, data, behaviour, bench.resources)
        if not math.isfinite(result.loss):
            raise TrainingError(
                f"{name}: the loss of step {training.step} is {result.loss}",
                remedy="lower bitnet.finetune.adamw_lr or muon_lr and resume",
            )
        _tell_step(bench, training, name, result, began, first)
        if training.staged and training.stage_step >= training.stage_steps:
            assert before is not None
            _judge(bench, training, name, behaviour, data, before)
        obey(bench, training.step, name, lambda: _save(bench, training, name))
    # Finished early: what was not quantised yet stays as it is.
    for names in training.groups_of_names[training.stage :]:
        training.reverted += [n for n in names if n not in training.reverted]
    training.stage = len(training.groups_of_names)
    training.set_strengths(context.config.bitnet.quantise.ramp)
    _save(bench, training, name)
    context.emit(
        StageEnded(
            phase=PHASE,
            stage="finetune",
            model=name,
            steps=training.step,
            wall_s=time.perf_counter() - began,
        )
    )


def held_out_rise(
    bench: Bench, training: Finetuning, behaviour: Behaviour, data: BitData, before: Losses
) -> Rise:
    """How much the model as it is lost against full precision, on the calibration items."""
    after = measure_losses(
        training.model,
        behaviour,
        data.calibration,
        data.reasoning.prepared.tokenizer.pad_id,
        bench.context.config.cognate.eval_batch,
        lambda: between(bench),
    )
    return rise(before, after)


def _judge(
    bench: Bench,
    training: Finetuning,
    name: str,
    behaviour: Behaviour,
    data: BitData,
    before: Losses,
) -> None:
    """The end of a stage: go on, train it on, or revert it."""
    context, wanted = bench.context, bench.context.config.bitnet.quantise
    found = held_out_rise(bench, training, behaviour, data, before)
    names = training.groups_of_names[training.stage]
    _tell_stage(bench, training, name, found)
    verdict = "continue"
    if found.exceeds(wanted.loss_budget):
        actions = (LONGER, REVERT) if training.retries < wanted.retries else (REVERT,)
        verdict = decide(
            intervention(
                alert_id=f"{name}-stage-{training.stage}-{training.retries}",
                code="stage_loss",
                title=f"Stage {training.stage + 1} costs more than its budget",
                detail=f"held-out loss +{found.value:.3f} nats a token (s.e. {found.stderr:.3f}), "
                f"budget {wanted.loss_budget:g}; {len(names)} matrices: {', '.join(names)}",
                cause="these matrices lose too much with ternary weights, or had too few steps",
                actions=actions,
                recommended=actions[0].key,
            ),
            context,
        )
    if verdict == "stop":
        _save(bench, training, name)
        raise RunSuspended(f"stage {training.stage + 1} of {name} is over its budget")
    if verdict == "train_on":
        training.retries += 1
        training.stage_step = 0
        training.total_steps += training.stage_steps
        training.optimizer.total_steps = training.total_steps
        return
    if verdict == "revert":
        _revert(bench, training, name)
    training.stage += 1
    training.stage_step = training.retries = 0
    _save_start_of_stage(bench, training, name)


def _revert(bench: Bench, training: Finetuning, name: str) -> None:
    """Back to the start of the stage; its matrices stay in full precision, unpruned."""
    names = training.groups_of_names[training.stage]
    start = bench.store.best()
    assert start is not None
    assert (start.phase, start.stage) == (PHASE, name)
    loaded = bench.store.load(start)
    training.load(loaded.groups, loaded.state)
    training.reverted += names
    # Its steps are not taken again by the stages that are left.
    training.total_steps -= training.stage_steps
    training.optimizer.total_steps = training.total_steps
    for layer_name in names:
        training.model.get_submodule(layer_name).get_buffer("tiles").fill_(True)
    bench.context.emit(
        LogLine(
            level="warning",
            source=PHASE,
            text=f"{', '.join(names)} stay in full precision: stage {training.stage + 1} reverted",
        )
    )


def _save(bench: Bench, training: Finetuning, name: str) -> None:
    write_checkpoint(bench, name, training.step, training.groups(), training.state())


def _save_start_of_stage(bench: Bench, training: Finetuning, name: str) -> None:
    """A checkpoint that is kept until the next stage begins: what a revert goes back to."""
    info = write_checkpoint(bench, name, training.step, training.groups(), training.state())
    bench.store.mark_best(info)


def _tell_stage(bench: Bench, training: Finetuning, name: str, found: Rise) -> None:
    done = sum(len(g) for g in training.groups_of_names[: training.stage + 1])
    total = sum(len(g) for g in training.groups_of_names)
    for key, value in (
        ("compression/stage_loss_rise", found.value),
        ("compression/layers_compressed", float(done - len(training.reverted))),
        ("compression/total_layers", float(total)),
        ("compression/progress", done / total),
    ):
        bench.context.emit(
            EvalDone(phase=PHASE, model=name, name=key, value=value, n=found.n, split="search")
        )


def _tell_step(
    bench: Bench,
    training: Finetuning,
    name: str,
    result: FinetuneStep,
    began: float,
    first: int,
) -> None:
    config = bench.context.config
    spent, done = time.perf_counter() - began, training.step - first
    hybrid = config.bitnet.finetune.optimizer == "hybrid"
    strengths = [layer.strength for layer in training.layers().values()]
    extra = {
        "finetune/label_loss": result.label_loss,
        "finetune/kl": result.kl,
        "finetune/epoch": training.epochs(),
        "finetune/strength": sum(strengths) / len(strengths) if strengths else 0.0,
        "finetune/stage": float(min(training.stage + 1, len(training.groups_of_names))),
    }
    bench.context.emit(
        StepDone(
            phase=PHASE,
            model=name,
            step=training.step,
            steps=training.total_steps,
            loss=result.loss,
            lr=result.stats.lr if hybrid else result.stats.adamw_lr,
            grad_norm=result.stats.grad_norm,
            tokens=result.tokens,
            tokens_per_s=result.tokens / result.wall_s,
            extra=extra,
        )
    )
    left = training.total_steps - training.step
    before, total = bench.progress
    bench.context.emit(
        Progress(
            phase=PHASE,
            done=before + training.step,
            total=max(total, before + training.total_steps),
            unit="steps",
            eta_s=left * spent / done if done > 3 else -1.0,
        )
    )
