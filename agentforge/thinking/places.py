"""Where in a text it pays to think: positions whose next token is most uncertain."""

from __future__ import annotations

import torch
from torch import Tensor

APART = 3
"""Tokens between two places at least (mission)."""


def hard_places(entropy: Tensor, count: int, last: int) -> Tensor:
    """The most uncertain positions of each text, at least `APART` apart.

    Where not enough are that far apart the distance shrinks, down to any free position.

    Args:
        entropy: (B, T) of the next token, nats.
        count: P, positions a text.
        last: Last position that may be chosen.

    Returns:
        (B, P) int64, rising.

    Raises:
        ValueError: A text has fewer positions than that.
    """
    if last + 1 < count:
        raise ValueError(f"{last + 1} positions, {count} wanted")
    found = []
    for row in entropy[:, : last + 1]:
        order = torch.argsort(row, descending=True, stable=True).tolist()
        chosen: list[int] = []
        for apart in range(APART, 0, -1):
            for place in order:
                if len(chosen) == count:
                    break
                if all(abs(place - c) >= apart for c in chosen):
                    chosen.append(place)
        found.append(sorted(chosen))
    return torch.tensor(found, dtype=torch.int64, device=entropy.device)
