"""Held-out losses item by item, and how much one model's are above another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentforge.data.corpus import Corpus
from agentforge.evals.items import measure
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM


@dataclass(frozen=True, slots=True)
class Losses:
    """Cross-entropy of every item.

    Attributes:
        sums: Nats of the item's targets, fp64.
        targets: Its target tokens.
    """

    sums: NDArray[np.float64]
    targets: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Nats per target token."""
        return float(self.sums.sum() / self.targets.sum())


@dataclass(frozen=True, slots=True)
class Rise:
    """How much loss was added, in nats per target token, and its standard error over items."""

    value: float
    stderr: float
    n: int

    def exceeds(self, budget: float) -> bool:
        """Whether it is beyond the budget and beyond two standard errors of noise."""
        return self.value > max(budget, 2 * self.stderr)


def measure_losses(
    model: CognateLM,
    behaviour: Behaviour,
    corpora: Sequence[Corpus],
    pad_id: int,
    batch: int,
    between: Callable[[], None],
) -> Losses:
    """Losses of all items as the model is deployed, halting included."""
    found = [measure(model, c, behaviour, pad_id, batch, between, memory=False) for c in corpora]
    return Losses(
        np.concatenate([f.loss_sum for f in found]), np.concatenate([f.targets for f in found])
    )


def rise(before: Losses, after: Losses) -> Rise:
    """Paired over items; the standard error is that of a ratio of two sums (delta method)."""
    difference = after.sums - before.sums
    tokens, n = before.targets, len(before.sums)
    value = difference.sum() / tokens.sum()
    residual = difference - value * tokens
    return Rise(float(value), float(np.sqrt(n * residual.var(ddof=1)) / tokens.sum()), n)
