"""Prompt baking as distillation: what a prompt does moves into the weights (arXiv 2409.13697).

    min over student of  E_y mean_t KL( teacher(. | u, x, y_<t) || student(. | x, y_<t) )
    with y ~ teacher(. | u, x)

The teacher is the frozen model with the prompt u in its context, the student is trained without
it. The whole distribution is matched, not only the token that was drawn: the paper finds that this
needs far fewer samples than cross-entropy on the samples, which is the special case of a teacher
that puts everything on one token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM


def baking_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean forward KL of rows of logits, nats, 0-d: (N, V) with gradient, (N, V) without."""
    log_p = F.log_softmax(teacher.detach().float(), dim=-1)
    log_q = F.log_softmax(student.float(), dim=-1)
    found: Tensor = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return found


def written_logits(
    model: CognateLM,
    behaviour: Behaviour,
    prompts: Sequence[Sequence[int]],
    written: Sequence[Sequence[int]],
    pad_id: int,
) -> Tensor:
    """Logits at every written token behind its prompt, row after row: (sum of lengths, V).

    Two calls with other prompts and the same written tokens give rows that belong together.

    Args:
        model: The model.
        behaviour: How it is run.
        prompts: Token ids, at least one each.
        written: Token ids behind each prompt.
        pad_id: Id of padding.
    """
    width = max(len(p) + len(w) for p, w in zip(prompts, written, strict=True))
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(prompts), width - 1, dtype=torch.bool)
    for i, (prompt, tokens) in enumerate(zip(prompts, written, strict=True)):
        row = [*prompt, *tokens]
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, len(prompt) - 1 : len(row) - 1] = True
    device = model.rope_cos.device
    ids, mask = ids.to(device), mask.to(device)
    return model.embedding.logits(model.run(ids[:, :-1], behaviour).answer[mask])
