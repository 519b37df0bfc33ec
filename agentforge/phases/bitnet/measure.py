"""What Phase 4 measures of a model: answers with thoughts, skills, loss, halting, zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from agentforge_kernels import reference
from numpy.typing import NDArray
from torch import Tensor

from agentforge.config.schema import RunConfig
from agentforge.data.splits import Split
from agentforge.evals.items import measure
from agentforge.evals.stats import Interval
from agentforge.model.behaviour import Behaviour
from agentforge.model.bit_linear import BitLinear, bit_linears
from agentforge.model.language_model import CognateLM
from agentforge.phases.bitnet.data import BitData
from agentforge.phases.bitnet.inputs import visit_inputs
from agentforge.phases.quietstar.limits import most_tokens
from agentforge.thinking.questions import ask, first_of_each
from agentforge.thinking.thought import ThoughtReader

THINKING = "thinking"
RESAMPLES = 1000
ZERO_ITEMS = 8
"""Training items of each corpus in which zero activations are counted."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One model on held-out items.

    Attributes:
        name: Its name in tables.
        tasks: Score in [0, 1] of every item by task: right or wrong of answers with thoughts (at
            the deployment temperature) and of the world's skills; for records the mean probability
            of a target token.
        converged: Share of free generations that keep to the form.
        steps: Mean recursion steps a token, skills only.
        loss: Nats per target token of the skills.
    """

    name: str
    tasks: dict[str, NDArray[np.float64]]
    converged: float
    steps: float
    loss: float

    @property
    def accuracy(self) -> float:
        """Mean over the tasks of their mean score: every task counts the same."""
        return float(np.mean([t.mean() for t in self.tasks.values()]))

    @property
    def items(self) -> int:
        """Items over all tasks."""
        return sum(len(t) for t in self.tasks.values())


def measure_scores(
    name: str,
    config: RunConfig,
    model: CognateLM,
    behaviour: Behaviour,
    data: BitData,
    split: Split,
    between: Callable[[], None],
) -> Scores:
    """Measure a model on the search or the report split; every model meets the same draws."""
    reasoning = data.reasoning
    pool = reasoning.search if split == "search" else reasoning.report
    questions = first_of_each(pool, config.bitnet.report_items)
    judged = ask(
        model,
        behaviour,
        ThoughtReader(reasoning.prepared.tokenizer),
        questions,
        temperature=config.quietstar.temperature,
        seed=config.seed,
        max_new_tokens=most_tokens(config, model),
        between=between,
    )
    tasks = {THINKING: judged.right.astype(np.float64)}
    held, world = reasoning.prepared.held_out[split], config.data.source == "world"
    steps = tokens = loss = targets = 0.0
    for skill in reasoning.replayed:
        if skill not in held:
            continue
        found = measure(
            model,
            held[skill],
            behaviour,
            reasoning.prepared.tokenizer.pad_id,
            config.cognate.eval_batch,
            between,
            memory=False,
        )
        right = found.correct.astype(np.float64)
        tasks[skill] = right if world else np.exp(-found.loss_sum / found.targets)
        steps += float((found.steps * found.tokens).sum())
        tokens += float(found.tokens.sum())
        loss += float(found.loss_sum.sum())
        targets += float(found.targets.sum())
    return Scores(
        name=name,
        tasks=tasks,
        converged=judged.share(judged.converged),
        steps=steps / tokens if tokens else float("nan"),
        loss=loss / targets if targets else float("nan"),
    )


def relative_drop(before: Scores, after: Scores, seed: int) -> Interval:
    """Share of the accuracy that was lost, with its 95 % interval; negative: it was gained.

    Items are drawn with replacement within each task, both models' scores of an item together. NaN
    where the model before had nothing right.
    """
    rng = np.random.default_rng(seed)
    drops = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        old, new = [], []
        for task, scores in before.tasks.items():
            chosen = rng.integers(0, len(scores), len(scores))
            old.append(scores[chosen].mean())
            new.append(after.tasks[task][chosen].mean())
        drops[i] = _drop(float(np.mean(old)), float(np.mean(new)))
    low, high = np.nanquantile(drops, [0.025, 0.975]) if before.accuracy else (np.nan, np.nan)
    value = _drop(before.accuracy, after.accuracy)
    return Interval(mean=value, low=float(low), high=float(high), n=after.items)


def _drop(before: float, after: float) -> float:
    """Share lost; NaN where there was nothing to lose."""
    return 1 - after / before if before > 0 else float("nan")


def zero_activations(
    model: CognateLM, behaviour: Behaviour, data: BitData, tokens: int
) -> dict[str, float]:
    """Share of int8 activations that are exactly 0 in the input of every ternary matrix.

    What the activation-sparse kernel can leave out; high only behind the squared ReLU.
    """
    zeros: dict[str, list[tuple[int, int]]] = {}
    names = {layer: name for name, layer in bit_linears(model).items() if layer.strength == 1.0}

    def note(layer: BitLinear, x: Tensor) -> None:
        x = layer.normalised(x)
        q = reference.quantize_activations(x.reshape(-1, x.shape[-1]))[0]
        zeros.setdefault(names[layer], []).append((int((q == 0).sum()), q.numel()))

    visit_inputs(model, list(names), note, behaviour, data, items=ZERO_ITEMS, tokens=tokens)
    return {n: sum(z for z, _ in rows) / sum(c for _, c in rows) for n, rows in zeros.items()}
