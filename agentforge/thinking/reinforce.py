"""REINFORCE on sampled thoughts with a leave-one-out baseline and an exact KL to a frozen model.

    A_i  = R_i - mean of the other rewards of the same question            (RLOO, arXiv 2402.14740)
    loss = 1/N sum_t [ -A log pi(x_t) + beta KL(pi(. | x_<t) || pi_ref(. | x_<t)) ]

over the N tokens the model wrote. One optimiser step a batch, so the samples are on-policy and need
neither importance weights nor clipping. Rewards are not divided by their spread: that would give
questions that are almost always or almost never right more weight (arXiv 2503.20783).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """One batch's loss and what it is made of, per written token.

    Attributes:
        total: With gradient, 0-d.
        reinforce: The first term, 0-d.
        kl: Mean KL to the reference, nats, 0-d.
        entropy: Mean entropy of the policy, nats, 0-d.
    """

    total: Tensor
    reinforce: Tensor
    kl: Tensor
    entropy: Tensor


def leave_one_out(rewards: Tensor) -> Tensor:
    """Advantages of several samples a question.

    Args:
        rewards: (questions, samples) float, at least two samples.

    Returns:
        Rewards minus the mean of the others; all 0 where the samples agree.

    Raises:
        ValueError: Fewer than two samples: there is nothing to compare with.
    """
    count = rewards.shape[1]
    if count < 2:
        raise ValueError(f"{count} samples a question; a baseline needs at least 2")
    return (rewards - rewards.mean(1, keepdim=True)) * (count / (count - 1))


def policy_loss(
    logits: Tensor, reference: Tensor, tokens: Tensor, advantages: Tensor, beta: float
) -> PolicyLoss:
    """Loss over written tokens, temperature 1.

    Args:
        logits: (N, V) of the policy, with gradient.
        reference: (N, V) of the frozen model.
        tokens: (N,) int64, what was written.
        advantages: (N,) of each token's continuation.
        beta: Weight of the KL.
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    log_q = F.log_softmax(reference.detach().float(), dim=-1)
    chosen = log_p.gather(1, tokens[:, None])[:, 0]
    reinforce = -(advantages * chosen).mean()
    p = log_p.exp()
    kl = (p * (log_p - log_q)).sum(-1).mean()
    entropy = -(p * log_p).sum(-1).mean()
    return PolicyLoss(reinforce + beta * kl, reinforce.detach(), kl.detach(), entropy.detach())


@torch.no_grad()
def exact_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) of every position, nats: (N, V), (N, V) -> (N,)."""
    log_p = F.log_softmax(logits.float(), dim=-1)
    log_q = F.log_softmax(reference.float(), dim=-1)
    found: Tensor = (log_p.exp() * (log_p - log_q)).sum(-1)
    return found
