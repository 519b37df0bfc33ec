"""Factorised, tied token embedding: 50,269 tokens cost 4.8M parameters instead of 25.7M."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentforge.model.norm import RMSNorm

TABLE_STD = 0.1
"""Scale of a fresh table. AdamW moves every entry by about its learning rate a step: at scale 1 the
50,269 rows hardly turned in 100,000 tokens (loss 9.4 against 6.8 nats at 0.1)."""


class FactorisedEmbedding(nn.Module):
    """A (V, r) table with r -> d and d -> r maps; the same table reads in and out.

    The plain table (50,257 x 512 = 25,731,584) would be the whole budget of a 25M model.
    """

    def __init__(self, vocab_size: int, rank: int, d_model: int, eps: float) -> None:
        super().__init__()
        self.table = nn.Parameter(TABLE_STD * torch.randn(vocab_size, rank))
        self.up = nn.Linear(rank, d_model, bias=False)
        self.norm = RMSNorm(d_model, eps)
        self.down = nn.Linear(d_model, rank, bias=False)
        nn.init.normal_(self.up.weight, std=rank**-0.5 / TABLE_STD)
        nn.init.normal_(self.down.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, T) -> (B, T, D)."""
        x: Tensor = self.up(F.embedding(ids, self.table))
        return x

    def features(self, x: Tensor) -> Tensor:
        """What the table is compared with: (..., D) -> (..., r)."""
        y: Tensor = self.down(self.norm(x))
        return y

    def logits(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return F.linear(self.features(x), self.table)
