"""Linear: the weighted mean (model soups, Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from agentforge.merge.pieces import blank, pieces


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``sum(w_i x_i) / sum(w_i)``.

    Computed as ``x_0 + sum(w_i (x_i - x_0)) / sum(w_i)``: equal tensors give that tensor bit for
    bit, whatever the weights.

    Args:
        tensors: One or more of any one shape and floating dtype.
        weights: As many; negative ones are allowed, their sum is not 0.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ValueError: No tensors, another number of weights, or weights that sum to 0.
    """
    total = sum(weights)
    if not tensors or len(tensors) != len(weights) or total == 0.0:
        raise ValueError(f"{len(tensors)} tensors with weights {list(weights)}")
    merged = blank(tensors[0])
    for out, first, *others in pieces(merged, *tensors):
        out.copy_(first)
        for other, weight in zip(others, weights[1:], strict=True):
            out.add_(other - first, alpha=weight / total)
    return merged


def weighted_deltas(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], scale: float = 1.0
) -> Tensor:
    """``base + scale * sum(w_i (x_i - base))``: task arithmetic (arXiv 2212.04089, eq. 1).

    Weights that sum to 1 give :func:`linear` without the base; else the base takes the rest.

    Raises:
        ValueError: Another number of weights than tensors.
    """
    if len(tensors) != len(weights):
        raise ValueError(f"{len(tensors)} tensors with {len(weights)} weights")
    merged = blank(base)
    for out, origin, *parts in pieces(merged, base, *tensors):
        out.zero_()
        for part, weight in zip(parts, weights, strict=True):
            out.add_(part - origin, alpha=weight)
        out.mul_(scale).add_(origin)
    return merged
