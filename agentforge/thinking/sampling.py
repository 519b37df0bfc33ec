"""Sampling continuations: many prompts at once, several thoughts a prompt, the same draws again.

Every row has its own random numbers, a function of the seed and the row's name alone. So a row does
not depend on what else is in the batch, and two models asked with the same seed meet the same
luck: their difference is theirs (common random numbers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentforge.model.behaviour import Behaviour
from agentforge.model.decode import Decoder
from agentforge.model.language_model import CognateLM


@dataclass(frozen=True, slots=True)
class Continuation:
    """What one row wrote.

    Attributes:
        tokens: Ids without the end token.
        ended: The end token came in time.
    """

    tokens: tuple[int, ...]
    ended: bool


def draws(seed: int, rows: Sequence[int], count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), (rows, count): row i depends on the seed and `rows[i]` only."""
    found = np.empty((len(rows), count))
    for place, row in enumerate(rows):
        found[place] = np.random.Generator(np.random.Philox(key=[seed, row])).random(count)
    return found


@torch.no_grad()
def sample(
    model: CognateLM,
    prompts: Sequence[Sequence[int]],
    behaviour: Behaviour,
    *,
    stop_id: int,
    max_new_tokens: int,
    temperature: float,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    copies: int = 1,
    forbidden: Sequence[int] = (),
) -> list[Continuation]:
    """Continue every prompt `copies` times.

    The prompts' common length is read once for all copies, and rows that have ended leave the
    batch.

    Args:
        model: The model; its caches are fp32.
        prompts: Token ids, at least one each; lengths may differ.
        behaviour: How to run the model.
        stop_id: The end token.
        max_new_tokens: At most so many new tokens a row; the context bounds them too.
        temperature: 0 takes the most likely token.
        seed: Seed of the draws.
        rows: A name for each prompt that its draws depend on; default: its place.
        copies: Continuations a prompt; copy c of prompt p is row `p * copies + c` of the result.
        forbidden: Tokens never chosen.

    Raises:
        ValueError: An empty prompt, or a temperature below 0.
    """
    if temperature < 0 or not all(len(p) for p in prompts):
        raise ValueError(f"temperature {temperature} must be >= 0 and prompts must have tokens")
    if not prompts:
        return []
    names = [name * copies + c for name in (rows or range(len(prompts))) for c in range(copies)]
    luck = draws(seed, names, max_new_tokens + 1) if temperature > 0 else None
    device = model.rope_cos.device
    decoder = Decoder(model, behaviour, len(prompts))
    shortest = min(len(p) for p in prompts)
    for t in range(shortest - 1):
        decoder.step(torch.tensor([p[t] for p in prompts], device=device))
    if copies > 1:
        decoder.select(torch.arange(len(prompts), device=device).repeat_interleave(copies))
    given = [list(p) for p in prompts for _ in range(copies)]
    new: list[list[int]] = [[] for _ in given]
    ended = [False] * len(given)
    active = list(range(len(given)))
    last = min(model.config.context, max(len(p) for p in prompts) + max_new_tokens + 1)
    for t in range(shortest - 1, last):
        column = [given[r][t] if t < len(given[r]) else new[r][t - len(given[r])] for r in active]
        logits = decoder.step(torch.tensor(column, device=device))
        if forbidden:
            logits[:, list(forbidden)] = float("-inf")
        writes = [i for i, r in enumerate(active) if t >= len(given[r]) - 1]
        uniform = None
        if luck is not None:
            at = [len(new[active[i]]) for i in writes]
            uniform = torch.from_numpy(luck[[active[i] for i in writes], at]).to(device)
        done = set()
        for i, token in zip(writes, _choose(logits[writes], temperature, uniform), strict=True):
            row = active[i]
            if token == stop_id:
                ended[row] = True
                done.add(row)
            elif len(new[row]) >= max_new_tokens or t + 1 >= model.config.context:
                done.add(row)
            else:
                new[row].append(token)
        if done:
            keep = [i for i, r in enumerate(active) if r not in done]
            if not keep:
                break
            decoder.select(torch.tensor(keep, device=device))
            active = [active[i] for i in keep]
    return [Continuation(tuple(n), e) for n, e in zip(new, ended, strict=True)]


def _choose(logits: Tensor, temperature: float, uniform: Tensor | None) -> list[int]:
    """One token a row: the most likely, or where the cumulative probability passes the draw."""
    if uniform is None:
        greedy: list[int] = logits.argmax(-1).tolist()
        return greedy
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    # Rounding may leave the last sum below 1, and a forbidden last token has no width.
    wanted = (uniform * cumulative[:, -1])[:, None]
    chosen: list[int] = (cumulative <= wanted).sum(-1).clamp(max=logits.shape[-1] - 1).tolist()
    return chosen
