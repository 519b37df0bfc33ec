"""The training loop of Phase 1: batch, loss, backward, step, emit, poll."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from agentforge.data.curriculum import stage_at
from agentforge.errors import RunSuspended, TrainingError
from agentforge.events import (
    Alert,
    AlertAction,
    CurriculumStage,
    LogLine,
    Progress,
    StageEnded,
    StageStarted,
    StepDone,
)
from agentforge.interventions import decide, intervention
from agentforge.phases.cognate.bench import Bench, obey, write_checkpoint
from agentforge.phases.cognate.training import (
    HalfStepError,
    StepResult,
    Training,
    out_of_memory,
    out_of_memory_text,
    take_step,
)
from agentforge.resources import Resolved, next_micro_batch_after_oom
from agentforge.run.checkpoint import CheckpointInfo
from agentforge.run.manifest import Resolved as ResolvedValue
from agentforge.sizing import longest_sequence

PHASE = "cognate"
FINISHED_EARLY = "cognate.finished_early"
MOST_ROLLBACKS = 3
"""Returns to a checkpoint with half the learning rate before a training is given up."""

ROLL_BACK = AlertAction(
    key="roll_back",
    label="Back to the last checkpoint with half the learning rate",
    consequence="the steps since that checkpoint are taken again",
)
HALVE_LR = AlertAction(
    key="halve_lr", label="Halve the learning rate", consequence="training goes on in smaller steps"
)
SMALLER = AlertAction(
    key="smaller_batch",
    label="Halve the micro-batch and accumulate more",
    consequence="the same gradient in more, smaller passes; the step is taken again",
)


def train(bench: Bench, training: Training) -> None:
    """Train a stage to its end, from wherever it is.

    Raises:
        RunSuspended: It was asked for, or the disk is full; a checkpoint was written.
        RunAborted: It was asked for.
        TrainingError: The loss is not finite or diverges after every remedy.
    """
    emit, stage = bench.context.emit, training.stage
    started, first = time.perf_counter(), training.step
    emit(
        StageStarted(
            phase=stage.phase, stage="train", model=stage.model, steps=training.total_steps
        )
    )
    while not bench.finishing:
        while training.step < training.total_steps and not bench.finishing:
            _one_step(bench, training, started, first)
            _listen(bench, training)
        if bench.finishing or not _extend(bench, training):
            break
    wall_s = time.perf_counter() - started
    emit(
        StageEnded(
            phase=stage.phase, stage="train", model=stage.model, steps=training.step, wall_s=wall_s
        )
    )


def _one_step(bench: Bench, training: Training, started: float, first: int) -> None:
    """Draw a batch, take the step (again after a remedy), tell of it."""
    config, stage, data = bench.context.config, training.stage, bench.data
    training.optimizer.lr_scale = config.cognate.optim.lr_scale * 0.5**training.halvings
    ends = stage.curriculum_ends or config.data.curriculum
    level = stage_at(training.step, stage.steps, ends) if stage.curriculum else 3
    weights = data.weights(stage.mix, level)
    if level != training.curriculum:
        training.curriculum = level
        training.watch.reset()
        bench.context.emit(
            CurriculumStage(
                phase=stage.phase, model=stage.model, stage=level, step=training.step, mix=weights
            )
        )
    items = training.sampler.draw(weights, stage.batch_size or config.cognate.batch_size)
    result = _with_less_memory(bench, training, items)
    if result is None:
        return
    training.step += 1
    if result.stats.skip_reason == "non_finite" or not math.isfinite(result.loss):
        _roll_back(bench, training, "nan", "The loss is not a number", f"loss {result.loss}")
        return
    training.watch.add(result.loss)
    if training.step % config.logging.step_interval == 0 or training.step == training.total_steps:
        bench.context.emit(_step_event(training, result))
        done, total = bench.progress
        spent = time.perf_counter() - started
        rate = (training.step - first) / spent
        bench.context.emit(
            Progress(
                phase=stage.phase,
                done=done + training.step,
                total=total,
                unit="steps",
                eta_s=(total - done - training.step) / rate if training.step - first > 10 else -1.0,
            )
        )
    if training.watch.diverging():
        slope = training.watch.slope()
        detail = f"the loss rises by {slope:.4f} a step over {training.watch.divergence_window}"
        _roll_back(bench, training, "divergence", "The loss diverges", detail)
    elif training.watch.stalled():
        _stalled(bench, training)


def _with_less_memory(
    bench: Bench, training: Training, items: list[tuple[str, int]]
) -> StepResult | None:
    """Take the step; when memory runs out, halve the micro-batch and take it again.

    Returns:
        None when the weights had to be restored: the loop goes on from the checkpoint.
    """
    while True:
        try:
            beta = bench.context.config.cognate.halting_beta
            return take_step(training, bench.data, items, bench.resources, beta)
        except (MemoryError, RuntimeError, HalfStepError) as error:
            half = isinstance(error, HalfStepError)
            if not half and not out_of_memory(error):
                raise
            training.optimizer.zero_grad()
            longest = longest_sequence(bench.context.config)
            smaller = next_micro_batch_after_oom(training.micro_batch_tokens, longest)
            alert = intervention(
                alert_id=f"{training.stage.model}-oom-{training.step}-{training.micro_batch_tokens}",
                code="out_of_memory",
                title="Memory ran out in a training step",
                detail=f"micro-batch of {training.micro_batch_tokens} tokens; next try: "
                f"{smaller or 'none, it is one sequence already'}",
                cause=out_of_memory_text(error),
                actions=(SMALLER,),
                recommended="smaller_batch" if smaller else "stop",
                level="error",
                optional=False,
            )
            chosen = decide(alert, bench.context)
            if chosen == "stop" or smaller is None:
                raise RunSuspended("memory ran out; the last checkpoint is kept") from error
            if half and not restore(bench, training):
                raise TrainingError(
                    f"{training.stage.model}: memory ran out inside the optimiser at step "
                    f"{training.step}, and no checkpoint of this stage is readable",
                    remedy="set resources.micro_batch_tokens lower and start a new run",
                ) from error
            training.micro_batch_tokens = smaller
            keep_micro_batch(bench, smaller)
            if half:
                return None


def keep_micro_batch(bench: Bench, tokens: int) -> None:
    """Later stages, and resumed engines, begin with what turned out to fit."""
    fits = Resolved(tokens, "what fitted after memory ran out")
    bench.resources = replace(bench.resources, micro_batch_tokens=fits)
    manifest = bench.context.manifest
    manifest.resolved["resources.micro_batch_tokens"] = ResolvedValue(
        value=tokens, reason=fits.reason
    )
    bench.context.save_manifest()


def _step_event(training: Training, result: StepResult) -> StepDone:
    """The event of one step; `extra` is keyed by W&B names."""
    mean, most, least, variance = result.halting
    extra = {
        "act/avg_halting_steps": mean,
        "act/max_halting_steps": most,
        "act/min_halting_steps": least,
        "act/halting_variance": variance,
        "loss/last_step": result.last_loss,
        "train/epoch": training.epochs(),
        "optimizer/muon_lr": result.stats.lr,
        "optim/adamw_lr": result.stats.adamw_lr,
        "optimizer/grokfast_lambda": training.stage.optim.grokfast_lambda,
        "optim/qk_clip_count": float(result.clipped_heads),
    }
    if result.stats.grokfast is not None:
        extra["optimizer/slow_gradients_filtered"] = float(result.stats.grokfast.filtered)
        extra["optim/slow_gradient_ratio"] = result.stats.grokfast.ratio
    if math.isfinite(result.writes):
        budget = training.stage.train_behaviour.write_budget
        layers = len(training.model.config.memory.layers)
        extra["ltm/memory_usage"] = result.writes / budget
        extra["ltm/write_operations"] = float(result.tokens * layers)
        extra["ltm/read_operations"] = float(result.tokens * layers)
        extra["ltm/avg_surprise_score"] = result.surprise
        extra["gate/m_usage"] = result.gate
    return StepDone(
        phase=training.stage.phase,
        model=training.stage.model,
        step=training.step,
        steps=training.total_steps,
        loss=result.loss,
        lr=result.stats.lr,
        grad_norm=result.stats.grad_norm,
        tokens=result.tokens,
        tokens_per_s=result.tokens / result.wall_s,
        extra=extra,
    )


def _listen(bench: Bench, training: Training) -> None:
    """The step boundary."""
    obey(bench, training.step, training.stage.model, lambda: save_checkpoint(bench, training))


def save_checkpoint(bench: Bench, training: Training) -> CheckpointInfo:
    """Write a complete checkpoint of the running stage."""
    stage = training.stage
    return write_checkpoint(bench, stage.model, training.step, training.groups(), training.state())


def restore(bench: Bench, training: Training) -> bool:
    """Continue from the newest good checkpoint when it is of this stage."""
    found = bench.store.newest_valid()
    for skipped in found.skipped:
        bench.context.emit(
            LogLine(
                level="warning",
                source="checkpoint",
                text=f"{skipped.path.name} is not used: {skipped.problem}",
            )
        )
    info = found.info
    if info is None or (info.phase, info.stage) != (training.stage.phase, training.stage.model):
        return False
    loaded = bench.store.load(info)
    training.load(loaded.groups, loaded.state)
    return True


def _extend(bench: Bench, training: Training) -> bool:
    """Add steps while the search fitness is short of the target; False when the stage is done."""
    stage = training.stage
    used = (training.total_steps - stage.steps) // max(1, stage.extension_steps)
    if not stage.target_fitness or used >= stage.max_extensions:
        return False
    save_checkpoint(bench, training)
    fitness = bench.fitness(training)
    if fitness >= stage.target_fitness:
        return False
    training.extend(stage.extension_steps)
    training.halvings += stage.halve_on_extension
    done, total = bench.progress
    bench.progress = (done, total + stage.extension_steps)
    bench.context.emit(
        Alert(
            id=f"{stage.model}-extended-{training.step}",
            level="info",
            code="extended",
            title=f"{stage.model} trains {stage.extension_steps} steps longer",
            detail=f"search fitness {fitness:.3f} is below {stage.target_fitness}",
        )
    )
    return True


def _roll_back(bench: Bench, training: Training, code: str, title: str, detail: str) -> None:
    """Ask, then return to the stage's last checkpoint with half the learning rate."""
    stage = training.stage
    if training.rollbacks >= MOST_ROLLBACKS:
        raise TrainingError(
            f"{stage.model}: {title.lower()} at step {training.step} ({detail}) after "
            f"{MOST_ROLLBACKS} returns to a checkpoint with half the learning rate each",
            remedy="lower cognate.optim.muon_lr and adamw_lr, or look at the data of this stage",
        )
    alert = intervention(
        alert_id=f"{stage.model}-{code}-{training.step}-{training.rollbacks}",
        code=code,
        title=title,
        detail=detail,
        cause="usually a learning rate that is too high for this data",
        actions=(ROLL_BACK, HALVE_LR),
        recommended="roll_back",
        level="error",
    )
    chosen = decide(alert, bench.context)
    training.watch.reset()
    rollbacks, halvings = training.rollbacks + 1, training.halvings + 1
    if chosen == "stop":
        raise RunSuspended(
            f"{title} at step {training.step} of {stage.model}; the last checkpoint is kept: "
            "resume with a lower cognate.optim.lr_scale"
        )
    if chosen == "roll_back":
        if not restore(bench, training):
            raise TrainingError(
                f"{stage.model}: {title.lower()} at step {training.step} ({detail}), and no "
                "checkpoint of this stage is readable",
                remedy="lower cognate.optim.muon_lr and adamw_lr and start a new run",
            )
    if chosen != "continue":
        training.rollbacks, training.halvings = rollbacks, halvings


def _stalled(bench: Bench, training: Training) -> None:
    """A loss that stands still and high: offer to halve the learning rate."""
    training.stalls += 1
    variance = training.watch.variance()
    alert = intervention(
        alert_id=f"{training.stage.model}-plateau-{training.step}",
        code="plateau",
        title="The loss stands still",
        detail=f"variance {variance:.6f} over {training.watch.plateau_window} steps",
        cause="the learning rate is too high to settle, or the model has learned what it can",
        actions=(HALVE_LR,),
        recommended="halve_lr" if training.stalls <= MOST_ROLLBACKS else "continue",
    )
    chosen = decide(alert, bench.context)
    training.watch.reset()
    if chosen == "halve_lr":
        training.halvings += 1
    elif chosen == "stop":
        _suspend(bench, training, "the loss stands still")


def _suspend(bench: Bench, training: Training, reason: str) -> None:
    save_checkpoint(bench, training)
    raise RunSuspended(f"{reason} (step {training.step} of {training.stage.model})")
