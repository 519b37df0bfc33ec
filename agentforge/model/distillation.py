"""Distillation (Hinton et al. 2015, arXiv 1503.02531): a student learns its teacher's distribution.

    loss = 1/N sum_tokens sum_r p_r [ (1 - a) H(T_r, S_r) + a CE(S_r, label) ]
         + beta / M sum_positions KL(p || p_student)

T_r and S_r are the next-token distributions after recursion step r, p the *teacher's* halting
distribution: the student also learns when to halt, so that no prior is needed. `a` is the share of
the labels. As in `cross_entropy.py` gradients are formed while a chunk's logits exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agentforge.model.behaviour import Behaviour
from agentforge.model.halting import log_halting
from agentforge.model.language_model import CognateLM
from agentforge.model.loss import IGNORE, sampled_targets
from agentforge.model.record import ForwardRecord


@dataclass(frozen=True, slots=True)
class DistillationParts:
    """Sums of one micro-batch, 0-d fp32; `total` carries the gradient, already normalised."""

    total: Tensor
    label_sum: Tensor
    """Cross-entropy of the last step with the labels, nats, over target tokens."""
    kl_sum: Tensor
    """KL(teacher || student) of the last step, nats, over target tokens."""


def distillation_loss(
    student: CognateLM,
    teacher: CognateLM,
    ids: Tensor,
    targets: Tensor,
    valid: Tensor,
    behaviour: Behaviour,
    target_count: float,
    valid_count: int,
    *,
    label_share: float,
    halting_weight: float,
    early_stride: int = 1,
    vocab_chunk: int = 0,
    record: ForwardRecord | None = None,
    weights: Tensor | None = None,
) -> DistillationParts:
    """Loss of one micro-batch.

    Args:
        student: Trained.
        teacher: Frozen, of the same vocabulary and steps.
        ids: (B, T) int64.
        targets: (B, T) int64, `IGNORE` where there is no loss.
        valid: (B, T) bool, False on padding.
        behaviour: Write budget and steps; nothing halts in training.
        target_count: Target tokens N of the whole batch, or the sum of their weights.
        valid_count: Non-padding positions M of the whole batch.
        label_share: Share `a` of the labels.
        halting_weight: Weight `beta` of the halting distributions' distance.
        early_stride: Early steps are trained on every so many-th target.
        vocab_chunk: Target tokens whose logits exist at once; 0: all.
        record: Where the student's forward pass notes its statistics.
        weights: (B, T) fp32, weight of each target; default 1.
    """
    with torch.no_grad():
        taught = teacher.answers(ids, behaviour)
    answers = student.answers(ids, behaviour, record)
    wanted = targets != IGNORE
    if weights is None:
        weights = torch.ones(targets.shape, device=ids.device)

    def cross_entropy(step: int, where: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            wise = teacher.embedding.features(taught[step][where])
        return soft_cross_entropy(
            student.embedding.features(answers[step][where]),
            student.embedding.table,
            wise,
            teacher.embedding.table,
            targets[where],
            share,
            label_share,
            vocab_chunk,
        )

    if len(answers) == 1:
        total, ce, kl = cross_entropy(0, wanted, weights[wanted])
        return DistillationParts(total / target_count, ce.sum(), kl.sum())
    with torch.no_grad():
        log_p = log_halting(torch.stack([teacher.halting(a) for a in taught[:-1]]))
    log_q = log_halting(torch.stack([student.halting(a) for a in answers[:-1]]))
    chosen = wanted & sampled_targets(targets, early_stride)
    task = torch.zeros((), device=ids.device)
    for step in range(len(answers) - 1):
        share = weights[chosen] * log_p[step][chosen].exp()
        task = task + cross_entropy(step, chosen, share)[0]
    share = weights[wanted] * torch.where(chosen, log_p[-1].exp(), 1.0)[wanted]
    last, ce, kl = cross_entropy(len(answers) - 1, wanted, share)
    distance = (log_p.exp() * (log_p - log_q))[:, valid].sum()
    total = (task + last) / target_count + halting_weight * distance / valid_count
    return DistillationParts(total, ce.sum(), kl.sum())


def soft_cross_entropy(
    features: Tensor,
    table: Tensor,
    teacher_features: Tensor,
    teacher_table: Tensor,
    labels: Tensor,
    weights: Tensor,
    label_share: float,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of weighted cross-entropies with a mixture of the teacher's distribution and the label.

    Args:
        features: The student's, (N, r); a gradient flows into them.
        table: The student's, (V, r); likewise.
        teacher_features: (N, s).
        teacher_table: (V, s).
        labels: (N,) int64.
        weights: (N,) fp32, without a gradient.
        label_share: Share of the label.
        chunk: Positions whose logits exist at once; 0: all.

    Returns:
        The sum (0-d, with gradients), and without: cross-entropy with the label and
        KL(teacher || student) of every position in nats, (N,) each.
    """
    result: tuple[Tensor, Tensor, Tensor] = _SoftCrossEntropy.apply(  # type: ignore[no-untyped-call]
        features,
        table,
        teacher_features,
        teacher_table,
        labels,
        weights,
        label_share,
        chunk or max(1, labels.shape[0]),
    )
    return result


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        table: Tensor,
        teacher_features: Tensor,
        teacher_table: Tensor,
        labels: Tensor,
        weights: Tensor,
        label_share: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ce = torch.empty(labels.shape, dtype=torch.float32, device=features.device)
        kl = torch.empty_like(ce)
        soft = torch.empty_like(ce)
        grad_features, grad_table = torch.empty_like(features), torch.zeros_like(table)
        # Half precision would lose small probabilities; the products take float32.
        rows, wise = table.float(), teacher_table.float()
        for start in range(0, labels.shape[0], chunk):
            part = slice(start, start + chunk)
            label, weight = labels[part, None], weights[part, None].float()
            log_p = torch.log_softmax(teacher_features[part].float() @ wise.t(), -1)
            log_q = torch.log_softmax(features[part].float() @ rows.t(), -1)
            ce[part] = -log_q.gather(1, label)[:, 0]
            p = log_p.exp()
            soft[part] = -(p * log_q).sum(-1)
            kl[part] = (p * log_p).sum(-1) + soft[part]
            gradient = log_q.exp_().sub_(p, alpha=1 - label_share)
            gradient.scatter_add_(1, label, torch.full_like(weight, -label_share))
            gradient.mul_(weight)
            grad_features[part] = (gradient @ rows).to(features.dtype)
            grad_table += (gradient.t() @ features[part].float()).to(table.dtype)
        ctx.save_for_backward(grad_features, grad_table)
        ctx.mark_non_differentiable(ce, kl)
        return (weights * ((1 - label_share) * soft + label_share * ce)).sum(), ce, kl

    @staticmethod
    def backward(ctx: Any, grad_sum: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_features, grad_table = ctx.saved_tensors
        return (grad_features * grad_sum, grad_table * grad_sum, *[None] * 6)
