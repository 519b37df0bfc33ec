"""TIES: trim, elect signs, merge what agrees (Yadav et al. 2023, arXiv 2306.01708, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ties(
    base: Tensor,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    scale: float = 1.0,
) -> Tensor:
    """``base + scale * (mean of the trimmed deltas that agree with the elected sign)``.

    Trimmed a tensor at a time (the paper trims over the whole vector; a tensor keeps its share, as
    in mergekit). The elected sign is that of the weighted sum of trimmed deltas, positive where it
    is 0; entries that were trimmed agree with nothing. The mean is weighted by `weights` over the
    models that agree.

    Args:
        base: What deltas are taken from.
        tensors: The models' tensors, each of the base's shape.
        weights: One a model; a negative one turns its delta round.
        density: Share of the largest entries kept of each delta, above 0 and up to 1 (paper: 0.2).
        scale: Of the merged delta, the paper's lambda (about 1).

    Raises:
        ValueError: A density out of range, or another number of weights.
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density {density} must be above 0 and at most 1")
    if len(tensors) != len(weights):
        raise ValueError(f"{len(tensors)} tensors with {len(weights)} weights")
    deltas = torch.stack(
        [trim(x - base, density) * w for x, w in zip(tensors, weights, strict=True)]
    )
    elected = torch.where(deltas.sum(0) >= 0, 1.0, -1.0).to(base.dtype)
    agrees = deltas.sign() == elected
    sizes = torch.tensor([abs(w) for w in weights], dtype=base.dtype, device=base.device)
    share = (agrees * sizes.view(-1, *[1] * base.ndim)).sum(0)
    mean = (deltas * agrees).sum(0) / torch.where(share > 0, share, torch.ones_like(share))
    return base + scale * mean


def trim(delta: Tensor, density: float) -> Tensor:
    """The ``int(density * numel)`` entries of largest magnitude, at least one; the others are 0.

    Equal magnitudes at the border: the earlier ones in memory stay, so that the count is exact.
    """
    count = max(1, int(density * delta.numel()))
    if count >= delta.numel():
        return delta.clone()
    sizes = delta.abs().flatten()
    border = sizes.kthvalue(delta.numel() - count + 1).values
    kept = sizes > border
    at_border = torch.nonzero(sizes == border).flatten()
    kept[at_border[: count - int(kept.sum())]] = True
    return delta * kept.view(delta.shape)
