"""What Phase 3 starts from: the champion, with rows for the tokens of thoughts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from agentforge.data.tokenizers import TextTokenizer
from agentforge.reasoning.strategies import STRATEGIES

CHAMPION = "evomerge.champion"
TABLE = "embedding.table"


def with_thinking_rows(
    weights: Mapping[str, Tensor], tokenizer: TextTokenizer
) -> dict[str, Tensor]:
    """The model with sensible rows for the twelve tokens, which nothing has trained so far.

    A strategy's token begins as the mean of the words that ask for it; the outer tokens as the mean
    of what opens an answer (Quiet-STaR begins with the em dash, which a small vocabulary lacks).
    """
    table = weights[TABLE].clone()
    start, end, *inner = tokenizer.thinking_ids
    opening = _mean(table, tokenizer.encode("\nA:"))
    table[start], table[end] = opening, opening
    for token, strategy in zip(inner, STRATEGIES, strict=True):
        table[token] = _mean(table, tokenizer.encode(f" {strategy.words}"))
    return {**weights, TABLE: table}


def _mean(table: Tensor, ids: list[int]) -> Tensor:
    return table[torch.tensor(ids, device=table.device)].mean(0)
