"""DARE: drop and rescale deltas (Yu et al. 2024, arXiv 2311.03099, eq. 1 to 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from agentforge.merge.pieces import blank, pieces


def dare(
    base: Tensor,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    seed: int,
    name: str,
    scale: float = 1.0,
) -> Tensor:
    """``base + scale * sum(w_i mask_i (x_i - base) / density)``, ``mask_i`` Bernoulli(density).

    Dividing by the density keeps the expectation over seeds: it is `weighted_deltas`. The
    paper drops 90 % (density 0.1) of deltas around 0.002; the deltas here are a hundred times
    larger and half of one is already too much to lose, so the default density is higher.

    Args:
        base: What deltas are taken from.
        tensors: The models' tensors, each of the base's shape.
        weights: One a model.
        density: Share of entries kept, above 0 and up to 1.
        seed: Of the masks; with `name` and the model's place it decides them, on every device.
        name: Name of the tensor, so that every tensor has masks of its own.
        scale: Of the merged delta.

    Raises:
        ValueError: A density out of range, or another number of weights.
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density {density} must be above 0 and at most 1")
    if len(tensors) != len(weights):
        raise ValueError(f"{len(tensors)} tensors with {len(weights)} weights")
    merged = blank(base)
    generators = [_generator(seed, name, place) for place in range(len(tensors))]
    for out, origin, *parts in pieces(merged, base, *tensors):
        out.zero_()
        for part, weight, generator in zip(parts, weights, generators, strict=True):
            kept = part - origin
            if density < 1.0:
                kept.mul_(_drops(kept.shape, density, generator).to(kept.device))
            out.add_(kept, alpha=weight / density)
        out.mul_(scale).add_(origin)
    return merged


def drop_mask(shape: torch.Size, density: float, seed: int, name: str, place: int) -> Tensor:
    """Which entries stay, bool of `shape` on the CPU; the same on every machine."""
    return _drops(shape, density, _generator(seed, name, place)).bool()


def _drops(shape: torch.Size, density: float, generator: torch.Generator) -> Tensor:
    """The generator's next mask of 0 and 1; in floats, as torch multiplies by bool far slower."""
    return torch.rand(shape, generator=generator).lt_(density)


def _generator(seed: int, name: str, place: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}/{place}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
