"""How far two texts, two distributions or two verdicts are apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Fewest insertions, deletions and substitutions from a to b (Levenshtein 1966)."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        now = [i]
        for j, y in enumerate(b, 1):
            now.append(min(before[j] + 1, now[j - 1] + 1, before[j - 1] + (x != y)))
        before = now
    return before[-1]


def js_divergence(p: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float64]:
    """Jensen-Shannon divergence of rows of two (n, V) distributions, bits in [0, 1]: (n,)."""
    a, b = p.astype(np.float64), q.astype(np.float64)
    middle = (a + b) / 2

    def kl(x: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(x > 0, x * np.log2(x / middle), 0.0)
        found: NDArray[np.float64] = terms.sum(-1)
        return found

    return (kl(a) + kl(b)) / 2


def phi(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Correlation of two verdicts; NaN when one of them never varies."""
    if len(a) == 0 or a.all() or b.all() or not a.any() or not b.any():
        return float("nan")
    return float(np.corrcoef(a.astype(float), b.astype(float))[0, 1])
