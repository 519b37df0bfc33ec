"""TIES: trim, elect signs, merge what agrees (Yadav et al. 2023, arXiv 2306.01708, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentforge.merge.pieces import blank, pieces


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
    borders = [_border(x, base, density) for x in tensors]
    merged = blank(base)
    start = 0
    for out, origin, *parts in pieces(merged, base, *tensors):
        deltas = [
            border.trim_(part - origin, start).mul_(w)
            for part, border, w in zip(parts, borders, weights, strict=True)
        ]
        start += out.numel()
        total = deltas[0].clone()
        for delta in deltas[1:]:
            total += delta
        # +1 and -1, and below 1 where a sign agrees: torch's bool masks take ten times as long.
        elected = total.ge_(0.0).mul_(2.0).sub_(1.0)
        out.zero_()
        share = torch.zeros_like(out)
        for delta, weight in zip(deltas, weights, strict=True):
            agreeing = delta.mul_(elected).clamp_(min=0.0)
            out += agreeing
            share.add_(agreeing.sign_(), alpha=abs(weight))
        share += share.clone().eq_(0.0)
        out.mul_(elected).div_(share).mul_(scale).add_(origin)
    return merged


def trim(delta: Tensor, density: float) -> Tensor:
    """The ``int(density * numel)`` entries of largest magnitude, at least one; the others are 0.

    Equal magnitudes at the border: the earlier ones in memory stay, so that the count is exact.
    """
    border = _border(delta, torch.zeros_like(delta), density)
    return border.trim_(delta.flatten().clone(), 0).view(delta.shape)


@dataclass(frozen=True, slots=True)
class _Border:
    """Where a delta is trimmed.

    Attributes:
        size: Magnitudes below are dropped.
        last: Place from which on magnitudes of just that size are dropped too.
    """

    size: float
    last: int

    def trim_(self, delta: Tensor, start: int) -> Tensor:
        """Trim a flat piece in place; its first entry's place in the whole is `start`."""
        sizes = delta.abs()
        split = max(0, self.last - start)
        sizes[:split].ge_(self.size)
        sizes[split:].gt_(self.size)
        return delta.mul_(sizes)


def _border(tensor: Tensor, base: Tensor, density: float) -> _Border:
    count = max(1, int(density * base.numel()))
    if count >= base.numel():
        return _Border(0.0, base.numel())
    delta = blank(base)
    for out, part, origin in pieces(delta, tensor, base):
        torch.sub(part, origin, out=out).abs_()
    flat = delta.view(-1)
    sizes = (flat if flat.dtype == torch.float64 else flat.float()).cpu().numpy()
    size = kth_smallest(sizes, base.numel() - count)
    kept = np.count_nonzero(sizes >= size)
    if kept <= count:
        return _Border(size, base.numel())
    equal = np.flatnonzero(sizes == size)
    return _Border(size, int(equal[len(equal) - (kept - count)]))


def kth_smallest(sizes: NDArray[np.floating], index: int) -> float:
    """What stands at `index` once the magnitudes are sorted; exact, none is NaN.

    Zeros are counted apart where they are many (a token that never occurred leaves a row of them):
    of many equal values NumPy's partition, else ten times as fast as torch's, takes fifteen times
    as long.
    """
    zeros = int(np.count_nonzero(sizes == 0.0))
    if index < zeros:
        return 0.0
    if zeros > len(sizes) // 16:
        sizes, index = sizes[sizes != 0.0], index - zeros
    return float(np.partition(sizes, index)[index])
