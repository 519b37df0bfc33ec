"""What the parts of one of our training steps cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from agentforge.data.batching import MicroBatch
from agentforge.model.attention import window_mask
from agentforge.model.block import Block
from agentforge.model.cross_entropy import weighted_cross_entropy
from agentforge.model.halting import log_halting, prior_kl
from agentforge.model.loss import IGNORE
from agentforge.model.record import ForwardRecord
from bench.training_case import Bench

PARTS = ("attention", "ffn", "memory", "recursion", "head", "optimizer", "rest")


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU time of one call, all threads together: what another job on the machine adds least to."""
    started = time.process_time()
    action()
    return time.process_time() - started


def part_shares(bench: Bench, repeats: int) -> dict[str, float]:
    """Each part's CPU time, alone on the batch's shapes, as a share of a whole step beside it."""
    model, config = bench.ours.model, bench.config.model
    batches = bench.batches
    passes = config.recursion_steps * config.latent_steps
    runs = [(block, 1) for block in model.prelude] + [(block, passes) for block in model.core]

    def share(part: Callable[[MicroBatch, Tensor], list[Tensor]]) -> float:
        found = []
        for _ in range(repeats):
            total = 0.0
            for batch in batches:
                x = torch.randn(*batch.ids.shape, config.d_model, requires_grad=True)
                total += cpu_seconds(partial(_forward_backward, part, batch, x))
            model.zero_grad()
            found.append(total / cpu_seconds(bench.step_ours))
        return statistics.median(found)

    def attention(batch: MicroBatch, x: Tensor) -> list[Tensor]:
        length = batch.ids.shape[1]
        rope, mask = model.rope(length), window_mask(length, config.window, x.device)
        found = []
        for block, times in runs:
            for _ in range(times):
                assert isinstance(block, Block)
                record = ForwardRecord(valid=batch.valid)
                mixed = block.attention.mix(block.attention_norm(x), rope, mask, record, "x")
                found.append(block.attention.out(mixed))
        return found

    def ffn(_batch: MicroBatch, x: Tensor) -> list[Tensor]:
        found = []
        for block, times in runs:
            for _ in range(times):
                assert isinstance(block, Block)
                found.append(block.ffn(block.ffn_norm(x)))
        return found

    def memory(batch: MicroBatch, x: Tensor) -> list[Tensor]:
        found = []
        for block in model.prelude:
            assert isinstance(block, Block)
            if block.memory is not None and block.memory_gate is not None:
                record = ForwardRecord(valid=batch.valid)
                gate = block.memory_gate(x)
                found.append(gate * (block.memory(x, 1.0, record, "x") - x))
        return found

    def recursion(batch: MicroBatch, x: Tensor) -> list[Tensor]:
        answer: Tensor | None = None
        logits = []
        for step in range(config.recursion_steps):
            for _ in range(config.latent_steps):
                latent = model.inject(None if answer is None else x, x, answer)
            answer = model.update_answer(answer, latent)
            if step + 1 < config.recursion_steps:
                logits.append(model.halting(answer))
        assert answer is not None
        log_p = log_halting(torch.stack(logits)) if logits else torch.zeros(1, 1, 1)
        return [answer, prior_kl(log_p, 0.4)]

    def head(batch: MicroBatch, x: Tensor) -> list[Tensor]:
        wanted = batch.targets != IGNORE
        objective = bench.ours.stage.objective
        found = []
        for step in range(config.recursion_steps):
            early = step + 1 < config.recursion_steps
            position = torch.arange(wanted.shape[1])
            sampled = (batch.targets + position) % objective.early_stride == 0
            chosen = wanted & sampled if early else wanted
            labels = batch.targets[chosen]
            weights = torch.ones(labels.shape, requires_grad=True)
            features = model.embedding.features(x[chosen])
            chunk = bench.resources.vocab_chunk.value
            total, _ = weighted_cross_entropy(
                features, model.embedding.table, labels, weights, chunk
            )
            found.append(total)
        return found

    parts = {
        "attention": attention,
        "ffn": ffn,
        "memory": memory,
        "recursion": recursion,
        "head": head,
    }
    shares = {name: share(part) for name, part in parts.items()}
    shares["optimizer"] = _optimizer_share(bench, repeats)
    shares["rest"] = 1 - sum(shares.values())
    return shares


def _forward_backward(
    part: Callable[[MicroBatch, Tensor], list[Tensor]], batch: MicroBatch, x: Tensor
) -> None:
    outputs = part(batch, x)
    torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])


def _optimizer_share(bench: Bench, repeats: int) -> float:
    spent: list[float] = []
    real = bench.ours.optimizer.step

    def step(index: int) -> Any:
        started = time.process_time()
        stats = real(index)
        spent.append(time.process_time() - started)
        return stats

    bench.ours.optimizer.step = step  # type: ignore[method-assign, assignment]
    try:
        whole = [cpu_seconds(bench.step_ours) for _ in range(repeats)]
    finally:
        bench.ours.optimizer.step = real  # type: ignore[method-assign]
    return statistics.median(s / w for s, w in zip(spent, whole, strict=True))


def one_recursion_step(bench: Bench, repeats: int) -> float:
    """Time of a step with R = 1 as a share of a step with all R, taken in turn."""
    stage = bench.ours.stage
    single = replace(stage, train_behaviour=replace(stage.train_behaviour, recursion_steps=1))
    shares = []
    for _ in range(repeats):
        bench.ours.stage = single
        short = cpu_seconds(bench.step_ours)
        bench.ours.stage = stage
        shares.append(short / cpu_seconds(bench.step_ours))
    return statistics.median(shares)
