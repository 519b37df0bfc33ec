"""How sure a measured figure is: standard errors, intervals, paired comparison, disagreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of items that were right.

    Attributes:
        value: Mean score, in [0, 1]; NaN when nothing was measured.
        n: Items.
        stderr: Standard error of `value` over items (not over training seeds); NaN when n is 0.
    """

    value: float
    n: int
    stderr: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its two-sided bootstrap interval.

    Attributes:
        mean: Mean over the items.
        low: Lower end.
        high: Upper end.
        n: Items.
    """

    mean: float
    low: float
    high: float
    n: int


def accuracy(scores: Sequence[float]) -> Accuracy:
    """Mean score and its standard error.

    The standard error is ``sqrt(p (1 - p) / n)`` for scores of 0 and 1 and the population
    standard deviation over ``sqrt(n)`` in general, which is the same thing.

    Args:
        scores: One number in [0, 1] an item.

    Raises:
        ValueError: A score outside [0, 1].
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        return Accuracy(value=float("nan"), n=0, stderr=float("nan"))
    if not ((values >= 0.0) & (values <= 1.0)).all():
        raise ValueError("scores must lie in [0, 1]")
    stderr = float(values.std()) / math.sqrt(values.size)
    return Accuracy(value=float(values.mean()), n=values.size, stderr=stderr)


def wilson_interval(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); unlike +-2 s.e. it is honest near 0 and 1.

    Args:
        share: Observed proportion.
        n: Items, at least 1.
        z: Normal quantile; the default gives 95 %.

    Raises:
        ValueError: `share` outside [0, 1] or `n` below 1.
    """
    if n < 1 or not 0.0 <= share <= 1.0:
        raise ValueError(f"share {share} must lie in [0, 1] and n {n} must be positive")
    shrink = 1.0 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_bootstrap(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Interval of the mean difference ``ours - theirs`` on the same items.

    Items are drawn with replacement, both scores of an item together, so that the difficulty of an
    item cancels. Percentile interval.

    Args:
        ours: Score of each item.
        theirs: Score of the same items in the same order.
        seed: Seed of the resampling.
        resamples: How many samples are drawn.
        level: Coverage, in (0, 1).

    Raises:
        ValueError: No items, lengths that differ, or settings out of range.
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"paired scores need equal, non-zero lengths, got {a.shape}, {b.shape}")
    if resamples < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"resamples {resamples} must be >= 1 and level {level} in (0, 1)")
    difference = a - b
    rng = np.random.default_rng(seed)
    means = np.empty(resamples, dtype=np.float64)
    for i in range(resamples):  # one row at a time: n x resamples indices would be 160 MB at 10k
        means[i] = difference[rng.integers(0, a.size, a.size)].mean()
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(mean=float(difference.mean()), low=float(low), high=float(high), n=a.size)


def disagreement_rate(a: Sequence[object], b: Sequence[object]) -> float:
    """Share of items on which two models give different answers.

    Compares the answers themselves, not their correctness: two models that are wrong in different
    ways disagree.

    Raises:
        ValueError: No items, or lengths that differ.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"answers need equal, non-zero lengths, got {len(a)} and {len(b)}")
    return sum(x != y for x, y in zip(a, b, strict=True)) / len(a)
