"""FrankenMerge: whole layers taken from different models (mergekit's passthrough, Goddard 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Slots = tuple[int, ...]
"""For each block of the model, prelude first, which source it is taken from."""


def franken(sources: Sequence[Tensor], chosen: int) -> Tensor:
    """A copy of the chosen source's tensor.

    Args:
        sources: What to choose from: the stage-2 model first, then the parents.
        chosen: Its place.

    Raises:
        IndexError: There is no such source.
    """
    if not 0 <= chosen < len(sources):
        raise IndexError(f"source {chosen} of {len(sources)}")
    return sources[chosen].clone()


def first_slots(blocks: int) -> Slots:
    """The documented pattern "ABC": block after block from the next of three models."""
    return tuple(1 + block % 3 for block in range(blocks))
