"""Adaptive halting in PonderNet's form (Banino et al. 2021, arXiv 2107.05407), per token.

At recursion step n < R the head gives lambda_n; p_n = lambda_n prod_{j<n} (1 - lambda_j), the last
step takes the rest. Training pulls p towards a geometric prior, inference stops a position once
its cumulative probability reaches the threshold. A head started at p = .5 gets stuck after two
steps in most runs (arXiv 2604.21999), so the bias starts at -1 and the prior does the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentforge.model.norm import RMSNorm


class HaltingHead(nn.Module):
    """One logit per position: stop after this step?"""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model, eps)
        self.logit = nn.Linear(d_model, 1)
        nn.init.zeros_(self.logit.weight)
        nn.init.constant_(self.logit.bias, -1.0)

    def forward(self, answer: Tensor) -> Tensor:
        """Answer state (..., D) -> halting logit (...,) fp32."""
        y: Tensor = self.logit(self.norm(answer))[..., 0].float()
        return y


def log_halting(logits: Tensor) -> Tensor:
    """Log of the halting distribution.

    Args:
        logits: (R - 1, ...) halting logits of all steps but the last; none for R = 1.

    Returns:
        (R, ...) log p_n; p sums to 1 over the first dimension.
    """
    stop, go = F.logsigmoid(logits), F.logsigmoid(-logits)
    survival = torch.cat([go.new_zeros(1, *go.shape[1:]), go.cumsum(0)])
    return torch.cat([survival[:-1] + stop, survival[-1:]])


def log_prior(steps: int, rate: float, device: torch.device) -> Tensor:
    """Log of the geometric prior cut off at `steps`, the last step taking the rest, (R,)."""
    survival = (1 - rate) ** torch.arange(steps, dtype=torch.float64)
    p = survival * rate
    p[-1] = survival[-1]
    return p.log().float().to(device)


def prior_kl(log_p: Tensor, rate: float) -> Tensor:
    """KL(p || prior) per position, (R, ...) -> (...), in nats."""
    prior = log_prior(log_p.shape[0], rate, log_p.device)
    prior = prior.view(-1, *[1] * (log_p.ndim - 1))
    return (log_p.exp() * (log_p - prior)).sum(0)
