"""QK-clip: keeps attention logits bounded by shrinking the weights that make them."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def qk_clip_(q_weight: Tensor, k_weight: Tensor, s_max: Tensor, tau: float) -> int:
    """Scale the query and key rows of every head whose largest logit exceeds `tau`.

    Per head ``gamma = min(1, tau / S_max)``; W_q and W_k are each multiplied by ``sqrt(gamma)``, so
    the same inputs give a largest logit of exactly `tau` (Kimi K2, arXiv 2507.20534, section 2.1).
    Rotary embedding is a rotation and changes nothing about that. To be called after the
    optimiser's step; weights shared by several recursion steps take the maximum over all passes.

    A head whose `s_max` is not finite is left alone: ``tau / inf`` would erase it for good, while
    the step that produced it is dropped anyway because its gradient is not finite.

    Args:
        q_weight: Query projection, (heads * head_dim, d_in), rows grouped by head; changed in
            place.
        k_weight: Key projection, same layout; changed in place.
        s_max: Largest logit (q k / sqrt(head_dim)) of each head over batch, positions and passes
            since the last call, (heads,).
        tau: Bound on the logits, > 0.

    Returns:
        How many heads were clipped.

    Raises:
        ValueError: Rows that `s_max` does not divide, or `tau` not positive.
    """
    heads = s_max.numel()
    if s_max.ndim != 1 or heads == 0 or not tau > 0:
        raise ValueError(f"s_max {tuple(s_max.shape)} must be (heads,) and tau {tau} positive")
    if q_weight.shape != k_weight.shape or q_weight.ndim != 2 or q_weight.shape[0] % heads:
        raise ValueError(
            f"q {tuple(q_weight.shape)} and k {tuple(k_weight.shape)} must be equal matrices whose "
            f"rows are a multiple of {heads} heads"
        )
    over = torch.isfinite(s_max) & (s_max > tau)
    clipped = int(over.sum())
    if clipped == 0:
        return 0
    root = torch.where(over, (tau / s_max.double()).sqrt(), 1.0)
    rows = root.repeat_interleave(q_weight.shape[0] // heads)[:, None]
    q_weight.mul_(rows.to(device=q_weight.device, dtype=q_weight.dtype))
    k_weight.mul_(rows.to(device=k_weight.device, dtype=k_weight.dtype))
    return clipped
