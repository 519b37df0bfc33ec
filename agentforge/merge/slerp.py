"""SLERP: interpolation along the arc between two tensors (Shoemake 1985, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agentforge.merge.pieces import blank, pieces

PARALLEL = 0.9995
"""Cosine above which the arc is a line: sin(angle) is then below 0.032 and divides badly (the bound
of the common implementations, kept so that results agree with theirs)."""


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """``sin((1-t) th)/sin(th) a + sin(t th)/sin(th) b``, th the angle between a and b.

    The angle is that of the flattened tensors; their lengths are left as they are. Nearly parallel,
    opposite or zero tensors are interpolated linearly. Angles are computed in float64.

    Args:
        a: Result at ``t = 0``; any shape, floating.
        b: Result at ``t = 1``; of the same shape.
        t: Place on the arc, usually 0 to 1.
    """
    cosine = _cosine(a, b)
    merged = blank(a)
    if not abs(cosine) <= PARALLEL:
        for out, left, right in pieces(merged, a, b):
            torch.add(left, (right - left).mul_(t), out=out)
        return merged
    angle = math.acos(cosine)
    share_a = math.sin((1 - t) * angle) / math.sin(angle)
    share_b = math.sin(t * angle) / math.sin(angle)
    for out, left, right in pieces(merged, a, b):
        torch.add(left * share_a, right * share_b, out=out)
    return merged


def _cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between flattened tensors, in float64; 1 where one of them is 0."""
    square_a = square_b = inner = 0.0
    for left, right in pieces(a, b):
        x, y = left.double(), right.double()
        square_a += float(x @ x)
        square_b += float(y @ y)
        inner += float(x @ y)
    lengths = math.sqrt(square_a) * math.sqrt(square_b)
    return inner / lengths if lengths > 0.0 else 1.0


def slerp_all(tensors: Sequence[Tensor], places: Sequence[float]) -> Tensor:
    """One tensor after the other: ``slerp(slerp(x_0, x_1, t_1), x_2, t_2)``, so order matters.

    Args:
        tensors: One or more.
        places: One fewer: ``1/2, 1/3, ...`` give every tensor an equal share.

    Raises:
        ValueError: Another number of places.
    """
    if len(places) != len(tensors) - 1:
        raise ValueError(f"{len(tensors)} tensors need {len(tensors) - 1} places, not {places}")
    merged = tensors[0]
    for tensor, t in zip(tensors[1:], places, strict=True):
        merged = slerp(merged, tensor, t)
    return merged.clone() if merged is tensors[0] else merged
