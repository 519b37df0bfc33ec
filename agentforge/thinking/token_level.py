"""Quiet-STaR as published: thoughts at positions of ordinary text (arXiv 2403.09629).

    think   G thoughts after each chosen position j, all at once, between two learned vectors
    talk    p = softmax head((1 - w) h_base + w h_thought), w = sigmoid MLP([h_base ; h_thought])
    learn   r = log p(true future | thought) - mean over the G thoughts of the same position
            loss = -log p(future) of the mixture - r log pi(thought tokens)

for the next `talk` true tokens, which are read behind the thought. One weight w per position and
talk token. At weight 0 the model is the base model exactly. Thought tokens get no gradient from
the likelihood of the future (they are samples): REINFORCE alone trains them, as in the paper;
unlike its code, negative rewards are kept, because dropping them biases the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentforge.model.behaviour import Behaviour
from agentforge.model.branches import run_embedded_branches
from agentforge.model.language_model import CognateLM

MIX_BIAS = -2.0
"""The mixing weight starts at .12: untrained thoughts must not spoil the predictions."""


class MixingHead(nn.Module):
    """One weight in (0, 1) per position from both answer states: a three-layer ReLU MLP."""

    def __init__(self, d_model: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * d_model, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, MIX_BIAS)

    def forward(self, base: Tensor, thought: Tensor) -> Tensor:
        """(..., D), (..., D) -> (..., 1)."""
        both = torch.cat((base, thought), dim=-1)
        return torch.sigmoid(self.layers(F.layer_norm(both, both.shape[-1:])))


class TokenThoughts(nn.Module):
    """What token-level thinking adds to a model: start and end vectors and the mixing head.

    Args:
        model: Its thinking tokens' rows are where the start and end vectors begin.
        start_id, end_id: Ids of `[thinking]` and `[/endthinking]`.
    """

    def __init__(self, model: CognateLM, start_id: int, end_id: int) -> None:
        super().__init__()
        with torch.no_grad():
            rows = model.embedding(torch.tensor([[start_id, end_id]], device=model.rope_cos.device))
        self.start = nn.Parameter(rows[0, 0].clone())
        self.end = nn.Parameter(rows[0, 1].clone())
        self.mixing = MixingHead(model.config.d_model)


@dataclass(frozen=True, slots=True)
class TokenLevelLoss:
    """One batch.

    Attributes:
        total: With gradient, 0-d.
        gain: log p with thoughts minus without, nats per future token, 0-d; above 0 they help.
        reward_std: Spread of the rewards over the thoughts of a position, 0-d.
        weight: Mean mixing weight: at 0 the thoughts are theatre, whatever else looks well.
        base_loss: Nats per future token without thoughts.
        log_likelihood: (B, P, G) of the future with each thought, nats summed over talk tokens.
    """

    total: Tensor
    gain: Tensor
    reward_std: Tensor
    weight: Tensor
    base_loss: Tensor
    log_likelihood: Tensor


@torch.no_grad()
def sample_thoughts(
    model: CognateLM,
    extra: TokenThoughts,
    ids: Tensor,
    places: Tensor,
    behaviour: Behaviour,
    *,
    thoughts: int,
    length: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    forbidden: tuple[int, ...] = (),
) -> Tensor:
    """G thoughts after every place, all at once, one token a pass.

    Args:
        model: The model.
        extra: Start vector.
        ids: (B, T) int64.
        places: (B, P) int64.
        behaviour: How the model is run.
        thoughts: G.
        length: Tokens of a thought, L.
        generator: Source of the draws.
        temperature: 0 takes the most likely token.
        forbidden: Tokens a thought never holds.

    Returns:
        (B, P, G, L) int64.
    """
    batch, count = places.shape
    forks = places.repeat_interleave(thoughts, dim=1)
    written = torch.empty(batch, forks.shape[1], 0, dtype=torch.int64, device=ids.device)
    start = extra.start.expand(batch, forks.shape[1], 1, -1)
    for _ in range(length):
        embedded = torch.cat((start, model.embedding(written)), dim=2)
        answer = run_embedded_branches(model, ids, forks, embedded, behaviour).branch[:, :, -1]
        logits = model.embedding.logits(answer).float()
        if forbidden:
            logits[..., list(forbidden)] = float("-inf")
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            p = (logits / temperature).softmax(-1)
            token = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(p.shape[:2])
        written = torch.cat((written, token[..., None]), dim=2)
    return written.reshape(batch, count, thoughts, length)


def token_level_loss(
    model: CognateLM,
    extra: TokenThoughts,
    ids: Tensor,
    places: Tensor,
    thoughts: Tensor,
    behaviour: Behaviour,
    *,
    talk: int,
    reinforce_weight: float = 1.0,
    mixing_weight: float | None = None,
) -> TokenLevelLoss:
    """Likelihood of the true future with thoughts, and the reward of each thought.

    Args:
        model: The model.
        extra: Start and end vectors, mixing head.
        ids: (B, T) int64, text.
        places: (B, P) int64; the `talk` tokens after each must exist: place + talk < T.
        thoughts: (B, P, G, L) int64, from `sample_thoughts`.
        behaviour: How the model is run.
        talk: True tokens predicted behind each thought.
        reinforce_weight: Weight of the REINFORCE term.
        mixing_weight: Replaces the head's weight (0: the base model, 1: the thought alone).

    Raises:
        ValueError: A place is too close to the end of the text.
    """
    batch, count, group, length = thoughts.shape
    if int(places.max()) + talk >= ids.shape[1]:
        raise ValueError(f"place {int(places.max())} + talk {talk} is beyond {ids.shape[1]} tokens")
    rows = torch.arange(batch, device=ids.device)[:, None, None]
    ahead = places[..., None] + torch.arange(talk, device=ids.device)
    future = ids[rows, ahead + 1]
    forks = places.repeat_interleave(group, dim=1)
    flat = thoughts.flatten(1, 2)
    wide = (batch, flat.shape[1], 1, -1)
    # What is read behind the thought: the true tokens but the last, each predicting the next.
    spoken = future[:, :, None, :-1].expand(-1, -1, group, -1).flatten(1, 2)
    embedded = torch.cat(
        (
            extra.start.expand(*wide),
            model.embedding(flat),
            extra.end.expand(*wide),
            model.embedding(spoken),
        ),
        dim=2,
    )
    states = run_embedded_branches(model, ids, forks, embedded, behaviour)
    base = states.base[rows, ahead][:, :, None].expand(-1, -1, group, -1, -1)
    branch = states.branch.reshape(batch, count, group, -1, states.branch.shape[-1])
    thought_logits = model.embedding.logits(branch[..., :length, :]).float()
    after = branch[..., length + 1 :, :]
    weight = extra.mixing(base, after)
    if mixing_weight is not None:
        weight = torch.full_like(weight, mixing_weight)
    mixed = torch.lerp(base, after, weight)
    labels = future[:, :, None].expand(-1, -1, group, -1)
    log_p = _log_likelihood(model, mixed, labels)
    with torch.no_grad():
        plain = _log_likelihood(model, base[:, :, :1], labels[:, :, :1])
        likelihood = log_p.sum(-1)
        reward = likelihood - likelihood.mean(-1, keepdim=True)
    chosen = F.log_softmax(thought_logits, dim=-1).gather(-1, thoughts[..., None])[..., 0]
    reinforce = -(reward[..., None] * chosen).mean()
    return TokenLevelLoss(
        total=-log_p.mean() + reinforce_weight * reinforce,
        gain=(log_p - plain).mean().detach(),
        reward_std=reward.std(dim=-1, correction=0).mean(),
        weight=weight.mean().detach(),
        base_loss=-plain.mean(),
        log_likelihood=likelihood,
    )


def _log_likelihood(model: CognateLM, states: Tensor, labels: Tensor) -> Tensor:
    """log p of labels (..., K) under answer states (..., K, D), fp32."""
    logits = model.embedding.logits(states).float()
    return F.log_softmax(logits, dim=-1).gather(-1, labels[..., None])[..., 0]
