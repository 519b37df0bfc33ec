"""Quantisation-aware fine-tuning in progress: what is saved to go on, and one optimiser step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agentforge.config.schema import OptimConfig, RunConfig
from agentforge.data.batching import micro_batches
from agentforge.data.sampler import MixSampler
from agentforge.model.behaviour import Behaviour
from agentforge.model.bit_linear import BitLinear, bit_linears
from agentforge.model.distillation import distillation_loss
from agentforge.model.language_model import CognateLM
from agentforge.model.record import ForwardRecord
from agentforge.optim.hybrid import HybridOptimizer, StepStats
from agentforge.phases.bitnet.data import BitData
from agentforge.phases.cognate.training import clip_logits, load_weights
from agentforge.resources import TrainingResources
from agentforge.run.rng import RngState, capture_rng, restore_rng

SEED = 11
"""Added to a thousand times the run's seed: the data order of the fine-tuning."""


@dataclass(slots=True)
class Finetuning:
    """A model on its way to ternary weights, with its full-precision teacher.

    Attributes:
        model: The student; its BitLinears hold their strengths.
        teacher: Frozen.
        groups_of_names: Names of the matrices of every stage.
        stage_steps: Steps of one stage.
        optimizer: Of all parameters.
        sampler: The data cursor.
        step: Steps done.
        total_steps: Steps to do, retries of stages included.
        stage: The running stage; as many as there are groups: all are done.
        stage_step: Steps of it done.
        retries: Times the running stage was trained on because it was over its budget.
        reverted: Matrices that stay in full precision.
    """

    model: CognateLM
    teacher: CognateLM
    groups_of_names: list[list[str]]
    stage_steps: int
    optimizer: HybridOptimizer
    sampler: MixSampler
    step: int = 0
    total_steps: int = 0
    stage: int = 0
    stage_step: int = 0
    retries: int = 0
    reverted: list[str] = field(default_factory=list)

    @property
    def staged(self) -> bool:
        """Whether a stage is running."""
        return self.stage < len(self.groups_of_names)

    def layers(self) -> dict[str, BitLinear]:
        """The matrices that are or become ternary."""
        return {n: m for n, m in bit_linears(self.model).items() if n not in self.reverted}

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
            "step": self.step,
            "total_steps": self.total_steps,
            "stage": self.stage,
            "stage_step": self.stage_step,
            "retries": self.retries,
            "reverted": list(self.reverted),
            "rng": capture_rng().state,
        }

    def load(self, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Continue where a checkpoint was taken, bit for bit.

        Raises:
            CheckpointError: Tensors of another model.
        """
        load_weights(self.model, groups["model"], "checkpoint")
        self.optimizer.load_state(groups["optim"], state["optimizer"])
        self.sampler.load_state(state["sampler"])
        self.step = state["step"]
        self.total_steps = state["total_steps"]
        self.optimizer.total_steps = self.total_steps
        self.stage, self.stage_step = state["stage"], state["stage_step"]
        self.retries = state["retries"]
        self.reverted = list(state["reverted"])
        restore_rng(RngState(state["rng"], dict(groups["rng"])))

    def epochs(self) -> float:
        """Passes over the training items drawn so far, all corpora together."""
        return self.sampler.drawn / sum(self.sampler.sizes.values())

    def set_strengths(self, ramp: float) -> None:
        """Finished stages are ternary, the running one is on its way, later ones are not begun.

        Args:
            ramp: Share of a stage's steps in which the strength rises to 1.
        """
        rising = max(1.0, ramp * self.stage_steps)
        running = 1.0 if self.retries else min(1.0, (self.stage_step + 1) / rising)
        everything = bit_linears(self.model)
        for i, names in enumerate(self.groups_of_names):
            strength = 1.0 if i < self.stage else running if i == self.stage else 0.0
            for name in names:
                everything[name].strength = 0.0 if name in self.reverted else strength

    def prune(self, target: float) -> None:
        """Prune more tiles the further the stages are: fast at first, slowly at the end.

        The cubic schedule is that of Zhu and Gupta (arXiv 1710.01878).

        Args:
            target: Share of the tiles pruned at the end of the stages.
        """
        steps = self.stage_steps * len(self.groups_of_names)
        done = min(1.0, (self.stage * self.stage_steps + self.stage_step + 1) / max(1, steps))
        share = target * (1 - (1 - done) ** 3)
        for layer in self.layers().values():
            layer.prune(share)


def finetune_optim(config: RunConfig) -> OptimConfig:
    """Learning rates and schedule of the fine-tuning; no weight decay, which pulls to zero."""
    wanted = config.bitnet.finetune
    return config.cognate.optim.model_copy(
        update={
            "muon_lr": wanted.muon_lr,
            "adamw_lr": wanted.adamw_lr,
            "grokfast_lambda": wanted.grokfast_lambda,
            "warmup_steps": wanted.warmup_steps,
            "cooldown_share": wanted.cooldown_share,
            "weight_decay": 0.0,
        }
    )


def start_finetuning(
    config: RunConfig,
    model: CognateLM,
    teacher: CognateLM,
    data: BitData,
    groups: list[list[str]],
    steps: int,
) -> Finetuning:
    """A fine-tuning at step 0; without groups it trains what the model is from the start.

    Args:
        config: The run.
        model: The student.
        teacher: In evaluation mode, on the same device.
        data: What it trains on.
        groups: Matrices by stage.
        steps: Steps in all.
    """
    wanted = config.bitnet
    hidden = model.hidden_matrices() if wanted.finetune.optimizer == "hybrid" else {}
    staged = int(wanted.quantise.staged_share * steps)
    return Finetuning(
        model=model,
        teacher=teacher,
        groups_of_names=groups,
        stage_steps=max(1, staged // len(groups)) if groups else 0,
        optimizer=HybridOptimizer(
            dict(model.named_parameters()), hidden, finetune_optim(config), steps
        ),
        sampler=MixSampler(
            {n: len(c) for n, c in data.reasoning.prepared.train.items()},
            config.seed * 1000 + SEED,
        ),
        total_steps=steps,
    )


@dataclass(frozen=True, slots=True)
class FinetuneStep:
    """What one step measured.

    Attributes:
        loss: What was minimised.
        label_loss: Cross-entropy of the last recursion step with the labels, nats a token.
        kl: KL from the teacher, last recursion step, nats a token.
        stats: The optimiser's.
        tokens: Non-padding tokens.
        wall_s: Seconds.
    """

    loss: float
    label_loss: float
    kl: float
    stats: StepStats
    tokens: int
    wall_s: float


def take_finetune_step(
    training: Finetuning,
    config: RunConfig,
    data: BitData,
    behaviour: Behaviour,
    resources: TrainingResources,
) -> FinetuneStep:
    """One optimiser step of distillation.

    Args:
        training: Changed in place.
        config: The run.
        data: Its data.
        behaviour: How the model is deployed; the write budget counts, nothing halts in training.
        resources: Micro-batches and logits.
    """
    started = time.perf_counter()
    wanted, prepared = config.bitnet.finetune, data.reasoning.prepared
    model, device = training.model, training.model.rope_cos.device
    items = training.sampler.draw(data.weights, wanted.batch_size)
    batches = micro_batches(
        prepared.train, items, resources.micro_batch_tokens.value, prepared.tokenizer.pad_id
    )
    weight = sum(b.loss_weight(wanted.answer_weight) for b in batches)
    tokens, targets = sum(b.valid_count for b in batches), sum(b.target_count for b in batches)
    model.train()
    training.optimizer.zero_grad()
    total, labels, kl = 0.0, 0.0, 0.0
    records = []
    for batch in batches:
        batch = batch.to(device)
        record = ForwardRecord(valid=batch.valid)
        parts = distillation_loss(
            model,
            training.teacher,
            batch.ids,
            batch.targets,
            batch.valid,
            Behaviour(
                write_budget=behaviour.write_budget, recursion_steps=behaviour.recursion_steps
            ),
            weight,
            tokens,
            label_share=wanted.label_share,
            halting_weight=wanted.halting_weight,
            early_stride=config.cognate.early_stride,
            vocab_chunk=resources.vocab_chunk.value,
            record=record,
            weights=torch.where(batch.answer, wanted.answer_weight, torch.ones((), device=device)),
        )
        parts.total.backward()  # type: ignore[no-untyped-call]
        total += float(parts.total.detach())
        labels += float(parts.label_sum)
        kl += float(parts.kl_sum)
        records.append(record)
    stats = training.optimizer.step(training.step)
    if not stats.skipped:
        clip_logits(model, records, config.cognate.optim.qk_clip_tau)
    training.step += 1
    if training.staged:
        training.stage_step += 1
    return FinetuneStep(
        loss=total,
        label_loss=labels / targets,
        kl=kl / targets,
        stats=stats,
        tokens=tokens,
        wall_s=time.perf_counter() - started,
    )
