"""DFS, here "deep feature selection": a mean weighted by how concentrated each model's tensor is.

The documents' code divides by the variance *across models* at every position, which is the same
number for all models and cancels: what is left is the plain mean. Here the variance is taken over
the entries of one model's tensor, so models differ. (Sakana's DFS, data flow search over sequences
of layers, is another thing: ``data_flow``.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agentforge.merge.linear import linear

SMALLEST_VARIANCE = 1e-12
"""Below, a tensor is constant (a fresh norm gain) and its importance means nothing."""


def importances(sources: Sequence[Tensor]) -> list[float]:
    """``1 / variance`` of each source's entries, scaled to sum to 1; equal if any is constant."""
    variances = [float(torch.var(source.double(), correction=0)) for source in sources]
    if not all(variance > SMALLEST_VARIANCE for variance in variances):
        return [1.0 / len(sources)] * len(sources)
    inverse = [1.0 / variance for variance in variances]
    return [value / sum(inverse) for value in inverse]


def importance_merge(sources: Sequence[Tensor]) -> Tensor:
    """The mean of `sources` weighted by :func:`importances`.

    Args:
        sources: One or more tensors of one shape.
    """
    return linear(sources, importances(sources))
