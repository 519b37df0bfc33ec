"""What Phase 1 measures of its models, all on the same held-out data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agentforge.data.prepare import Prepared
from agentforge.data.splits import Split
from agentforge.evals.items import ItemResults, measure
from agentforge.model.behaviour import Behaviour
from agentforge.model.decode import Decoder
from agentforge.model.language_model import CognateLM
from agentforge.phases.cognate.diversity import Profile

TIMED_TOKENS = 32
"""Tokens decoded for the displayed time per token."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One model on the report split.

    Attributes:
        name: Model.
        behaviour: How it was run.
        results: Per-item results by dataset or skill.
        profile: Halting, memory, block evaluations over all of it.
        ms_per_token: Clock time of decoding one token, batch 1; displayed, never gated.
    """

    name: str
    behaviour: Behaviour
    results: dict[str, ItemResults]
    profile: Profile
    ms_per_token: float

    def accuracy(self, names: list[str]) -> float:
        """Mean exact match over datasets or skills."""
        return float(np.mean([self.results[n].accuracy for n in names]))

    def loss(self, names: list[str]) -> tuple[float, int]:
        """Nats per target token over datasets, and those tokens."""
        total = sum(float(self.results[n].loss_sum.sum()) for n in names)
        count = sum(int(self.results[n].targets.sum()) for n in names)
        return total / count, count

    def correct(self, names: list[str]) -> NDArray[np.bool_]:
        """Right or wrong of every item of these skills, in order."""
        return np.concatenate([self.results[n].correct for n in names])


def measure_model(
    name: str,
    model: CognateLM,
    behaviour: Behaviour,
    data: Prepared,
    split: Split,
    batch: int,
    between: Callable[[], None] | None = None,
    only: list[str] | None = None,
    timed: bool = True,
) -> Measured:
    """Measure a model on every held-out corpus of a split, or on `only` some."""
    results = {
        n: measure(model, corpus, behaviour, data.tokenizer.pad_id, batch, between)
        for n, corpus in data.held_out[split].items()
        if only is None or n in only
    }
    tokens = sum(int(r.tokens.sum()) for r in results.values())
    steps = sum(float((r.steps * r.tokens).sum()) for r in results.values()) / tokens
    writes = sum(float(r.writes * r.tokens.sum()) for r in results.values()) / tokens
    budget = behaviour.write_budget
    return Measured(
        name=name,
        behaviour=behaviour,
        results=results,
        profile=Profile(
            halting_steps=steps,
            memory_usage=writes / budget if budget and writes == writes else 0.0,
            block_evaluations=block_evaluations(model, steps),
        ),
        ms_per_token=decode_ms(model, behaviour) if timed else float("nan"),
    )


def block_evaluations(model: CognateLM, steps: float) -> float:
    """Blocks evaluated per token at a mean number of recursion steps."""
    config = model.config
    return config.n_prelude + config.n_core * config.latent_steps * steps


def decode_ms(model: CognateLM, behaviour: Behaviour) -> float:
    """Milliseconds of clock time to decode one token at batch 1 with the reference decoder."""
    model.eval()
    decoder = Decoder(model, behaviour, 1)
    token = torch.zeros(1, dtype=torch.int64, device=model.rope_cos.device)
    count = min(TIMED_TOKENS, model.config.context)
    decoder.step(token)
    started = time.perf_counter()
    for _ in range(count - 1):
        decoder.step(token)
    return 1000 * (time.perf_counter() - started) / (count - 1)
