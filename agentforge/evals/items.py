"""Per-item measurement of a model on a corpus: right or wrong, loss, steps, memory use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from agentforge.data.batching import IGNORE, micro_batches
from agentforge.data.corpus import Corpus
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.model.record import ForwardRecord

LOGIT_BYTES = 25e6
"""Logits that exist at once while measuring: 124 positions of GPT-2's vocabulary in fp32. Larger
buffers come from the system as new pages every time, which costs more than the product."""


@dataclass(frozen=True, slots=True)
class ItemResults:
    """One row per item of a corpus, in its order.

    Attributes:
        correct: Every target token is the most likely one: greedy decoding writes exactly this.
        loss_sum: Cross-entropy summed over the item's targets, nats, fp64.
        targets: Target tokens.
        steps: Mean recursion steps over the item's tokens.
        tokens: Tokens of the item.
        difficulty: As in the corpus.
        writes: Mean memory write theta over all tokens; NaN without a memory.
        gate: Mean share of the memory in the MAG blend; NaN without a memory.
        step_counts: Tokens that took 0, 1, 2, ... recursion steps.
        position_writes: Mean write theta by position; NaN where nothing was written.
    """

    correct: NDArray[np.bool_]
    loss_sum: NDArray[np.float64]
    targets: NDArray[np.int64]
    steps: NDArray[np.float64]
    tokens: NDArray[np.int64]
    difficulty: NDArray[np.int32]
    writes: float
    gate: float
    step_counts: NDArray[np.int64]
    position_writes: NDArray[np.float64]

    @property
    def accuracy(self) -> float:
        """Share of items that are right."""
        return float(self.correct.mean())

    @property
    def loss(self) -> float:
        """Nats per target token."""
        return float(self.loss_sum.sum() / self.targets.sum())

    @property
    def mean_steps(self) -> float:
        """Recursion steps per token."""
        return float((self.steps * self.tokens).sum() / self.tokens.sum())


def joined(first: ItemResults, second: ItemResults) -> ItemResults:
    """Two parts of one corpus, measured one after the other, as one."""
    weights = np.array([float(first.tokens.sum()), float(second.tokens.sum())])

    def mean(a: float, b: float) -> float:
        return float(np.array([a, b]) @ weights / weights.sum())

    both = np.stack([first.position_writes, second.position_writes])
    seen = np.isfinite(both)
    written = np.where(seen, both, 0.0).sum(0)
    return ItemResults(
        correct=np.concatenate([first.correct, second.correct]),
        loss_sum=np.concatenate([first.loss_sum, second.loss_sum]),
        targets=np.concatenate([first.targets, second.targets]),
        steps=np.concatenate([first.steps, second.steps]),
        tokens=np.concatenate([first.tokens, second.tokens]),
        difficulty=np.concatenate([first.difficulty, second.difficulty]),
        writes=mean(first.writes, second.writes),
        gate=mean(first.gate, second.gate),
        step_counts=first.step_counts + second.step_counts,
        position_writes=np.divide(
            written, seen.sum(0), out=np.full(both.shape[1], np.nan), where=seen.any(0)
        ),
    )


@torch.no_grad()
def measure(
    model: CognateLM,
    corpus: Corpus,
    behaviour: Behaviour,
    pad_id: int,
    batch: int,
    between: Callable[[], None] | None = None,
    memory: bool = True,
) -> ItemResults:
    """Measure a model on every item of a corpus with its own halting and write budget.

    Args:
        model: The model; it is put into evaluation mode and back.
        corpus: Held-out items, one at least.
        behaviour: How the model is run.
        pad_id: Id of padding.
        batch: Items of one forward at most.
        between: Called between batches (control, heartbeat).
        memory: Note memory use too; without it `writes`, `gate` and `position_writes` are NaN and
            measuring takes a tenth less.
    """
    n = len(corpus)
    device = model.rope_cos.device
    correct = np.zeros(n, dtype=np.bool_)
    loss_sum = np.zeros(n)
    targets = np.zeros(n, dtype=np.int64)
    steps = np.zeros(n)
    tokens = np.zeros(n, dtype=np.int64)
    gate, weight = 0.0, 0
    counts = np.zeros(1 + model.config.recursion_steps, dtype=np.int64)
    written = np.zeros((2, model.config.context))
    training = model.training
    model.eval()
    for start in range(0, n, batch):
        items = [(corpus.name, i) for i in range(start, min(start + batch, n))]
        for micro in micro_batches({corpus.name: corpus}, items, batch * 2048, pad_id):
            if between:
                between()
            micro = micro.to(device)
            record = ForwardRecord(valid=micro.valid) if memory else None
            result = model(micro.ids, behaviour, record)
            wanted = micro.targets != IGNORE
            loss, right = _score(model, result.answer[wanted], micro.targets[wanted])
            row = torch.nonzero(wanted)[:, 0]
            rows = len(micro.rows)
            sums = torch.zeros(rows, dtype=torch.float64, device=device).index_add_(0, row, loss)
            wrong = torch.zeros(rows, dtype=torch.int64, device=device)
            wrong.index_add_(0, row, (~right).long())
            place = start + np.array(micro.rows)
            length = micro.valid.sum(1)
            correct[place] = (wrong == 0).cpu().numpy()
            loss_sum[place] = sums.cpu().numpy()
            targets[place] = wanted.sum(1).cpu().numpy()
            tokens[place] = length.cpu().numpy()
            steps[place] = ((result.steps * micro.valid).sum(1) / length).cpu().numpy()
            taken = result.steps[micro.valid].cpu().numpy()
            counts += np.bincount(taken, minlength=len(counts))[: len(counts)]
            if record is not None and record.theta:
                theta = torch.stack(list(record.theta.values())).mean(0) * micro.valid
                width = theta.shape[1]
                written[0, :width] += theta.double().sum(0).cpu().numpy()
                written[1, :width] += micro.valid.sum(0).cpu().numpy()
                gate += micro.valid_count * float(torch.stack(list(record.gate.values())).mean())
                weight += micro.valid_count
    model.train(training)
    return ItemResults(
        correct=correct,
        loss_sum=loss_sum,
        targets=targets,
        steps=steps,
        tokens=tokens,
        difficulty=corpus.difficulty,
        writes=float(written[0].sum()) / weight if weight else float("nan"),
        gate=gate / weight if weight else float("nan"),
        step_counts=counts,
        position_writes=np.divide(
            written[0], written[1], out=np.full(written.shape[1], np.nan), where=written[1] > 0
        ),
    )


def _score(
    model: CognateLM, answer: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy (fp64) and whether the label is the most likely token, (N,) each."""
    chunk = max(1, int(LOGIT_BYTES / (4 * model.vocab_size)))
    losses, rights = [], []
    for start in range(0, labels.shape[0], chunk):
        label = labels[start : start + chunk]
        logits = model.embedding.logits(answer[start : start + chunk]).float()
        losses.append(F.cross_entropy(logits, label, reduction="none").double())
        rights.append(logits.argmax(-1) == label)
    return torch.cat(losses), torch.cat(rights)
