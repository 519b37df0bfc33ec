"""What an executor remembers of its sequences: keys and values, Titans memories, recent tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentforge.runtime.plan import DecodePlan


@dataclass(frozen=True, slots=True)
class SequenceStates:
    """Tensors of all sequences an executor holds, fp32; changed in place.

    Attributes:
        keys, values: Of every cache, (sequences, window, width); position p in slot p % window.
        maps, momenta, chunk_maps: Of every memory layer, (sequences, M, M).
        recent: Of every memory layer, (sequences, 2, 3M): raw projections of the last two tokens.
    """

    keys: list[Tensor]
    values: list[Tensor]
    maps: list[Tensor]
    momenta: list[Tensor]
    chunk_maps: list[Tensor]
    recent: list[Tensor]

    @classmethod
    def of(cls, plan: DecodePlan, sequences: int) -> SequenceStates:
        """Empty states."""

        def caches() -> list[Tensor]:
            return [torch.zeros(sequences, c.window, c.width) for c in plan.caches]

        def squares() -> list[Tensor]:
            return [torch.zeros(sequences, m.width, m.width) for m in plan.memories]

        recent = [torch.zeros(sequences, 2, 3 * m.width) for m in plan.memories]
        return cls(caches(), caches(), squares(), squares(), squares(), recent)

    def reset(self, sequence: int) -> None:
        """Forget a sequence: its next token is at position 0 (caches are overwritten by then)."""
        for states in (self.maps, self.momenta, self.chunk_maps, self.recent):
            for state in states:
                state[sequence] = 0
