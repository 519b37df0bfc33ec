"""Causal sliding-window attention with rotary positions and recorded logit maxima."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentforge.model.linear import Projection, project
from agentforge.model.record import ForwardRecord
from agentforge.model.rotary import rotate


def window_mask(length: int, window: int, device: torch.device) -> Tensor | None:
    """(T, T) bool, True where query i may see key j: 0 <= i - j < window.

    None when the window does not bind, so that the plain causal kernel can be used.
    """
    if length <= window:
        return None
    i = torch.arange(length, device=device)
    distance = i[:, None] - i[None, :]
    return (distance >= 0) & (distance < window)


class WindowAttention(nn.Module):
    """Multi-head attention over the last `window` positions; `mix` comes before W_o.

    The output matrix is applied by the block, after the memory was blended in (Titans-MAG).
    """

    def __init__(self, d_model: int, n_heads: int, out_gain: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = Projection(d_model, d_model)
        self.k = Projection(d_model, d_model)
        self.v = Projection(d_model, d_model)
        self.out = Projection(d_model, d_model, gain=out_gain, normed=False)

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D/H)."""
        batch, length, width = x.shape
        return x.view(batch, length, self.n_heads, width // self.n_heads).transpose(1, 2)

    def mix(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        record: ForwardRecord | None = None,
        name: str = "",
    ) -> Tensor:
        """Attend.

        Args:
            x: (B, T, D), normalised.
            rope: Cosines and sines, (T, D/H) each.
            mask: From `window_mask`.
            record: Notes the largest logit per head, for QK-clip (arXiv 2507.20534).
            name: This module's key in the record.

        Returns:
            (B, T, D), heads concatenated, before the output matrix.
        """
        q, k, v = (self.heads(y) for y in project(x, self.q, self.k, self.v))
        q, k = rotate(q, *rope), rotate(k, *rope)
        if record is not None:
            record.note_logits(name, _logit_max(q, k, mask, record.valid))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return y.transpose(1, 2).flatten(2)


@torch.no_grad()
def _logit_max(q: Tensor, k: Tensor, mask: Tensor | None, valid: Tensor | None) -> Tensor:
    """Largest visible logit per head, (H,) fp32, of real query positions."""
    scores = q @ k.transpose(-1, -2)
    length = scores.shape[-1]
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    visible = mask if valid is None else mask & valid[:, None, :, None]
    scores = scores.masked_fill(~visible, float("-inf"))
    largest: Tensor = scores.amax(dim=(0, 2, 3)).float()
    return largest / math.sqrt(q.shape[-1])
