"""What an executor remembers of its sequences: keys and values, Titans memories, recent tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from agentforge_kernels import quantize_int8
from torch import Tensor

from agentforge.runtime.plan import DecodePlan

CacheType = Literal["float32", "bfloat16", "int8"]
"""How keys and values are kept; int8 has a scale a position and head."""


@dataclass(frozen=True, slots=True)
class MemoryStates:
    """Titans memories of all sequences an executor holds, fp32; changed in place.

    Attributes:
        maps, momenta, chunk_maps: Of every memory layer, (sequences, M, M).
        recent: Of every memory layer, (sequences, 2, 3M): raw projections of the last two tokens.
    """

    maps: list[Tensor]
    momenta: list[Tensor]
    chunk_maps: list[Tensor]
    recent: list[Tensor]

    @classmethod
    def of(cls, plan: DecodePlan, sequences: int) -> MemoryStates:
        """Empty states."""

        def squares() -> list[Tensor]:
            return [torch.zeros(sequences, m.width, m.width) for m in plan.memories]

        recent = [torch.zeros(sequences, 2, 3 * m.width) for m in plan.memories]
        return cls(squares(), squares(), squares(), recent)

    def reset(self, sequence: int) -> None:
        """Forget a sequence; caches need none: slots are overwritten before they are read."""
        for states in (self.maps, self.momenta, self.chunk_maps, self.recent):
            for state in states:
                state[sequence] = 0


@dataclass(frozen=True, slots=True)
class BlockedCaches:
    """Keys and values as the native executor keeps them (native/float_attention.hpp).

    Attributes:
        keys: Of every cache, (sequences, heads, blocks of 16 positions, head width, 16).
        values: Of every cache, (sequences, heads, window, head width up to a multiple of 16).
        key_scales, value_scales: fp32 (sequences, heads, positions); empty unless int8.
    """

    keys: list[Tensor]
    values: list[Tensor]
    key_scales: list[Tensor]
    value_scales: list[Tensor]

    @classmethod
    def of(cls, plan: DecodePlan, sequences: int, kind: CacheType) -> BlockedCaches:
        """Empty caches."""
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[kind]
        caches = cls([], [], [], [])
        for shape in plan.caches:
            heads, width = shape.heads, shape.width // shape.heads
            blocks, padded = -(-shape.window // 16), -(-width // 16) * 16
            caches.keys.append(torch.zeros(sequences, heads, blocks, width, 16, dtype=dtype))
            caches.values.append(torch.zeros(sequences, heads, shape.window, padded, dtype=dtype))
            for scales in (caches.key_scales, caches.value_scales):
                if kind == "int8":
                    scales.append(torch.zeros(sequences, heads, 16 * blocks))
        return caches

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        everything = (self.keys, self.values, self.key_scales, self.value_scales)
        return sum(t.nbytes for tensors in everything for t in tensors)


def as_cached(x: Tensor, kind: CacheType) -> Tensor:
    """Keys or values (heads, width) fp32, rounded as a cache of a kind gives them back."""
    if kind == "float32":
        return x
    if kind == "bfloat16":
        return x.bfloat16().float()
    rounded = quantize_int8(x)
    return rounded.weight.float() * rounded.scale[:, None]
