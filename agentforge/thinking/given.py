"""How likely an answer is behind a given thought: exact probabilities instead of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM

ROWS = 256
LOGIT_BYTES = 64e6


@dataclass(frozen=True, slots=True)
class Given:
    """Answers behind given thoughts.

    Attributes:
        log_p: log probability of the whole answer with its end token, nats, (n,): its exponential
            is the accuracy of sampling, exactly.
        greedy: The answer is what greedy decoding writes, (n,).
        first: Distribution of the first answer token, (n, V).
    """

    log_p: NDArray[np.float64]
    greedy: NDArray[np.bool_]
    first: NDArray[np.float32]

    @property
    def accuracy(self) -> float:
        """Expected share of right answers when they are sampled."""
        return float(np.exp(self.log_p).mean())


@torch.no_grad()
def answers_given(
    model: CognateLM,
    behaviour: Behaviour,
    prefixes: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    temperature: float,
    pad_id: int,
) -> Given:
    """Score answers behind prefixes (prompt with whatever thought is given).

    Args:
        model: The model; it is put into evaluation mode and back.
        behaviour: How it is run.
        prefixes: Token ids, at least one each.
        answers: Token ids with the end token, at least one each.
        temperature: Of the sampling whose probabilities are meant.
        pad_id: Id of padding.
    """
    training = model.training
    model.eval()
    device = model.rope_cos.device
    count = len(prefixes)
    log_p = np.zeros(count)
    greedy = np.zeros(count, dtype=np.bool_)
    first = np.zeros((count, model.vocab_size), dtype=np.float32)
    lengths = [len(p) + len(a) for p, a in zip(prefixes, answers, strict=True)]
    order = sorted(range(count), key=lambda i: lengths[i])
    longest = max((len(a) for a in answers), default=1)
    rows = max(1, min(ROWS, int(LOGIT_BYTES / (4 * model.vocab_size * longest))))
    for start in range(0, count, rows):
        part = order[start : start + rows]
        width = max(lengths[i] for i in part)
        ids = torch.full((len(part), width), pad_id, dtype=torch.int64)
        mask = torch.zeros(len(part), width - 1, dtype=torch.bool)
        for place, i in enumerate(part):
            ids[place, : lengths[i]] = torch.tensor([*prefixes[i], *answers[i]])
            mask[place, len(prefixes[i]) - 1 : lengths[i] - 1] = True
        ids, mask = ids.to(device), mask.to(device)
        states = model.run(ids[:, :-1], behaviour).answer[mask]
        logits = model.embedding.logits(states).float() / temperature
        labels = ids[:, 1:][mask]
        chosen = F.log_softmax(logits, -1).gather(1, labels[:, None])[:, 0].double()
        hit = logits.argmax(-1) == labels
        row = torch.nonzero(mask)[:, 0]
        sums = torch.zeros(len(part), dtype=torch.float64, device=device).index_add_(0, row, chosen)
        misses = torch.zeros(len(part), device=device).index_add_(0, row, (~hit).float())
        begins = torch.cat((row.new_tensor([0]), (row[1:] != row[:-1]).nonzero()[:, 0] + 1))
        log_p[part] = sums.cpu().numpy()
        greedy[part] = (misses == 0).cpu().numpy()
        first[part] = logits[begins].softmax(-1).cpu().numpy()
    model.train(training)
    return Given(log_p, greedy, first)
