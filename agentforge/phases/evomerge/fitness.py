"""The fitness of a model: four counted terms, each relative to the mean of the three parents.

    fitness = w_ppl (1/ppl)/ref + w_acc acc/ref + w_spd (1/blocks)/ref + w_mem (1/bytes)/ref

`ref` is the parents' mean of the term, so that their mean fitness is 1 and +20 % means what it
says. (The documents add perplexity, accuracy, seconds and megabytes as they are: then the two
constant terms are most of the sum, spec of the mission 2.8.) Weights follow the measured size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentforge.evals.items import ItemResults
from agentforge.sizing import FitnessBand

Results = Mapping[str, ItemResults]
"""Per-item results by skill or dataset."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What one model is worth, before it is compared with anything.

    Attributes:
        perplexity: exp of nats per target token, mean over skills.
        accuracy: Mean score of an item over skills: exact match, or `item_scores`' probability.
        blocks: Blocks evaluated per token, counted.
        bytes: Bytes of the weights.
        by_skill: Mean item score by skill.
        items: Items measured.
    """

    perplexity: float
    accuracy: float
    blocks: float
    bytes: int
    by_skill: dict[str, float]
    items: int

    @property
    def finite(self) -> bool:
        """False for a model whose forward gives NaN or Inf."""
        return math.isfinite(self.perplexity) and math.isfinite(self.blocks)

    @property
    def goods(self) -> tuple[float, float, float, float]:
        """The four terms, more is better: perplexity, accuracy, speed, memory."""
        return 1.0 / self.perplexity, self.accuracy, 1.0 / self.blocks, 1.0 / self.bytes


@dataclass(frozen=True, slots=True)
class Reference:
    """The parents' mean of each term on some items, and the weights of the terms.

    Where the parents' mean accuracy is 0 (exact match on real records at this size) its weight
    goes to perplexity.
    """

    means: tuple[float, float, float, float]
    weights: tuple[float, float, float, float]

    def fitness(self, terms: Terms) -> float:
        """The composite; 0 for a model that is not finite."""
        if not terms.finite:
            return 0.0
        return sum(
            weight * good / mean
            for weight, good, mean in zip(self.weights, terms.goods, self.means, strict=True)
            if weight
        )


def item_scores(results: ItemResults, exact: bool) -> NDArray[np.float64]:
    """Score of every item in [0, 1].

    Args:
        results: Of one skill.
        exact: 1 where all target tokens are right; else the geometric mean of the target tokens'
            probabilities (real records are hardly ever written exactly at this size).
    """
    if exact:
        return results.correct.astype(np.float64)
    scores: NDArray[np.float64] = np.exp(-results.loss_sum / results.targets)
    return np.nan_to_num(scores, nan=0.0)


def terms(results: Results, exact: bool, blocks_at: BlockCount, model_bytes: int) -> Terms:
    """Sum up what was measured.

    Args:
        results: By skill.
        exact: See `item_scores`.
        blocks_at: How many blocks a token costs at a mean number of recursion steps.
        model_bytes: Bytes of the weights.
    """
    tokens = sum(int(r.tokens.sum()) for r in results.values())
    steps = sum(float((r.steps * r.tokens).sum()) for r in results.values()) / tokens
    by_skill = {name: float(item_scores(r, exact).mean()) for name, r in results.items()}
    loss = float(np.mean([r.loss for r in results.values()]))
    return Terms(
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        accuracy=float(np.mean(list(by_skill.values()))),
        blocks=blocks_at.per_token(steps),
        bytes=model_bytes,
        by_skill=by_skill,
        items=sum(len(r.correct) for r in results.values()),
    )


@dataclass(frozen=True, slots=True)
class BlockCount:
    """Blocks one token passes: a fixed part and one for every recursion step."""

    fixed: int
    per_step: int

    def per_token(self, steps: float) -> float:
        """At a mean number of recursion steps."""
        return self.fixed + self.per_step * steps


def reference(parents: Sequence[Terms], band: FitnessBand) -> Reference:
    """What the parents' mean is, and the weights of their size.

    Raises:
        ValueError: A parent that is not finite.
    """
    if not all(p.finite for p in parents):
        raise ValueError("a parent's loss is not finite")
    columns = zip(*(p.goods for p in parents), strict=True)
    perplexity, accuracy, speed, memory = (sum(c) / len(parents) for c in columns)
    w_perplexity, w_accuracy = band.perplexity, band.accuracy
    if accuracy <= 0.0:
        w_perplexity, w_accuracy = w_perplexity + w_accuracy, 0.0
    return Reference(
        (perplexity, accuracy, speed, memory),
        (w_perplexity, w_accuracy, band.speed, band.memory),
    )


def first_items(results: Results, count: int) -> dict[str, ItemResults]:
    """The first `count` items of every skill, as if only they had been measured.

    Means over the whole corpus (`writes`, `gate`, counts by position) are left as they are.
    """
    import dataclasses

    return {
        name: dataclasses.replace(
            r,
            correct=r.correct[:count],
            loss_sum=r.loss_sum[:count],
            targets=r.targets[:count],
            steps=r.steps[:count],
            tokens=r.tokens[:count],
            difficulty=r.difficulty[:count],
        )
        for name, r in results.items()
    }
