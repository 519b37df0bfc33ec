"""The training loss: PonderNet's expected cross-entropy plus the halting prior.

    loss = 1/N sum_tokens sum_r p_r CE(y_r) + beta / M sum_positions KL(p || prior)

N counts target tokens, M non-padding positions, both over the *whole* batch, so that accumulating
micro-batches gives the gradient of the large batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentforge.model.behaviour import Behaviour
from agentforge.model.cross_entropy import weighted_cross_entropy
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
        early_stride: Early steps are trained on every so many-th target; the others train the last
            step alone. 1 is PonderNet; with a large vocabulary the head of every early step costs
            as much as the whole body, and 4 halves a training step.
    """

    prior: float
    beta: float
    enabled: bool = True
    early_stride: int = 1


@dataclass(frozen=True, slots=True)
class LossParts:
    """Sums of one micro-batch, 0-d fp32; `total` carries the gradient, already normalised."""

    total: Tensor
    task_sum: Tensor
    """Expected cross-entropy, summed over target tokens by their weights, nats."""
    last_sum: Tensor
    """Cross-entropy of the last step, summed over target tokens, each once, nats."""
    expected_steps: Tensor
    """Expected recursion steps of each valid position, (positions,)."""


def training_loss(
    model: CognateLM,
    ids: Tensor,
    targets: Tensor,
    valid: Tensor,
    behaviour: Behaviour,
    objective: HaltingObjective,
    target_count: float,
    valid_count: int,
    vocab_chunk: int = 0,
    record: ForwardRecord | None = None,
    weights: Tensor | None = None,
) -> LossParts:
    """Loss of one micro-batch.

    Args:
        model: The model.
        ids: (B, T) int64.
        targets: (B, T) int64, `IGNORE` where there is no loss.
        valid: (B, T) bool, False on padding.
        behaviour: Write budget and steps; nothing halts in training.
        objective: Prior and its weight.
        target_count: Target tokens N of the whole batch, or the sum of their weights.
        valid_count: Non-padding positions M of the whole batch.
        vocab_chunk: Target tokens whose logits exist at once; 0: all.
        record: Where the forward pass notes its statistics.
        weights: (B, T) fp32, weight of each target; default 1.
    """
    answers = model.answers(ids, behaviour, record)
    wanted = targets != IGNORE
    embedding = model.embedding

    def cross_entropy(answer: Tensor, where: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        features = embedding.features(answer[where])
        return weighted_cross_entropy(
            features, embedding.table, targets[where], weights, vocab_chunk
        )

    if weights is None:
        weights = torch.ones(targets.shape, device=ids.device)
    ones = weights[wanted]
    if len(answers) == 1 or not objective.enabled:
        last, ce = cross_entropy(answers[-1], wanted, ones)
        steps = torch.full((int(valid.sum()),), float(len(answers)), device=ids.device)
        return LossParts(last / target_count, last.detach(), ce.sum(), steps)

    log_p = log_halting(torch.stack([model.halting(a) for a in answers[:-1]]))
    chosen = wanted & sampled_targets(targets, objective.early_stride)
    task = torch.zeros((), device=ids.device)
    for answer, log_share in zip(answers[:-1], log_p[:-1], strict=True):
        task = task + cross_entropy(answer, chosen, weights[chosen] * log_share[chosen].exp())[0]
    share = torch.where(chosen, log_p[-1].exp(), 1.0)[wanted]
    last, ce = cross_entropy(answers[-1], wanted, ones * share)
    task = task + last

    log_p = log_p[:, valid]
    kl = prior_kl(log_p, objective.prior).sum()
    count = torch.arange(1, len(answers) + 1, device=ids.device, dtype=torch.float32)
    expected = (log_p.detach().exp() * count[:, None]).sum(0)
    return LossParts(
        total=task / target_count + objective.beta * kl / valid_count,
        task_sum=task.detach(),
        last_sum=ce.sum(),
        expected_steps=expected,
    )


def sampled_targets(targets: Tensor, stride: int) -> Tensor:
    """Targets whose early steps are trained, (B, T) bool: a fixed 1/stride of them.

    The choice depends on position and label alone, so that it is the same however a batch is cut
    into micro-batches.
    """
    position = torch.arange(targets.shape[1], device=targets.device)
    return (targets + position) % stride == 0
