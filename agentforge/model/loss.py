"""The training loss: PonderNet's expected cross-entropy plus the halting prior.

    loss = 1/N sum_tokens sum_r p_r CE(y_r) + beta / M sum_positions KL(p || prior)

N counts target tokens, M non-padding positions, both over the *whole* batch, so that accumulating
micro-batches gives the gradient of the large batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from agentforge.model.behaviour import Behaviour
from agentforge.model.embedding import FactorisedEmbedding
from agentforge.model.halting import log_halting, prior_kl
from agentforge.model.language_model import CognateLM
from agentforge.model.record import ForwardRecord

IGNORE = -100
"""Target of positions without a loss."""


@dataclass(frozen=True, slots=True)
class HaltingObjective:
    """How recursion steps are weighted in training.

    Attributes:
        prior: Rate of the geometric prior.
        beta: Weight of the KL to it.
        enabled: False trains the last step only and leaves the halting head alone.
    """

    prior: float
    beta: float
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class LossParts:
    """Sums of one micro-batch, 0-d fp32; `total` carries the gradient, already normalised."""

    total: Tensor
    task_sum: Tensor
    """Expected cross-entropy, summed over target tokens, nats."""
    last_sum: Tensor
    """Cross-entropy of the last step, summed over target tokens, nats."""
    expected_steps: Tensor
    """Expected recursion steps of each valid position, (positions,)."""


def token_cross_entropy(
    embedding: FactorisedEmbedding, answer: Tensor, targets: Tensor, chunk: int
) -> Tensor:
    """Cross-entropy per token, (N, D) and (N,) -> (N,) fp32.

    Args:
        embedding: The tied head.
        answer: Answer states of target positions.
        targets: Token ids.
        chunk: Tokens whose logits exist at once (recomputed in the backward pass); 0: all.
    """
    features = embedding.features(answer)
    table = embedding.table
    if not chunk or targets.shape[0] <= chunk:
        return _cross_entropy(features, table, targets)
    parts = []
    for start in range(0, targets.shape[0], chunk):
        piece = slice(start, start + chunk)
        parts.append(
            checkpoint(_cross_entropy, features[piece], table, targets[piece], use_reentrant=False)
        )
    return torch.cat(parts)


def _cross_entropy(features: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(features, table)
    return F.cross_entropy(logits.float(), targets, reduction="none")


def training_loss(
    model: CognateLM,
    ids: Tensor,
    targets: Tensor,
    valid: Tensor,
    behaviour: Behaviour,
    objective: HaltingObjective,
    target_count: int,
    valid_count: int,
    vocab_chunk: int = 0,
    record: ForwardRecord | None = None,
) -> LossParts:
    """Loss of one micro-batch.

    Args:
        model: The model.
        ids: (B, T) int64.
        targets: (B, T) int64, `IGNORE` where there is no loss.
        valid: (B, T) bool, False on padding.
        behaviour: Write budget and steps; nothing halts in training.
        objective: Prior and its weight.
        target_count: Target tokens N of the whole batch.
        valid_count: Non-padding positions M of the whole batch.
        vocab_chunk: See `token_cross_entropy`.
        record: Where the forward pass notes its statistics.
    """
    answers = model.answers(ids, behaviour, record)
    wanted = targets != IGNORE
    labels = targets[wanted]
    if len(answers) == 1 or not objective.enabled:
        last = token_cross_entropy(model.embedding, answers[-1][wanted], labels, vocab_chunk).sum()
        steps = torch.full((int(valid.sum()),), float(len(answers)), device=ids.device)
        return LossParts(last / target_count, last.detach(), last.detach(), steps)
    ce = torch.stack(
        [token_cross_entropy(model.embedding, a[wanted], labels, vocab_chunk) for a in answers]
    )
    log_p = log_halting(torch.stack([model.halting(a) for a in answers[:-1]]))
    task = (log_p[:, wanted].exp() * ce).sum()
    log_p = log_p[:, valid]
    kl = prior_kl(log_p, objective.prior).sum()
    count = torch.arange(1, len(answers) + 1, device=ids.device, dtype=torch.float32)
    expected = (log_p.detach().exp() * count[:, None]).sum(0)
    return LossParts(
        total=task / target_count + objective.beta * kl / valid_count,
        task_sum=task.detach(),
        last_sum=ce[-1].detach().sum(),
        expected_steps=expected,
    )
