"""Items to padded tensors, in micro-batches of similar length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agentforge.data.corpus import Corpus

IGNORE = -100
STRETCH = 1.5
"""A micro-batch holds no item longer than this times its shortest: padding stays below a third."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward.

    Attributes:
        ids: (B, T) int64, padded on the right.
        targets: (B, T) int64, the next token, `IGNORE` where there is no loss.
        valid: (B, T) bool, False on padding.
        rows: Which items of the request each row is, (B,).
        answer: (B, T) bool, targets that belong to the answer behind a thought.
    """

    ids: Tensor
    targets: Tensor
    valid: Tensor
    rows: tuple[int, ...]
    answer: Tensor

    @property
    def target_count(self) -> int:
        """Tokens that carry loss."""
        return int((self.targets != IGNORE).sum())

    def loss_weight(self, answer_weight: float) -> float:
        """Sum of the targets' weights when those of answers weigh so much."""
        extra = int((self.answer & (self.targets != IGNORE)).sum())
        return self.target_count + (answer_weight - 1.0) * extra

    @property
    def valid_count(self) -> int:
        """Positions that are no padding."""
        return int(self.valid.sum())

    def to(self, device: torch.device) -> MicroBatch:
        """A copy on a device (itself on the CPU)."""
        if device.type == "cpu":
            return self
        return MicroBatch(
            self.ids.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.valid.to(device, non_blocking=True),
            self.rows,
            self.answer.to(device, non_blocking=True),
        )


def micro_batches(
    corpora: Mapping[str, Corpus],
    items: Sequence[tuple[str, int]],
    max_tokens: int,
    pad_id: int,
) -> list[MicroBatch]:
    """Cut items into micro-batches of at most `max_tokens` padded tokens (one item at least).

    Short and long items do not share a micro-batch; the order is by length, then as given, so the
    result depends on the items alone.

    Args:
        corpora: Where the items are.
        items: (corpus, index) each.
        max_tokens: Rows times longest row at most.
        pad_id: Id of padding.
    """
    lengths = [len(corpora[name].item(index)) - 1 for name, index in items]
    order = sorted(range(len(items)), key=lambda i: lengths[i])
    groups: list[list[int]] = []
    for row in order:
        group = groups[-1] if groups else []
        fits = group and (len(group) + 1) * lengths[row] <= max_tokens
        if fits and lengths[row] <= STRETCH * lengths[group[0]]:
            group.append(row)
        else:
            groups.append([row])
    return [_pad(corpora, items, group, pad_id) for group in groups]


def _pad(
    corpora: Mapping[str, Corpus],
    items: Sequence[tuple[str, int]],
    rows: list[int],
    pad_id: int,
) -> MicroBatch:
    sequences = [corpora[items[r][0]].item(items[r][1]) for r in rows]
    width = max(len(s) for s in sequences) - 1
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    targets = np.full((len(rows), width), IGNORE, dtype=np.int64)
    valid = np.zeros((len(rows), width), dtype=np.bool_)
    answer = np.zeros((len(rows), width), dtype=np.bool_)
    for i, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
        name, index = items[row]
        first = int(corpora[name].first_target[index])
        ids[i, : len(sequence) - 1] = sequence[:-1]
        targets[i, first - 1 : len(sequence) - 1] = sequence[first:]
        valid[i, : len(sequence) - 1] = True
        start = corpora[name].answer_start
        if start is not None:
            answer[i, int(start[index]) - 1 : len(sequence) - 1] = True
    return MicroBatch(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        torch.from_numpy(valid),
        tuple(rows),
        torch.from_numpy(answer),
    )
