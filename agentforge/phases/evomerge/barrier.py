"""Whether models lie in one basin: the loss on the straight line between each two of them.

Linear mode connectivity (Frankle et al. 2020, arXiv 1912.05671): branches of one trunk have no hill
between them; models of different random starts have one, and their mean is worth nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from agentforge.errors import PreflightError
from agentforge.events import LogLine
from agentforge.merge.linear import linear
from agentforge.phases.evomerge.evaluator import Between, Evaluator
from agentforge.phases.evomerge.fitness import Results
from agentforge.phases.evomerge.measuring import Job
from agentforge.phases.evomerge.parents import SAME_BASE, Family, Parent
from agentforge.run.context import RunContext

POINTS = (0.25, 0.5, 0.75)
"""Places on the line between two models."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """The line between two models.

    Attributes:
        pair: Their names.
        ends: Loss of each, nats per target token, mean over skills.
        losses: Loss at `POINTS`.
    """

    pair: tuple[str, str]
    ends: tuple[float, float]
    losses: tuple[float, ...]

    @property
    def height(self) -> float:
        """Most loss above the straight line between the ends; below 0 when there is none."""
        first, last = self.ends
        return max(
            loss - ((1 - t) * first + t * last) for t, loss in zip(POINTS, self.losses, strict=True)
        )


def scan_barriers(
    context: RunContext,
    family: Family,
    ends: dict[str, Results],
    evaluator: Evaluator,
    between: Between,
) -> list[Barrier]:
    """Measure the lines of all three pairs on the search split, run as the base is.

    Args:
        context: The run.
        family: The models.
        ends: Results of the three on the search split with the base's behaviour.
        evaluator: Measures.
        between: Commands.

    Raises:
        PreflightError: A line rises more than ``evomerge.max_barrier`` above its ends.
    """
    models = family.models
    pairs = [(a, b) for i, a in enumerate(models) for b in models[i + 1 :]]
    answers = evaluator.measure(_points(family, pairs), between)
    losses = iter([mean_loss(a.results) for a in answers])
    found = [
        Barrier(
            pair=(a.name, b.name),
            ends=(mean_loss(ends[a.name]), mean_loss(ends[b.name])),
            losses=tuple(next(losses) for _ in POINTS),
        )
        for a, b in pairs
    ]
    for barrier in found:
        text = f"between {' and '.join(barrier.pair)} the loss rises by {barrier.height:.3f}"
        context.emit(LogLine(level="info", source="evomerge", text=text))
    limit = context.config.evomerge.max_barrier
    # "not <=": a loss that is not finite is no line either.
    high = [b for b in found if not b.height <= limit]
    if high and context.config.evomerge.require_common_base:
        numbers = "; ".join(
            f"{' and '.join(b.pair)}: {b.height:.3f} nats per token above their line" for b in high
        )
        raise PreflightError(
            f"these models lie in different basins ({numbers}; evomerge.max_barrier allows "
            f"{limit:g}): what lies between them has learnt nothing",
            remedy=SAME_BASE,
        )
    return found


def _points(family: Family, pairs: list[tuple[Parent, Parent]]) -> Iterator[Job]:
    behaviour = family.base.behaviour
    for a, b in pairs:
        for t in POINTS:
            weights = {
                name: linear([tensor, b.weights[name]], [1 - t, t])
                if tensor.is_floating_point()
                else tensor
                for name, tensor in a.weights.items()
            }
            yield Job(weights, behaviour, "search")


def mean_loss(results: Results) -> float:
    """Nats per target token, mean over skills."""
    return float(np.mean([r.loss for r in results.values()]))
