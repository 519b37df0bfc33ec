"""Distances between models, as deltas from their common base and as raw weights.

Models of one base differ by a few per cent of their length, so the cosine distance of raw weights
is near 0 whatever they have learnt; that of deltas uses the whole range (0 the same direction, 1
orthogonal, 2 opposite).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Pairwise figures of n models, (n, n) float64 each, symmetric.

    Attributes:
        delta_cosine: Cosine of deltas from the base.
        raw_cosine: Cosine of the weights themselves.
        distance: Euclidean distance of the weights.
        norms: Length of each delta, (n,).
        base_norm: Length of the base's weights.
    """

    delta_cosine: NDArray[np.float64]
    raw_cosine: NDArray[np.float64]
    distance: NDArray[np.float64]
    norms: NDArray[np.float64]
    base_norm: float

    @property
    def diversity(self) -> float:
        """Mean pairwise cosine distance of deltas; 0 for fewer than two models."""
        return _mean_of_pairs(1.0 - self.delta_cosine)

    @property
    def raw_diversity(self) -> float:
        """Mean pairwise cosine distance of raw weights."""
        return _mean_of_pairs(1.0 - self.raw_cosine)


@torch.no_grad()
def geometry(base: Tensors, models: Sequence[Tensors]) -> Geometry:
    """Compare models of one base; all floating tensors count, a tensor at a time in float64."""
    n = len(models)
    deltas, raw = np.zeros((n, n)), np.zeros((n, n))
    squared = 0.0
    for name, tensor in base.items():
        if not tensor.is_floating_point():
            continue
        origin = tensor.double().flatten()
        rows = torch.stack([m[name].double().flatten() for m in models])
        raw += (rows @ rows.T).cpu().numpy()
        rows -= origin
        deltas += (rows @ rows.T).cpu().numpy()
        squared += float(origin @ origin)
    lengths = np.diag(deltas)
    apart = lengths[:, None] + lengths[None, :] - 2 * deltas
    return Geometry(
        delta_cosine=_cosines(deltas),
        raw_cosine=_cosines(raw),
        distance=np.sqrt(np.maximum(apart, 0.0)),
        norms=np.sqrt(lengths),
        base_norm=squared**0.5,
    )


def _cosines(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines from inner products; a vector of length 0 has cosine 1 with everything."""
    lengths = np.sqrt(np.diag(products))
    scale = lengths[:, None] * lengths[None, :]
    cosine = np.divide(products, scale, out=np.ones_like(products), where=scale > 0)
    clipped: NDArray[np.float64] = np.clip(cosine, -1.0, 1.0)
    return clipped


def _mean_of_pairs(matrix: NDArray[np.float64]) -> float:
    n = len(matrix)
    if n < 2:
        return 0.0
    return float(matrix[np.triu_indices(n, 1)].mean())
