"""What a forward pass notes about itself when asked: logit maxima, memory writes, gate shares."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class ForwardRecord:
    """Notes of one forward pass, keyed by module so that recomputation does not count twice.

    Attributes:
        valid: (B, T) bool, positions that count (no padding); None: all.
        logit_max: Per attention module (prelude or core block) its largest logit per head, (H,).
        writes: Per memory layer the mean step size theta of valid tokens, 0-d.
        surprise: Per memory layer the mean squared prediction error ||v - W k||^2, 0-d.
        gate: Per memory layer the mean share of the memory in the MAG blend, 0-d.
        theta: Per memory layer the step size of every write, (B, T).
    """

    valid: Tensor | None = None
    logit_max: dict[str, Tensor] = field(default_factory=dict)
    writes: dict[str, Tensor] = field(default_factory=dict)
    surprise: dict[str, Tensor] = field(default_factory=dict)
    gate: dict[str, Tensor] = field(default_factory=dict)
    theta: dict[str, Tensor] = field(default_factory=dict)

    def note_logits(self, name: str, scores_max: Tensor) -> None:
        """Keep the largest logits per head, (H,), over all passes through a shared block."""
        old = self.logit_max.get(name)
        self.logit_max[name] = scores_max if old is None else torch.maximum(old, scores_max)

    def mean(self, x: Tensor) -> Tensor:
        """Mean of (B, T) values over valid positions, 0-d, without gradient."""
        x = x.detach().float()
        if self.valid is None:
            return x.mean()
        return (x * self.valid).sum() / self.valid.sum().clamp(min=1)
