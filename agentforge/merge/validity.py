"""What may not come out of a merge."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LEAST_VARIANCE = 1e-8
"""Documented bound under which a matrix counts as constant. One-dimensional tensors are exempt: a
norm's gains are all 1 when they are new."""


def invalid_reason(
    tensors: Mapping[str, Tensor], base: Mapping[str, Tensor] | None = None
) -> str | None:
    """Why these weights cannot be used; None when they can.

    Args:
        tensors: The child.
        base: A matrix that is as constant there is not held against the child.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            return f"{name}: {int((~finite).sum()):,} of {tensor.numel():,} values are NaN or Inf"
        if tensor.ndim >= 2 and _variance(tensor) < LEAST_VARIANCE:
            if base is not None and _variance(base[name]) < LEAST_VARIANCE:
                continue
            return f"{name}: variance {_variance(tensor):.1e} is below {LEAST_VARIANCE:g}"
    return None


def _variance(tensor: Tensor) -> float:
    return float(torch.var(tensor.float(), correction=0))
