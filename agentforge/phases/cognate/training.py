"""One training in progress: everything that must be saved to go on, and one optimiser step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentforge.data.batching import MicroBatch, micro_batches
from agentforge.data.prepare import Prepared
from agentforge.data.sampler import MixSampler
from agentforge.detectors import LossWatch
from agentforge.model.language_model import CognateLM
from agentforge.model.loss import HaltingObjective, LossParts, training_loss
from agentforge.model.record import ForwardRecord
from agentforge.optim.hybrid import HybridOptimizer, StepStats
from agentforge.optim.loss_scale import LossScaler
from agentforge.optim.qk_clip import qk_clip_
from agentforge.phases.cognate.stages import Stage
from agentforge.resources import TrainingResources
from agentforge.run.rng import RngState, capture_rng, restore_rng
from agentforge.run.tensor_file import require_shapes

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(slots=True)
class Training:
    """A stage being trained. `groups` and `state` name everything a checkpoint holds.

    Attributes:
        stage: What is trained.
        model: Its weights, on the training device.
        optimizer: Both optimisers, Grokfast, schedule.
        sampler: The data cursor.
        watch: Loss detectors.
        micro_batch_tokens: Tokens of one forward and backward; halved when memory runs out.
        step: Steps done.
        total_steps: Steps to do, extensions included.
        curriculum: Curriculum stage of the last step, 0 before the first.
        rollbacks: Returns to a checkpoint so far.
        halvings: How often the learning rate was halved.
        stalls: Plateau alerts so far.
    """

    stage: Stage
    model: CognateLM
    optimizer: HybridOptimizer
    sampler: MixSampler
    watch: LossWatch
    micro_batch_tokens: int
    step: int = 0
    total_steps: int = 0
    curriculum: int = 0
    rollbacks: int = 0
    halvings: int = 0
    stalls: int = 0

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """All tensors, by file of the checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optim": self.optimizer.state_tensors(),
            "rng": capture_rng().tensors,
        }

    def state(self) -> dict[str, Any]:
        """The rest, as JSON."""
        return {
            "optimizer": self.optimizer.state_scalars(),
            "sampler": self.sampler.state(),
            "losses": self.watch.state(),
            "micro_batch_tokens": self.micro_batch_tokens,
            "step": self.step,
            "total_steps": self.total_steps,
            "curriculum": self.curriculum,
            "rollbacks": self.rollbacks,
            "halvings": self.halvings,
            "rng": capture_rng().state,
            "stalls": self.stalls,
        }

    def load(self, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Continue where a checkpoint was taken, bit for bit.

        Raises:
            CheckpointError: Tensors of another model.
        """
        load_weights(self.model, groups["model"], "checkpoint")
        self.optimizer.load_state(groups["optim"], state["optimizer"])
        self.sampler.load_state(state["sampler"])
        self.watch.load_state(state["losses"])
        self.micro_batch_tokens = state["micro_batch_tokens"]
        self.step = state["step"]
        self.total_steps = state["total_steps"]
        self.optimizer.total_steps = self.total_steps
        self.curriculum = state["curriculum"]
        self.rollbacks = state["rollbacks"]
        self.halvings = state["halvings"]
        restore_rng(RngState(state["rng"], dict(groups["rng"])))
        self.stalls = state["stalls"]

    def epochs(self) -> float:
        """Passes over the training items drawn so far, all corpora together."""
        return self.sampler.drawn / sum(self.sampler.sizes.values())

    def extend(self, steps: int) -> None:
        """Add steps; the schedule's cool-down moves to the new end."""
        self.total_steps += steps
        self.optimizer.total_steps = self.total_steps


def load_weights(model: CognateLM, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy weights into a model of the same shapes.

    Raises:
        CheckpointError: A tensor is missing, unknown or of another shape.
    """
    require_shapes({k: v.shape for k, v in model.state_dict().items()}, tensors, where=where)
    model.load_state_dict(dict(tensors))


def start_training(
    stage: Stage,
    model: CognateLM,
    data: Prepared,
    resources: TrainingResources,
    windows: tuple[int, int],
) -> Training:
    """A training at step 0 on a model that already holds its starting weights.

    Args:
        stage: What to train.
        model: The model.
        data: Corpora.
        resources: Precision and memory-saving means.
        windows: Steps of the divergence and the plateau detector.
    """
    precision = resources.precision.value
    scaler = LossScaler(model.rope_cos.device.type) if precision == "fp16" else None
    model.gradient_checkpointing = resources.gradient_checkpointing.value
    return Training(
        stage=stage,
        model=model,
        optimizer=HybridOptimizer(
            dict(model.named_parameters()),
            model.hidden_matrices(),
            stage.optim,
            stage.steps,
            scaler=scaler,
        ),
        sampler=MixSampler({n: len(c) for n, c in data.train.items()}, stage.seed),
        watch=LossWatch(*windows),
        micro_batch_tokens=resources.micro_batch_tokens.value,
        total_steps=stage.steps,
    )


class HalfStepError(Exception):
    """Memory ran out when some parameters had been updated and others not."""


def out_of_memory(error: BaseException) -> bool:
    """CUDA's and the CPU allocator's ways of saying that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def out_of_memory_text(error: BaseException) -> str:
    """Its first line; a bare `MemoryError` has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimiser step measured.

    Attributes:
        loss: Cross-entropy expected over halting, nats per target token (of the last step alone
            for targets whose early steps are not trained).
        last_loss: Cross-entropy of the last recursion step, nats per target token.
        stats: The optimiser's.
        tokens: Non-padding tokens.
        wall_s: Seconds.
        halting: Mean, largest, smallest and variance of the expected steps per token.
        writes: Mean memory write theta (NaN without a memory).
        surprise: Mean squared prediction error of the memory.
        gate: Mean share of the memory.
        clipped_heads: Heads QK-clip shrank.
    """

    loss: float
    last_loss: float
    stats: StepStats
    tokens: int
    wall_s: float
    halting: tuple[float, float, float, float]
    writes: float
    surprise: float
    gate: float
    clipped_heads: int


def take_step(
    training: Training,
    data: Prepared,
    items: list[tuple[str, int]],
    resources: TrainingResources,
    beta: float,
) -> StepResult:
    """Forward and backward over all micro-batches, then one optimiser step.

    Raises:
        HalfStepError: Memory ran out inside the optimiser: the weights are no longer those of any
            step and must be restored.
        torch.OutOfMemoryError, MemoryError, RuntimeError: Memory ran out before that; nothing was
            changed, the step can be taken again with smaller micro-batches.
    """
    started = time.perf_counter()
    model, stage = training.model, training.stage
    device = model.rope_cos.device
    batches = micro_batches(data.train, items, training.micro_batch_tokens, data.tokenizer.pad_id)
    targets = sum(b.target_count for b in batches)
    weight = sum(b.loss_weight(stage.answer_weight) for b in batches)
    tokens = sum(b.valid_count for b in batches)
    training.optimizer.zero_grad()
    task, last = 0.0, 0.0
    records, expected = [], []
    for batch in batches:
        record = ForwardRecord(valid=batch.valid.to(device))
        objective = replace(stage.objective, beta=beta if stage.objective.enabled else 0.0)
        parts = _forward(training, batch.to(device), resources, objective, weight, tokens, record)
        scaler = training.optimizer.scaler
        (scaler.scale(parts.total) if scaler else parts.total).backward()  # type: ignore[no-untyped-call]
        task += float(parts.task_sum)
        last += float(parts.last_sum)
        records.append(record)
        expected.append(parts.expected_steps)
    try:
        stats = training.optimizer.step(training.step)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise HalfStepError(out_of_memory_text(error)) from error
    clipped = 0 if stats.skipped else clip_logits(model, records, stage.optim.qk_clip_tau)
    steps = torch.cat(expected)
    weights = torch.tensor([b.valid_count for b in batches], dtype=torch.float64)
    return StepResult(
        loss=task / weight,
        last_loss=last / targets,
        stats=stats,
        tokens=tokens,
        wall_s=time.perf_counter() - started,
        halting=(
            float(steps.mean()),
            float(steps.max()),
            float(steps.min()),
            float(steps.var(correction=0)),
        ),
        writes=_mean([list(r.writes.values()) for r in records], weights),
        surprise=_mean([list(r.surprise.values()) for r in records], weights),
        gate=_mean([list(r.gate.values()) for r in records], weights),
        clipped_heads=clipped,
    )


def _forward(
    training: Training,
    batch: MicroBatch,
    resources: TrainingResources,
    objective: HaltingObjective,
    weight: float,
    tokens: int,
    record: ForwardRecord,
) -> LossParts:
    dtype = AUTOCAST.get(resources.precision.value)
    answers = training.stage.answer_weight
    weights = None
    if answers != 1.0:
        weights = torch.where(batch.answer, answers, torch.ones((), device=batch.ids.device))
    with torch.autocast(batch.ids.device.type, dtype, enabled=dtype is not None):
        return training_loss(
            training.model,
            batch.ids,
            batch.targets,
            batch.valid,
            training.stage.train_behaviour,
            objective,
            weight,
            tokens,
            resources.vocab_chunk.value,
            record,
            weights,
        )


def clip_logits(model: CognateLM, records: list[ForwardRecord], tau: float) -> int:
    """QK-clip every attention module with its largest logits of this step."""
    clipped = 0
    for name in records[0].logit_max:
        largest = torch.stack([r.logit_max[name] for r in records]).amax(0)
        attention = model.get_submodule(f"{name}.attention")
        clipped += qk_clip_(
            attention.get_parameter("q.weight").data,
            attention.get_parameter("k.weight").data,
            largest,
            tau,
        )
    return clipped


def _mean(values: list[list[Tensor]], weights: Tensor) -> float:
    """Mean over layers, then over micro-batches by their tokens; NaN when there is none."""
    if not values[0]:
        return float("nan")
    rows = torch.stack([torch.stack(v).mean() for v in values]).double().cpu()
    return float((rows * weights).sum() / weights.sum())
