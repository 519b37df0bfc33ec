"""How different the three specialists are: one formula, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Profile:
    """How one model works, measured on data common to all three.

    Attributes:
        halting_steps: Mean recursion steps per token.
        memory_usage: Share of the write budget used, mean theta / budget.
        block_evaluations: Blocks evaluated per token: the counted form of speed.
    """

    halting_steps: float
    memory_usage: float
    block_evaluations: float


@dataclass(frozen=True, slots=True)
class Diversity:
    """Relative spread (max - min) / mean over the models, per metric, and their mean."""

    halting_steps: float
    memory_usage: float
    block_evaluations: float

    @property
    def score(self) -> float:
        """The gated figure."""
        return (self.halting_steps + self.memory_usage + self.block_evaluations) / 3


def diversity(profiles: Mapping[str, Profile]) -> Diversity:
    """Spread of two or more models; configuration sets much of it, so it is not gated alone."""

    def spread(values: list[float]) -> float:
        mean = sum(values) / len(values)
        return (max(values) - min(values)) / mean if mean else 0.0

    return Diversity(
        halting_steps=spread([p.halting_steps for p in profiles.values()]),
        memory_usage=spread([p.memory_usage for p in profiles.values()]),
        block_evaluations=spread([p.block_evaluations for p in profiles.values()]),
    )


def disagreement(correct: Mapping[str, NDArray[np.bool_]]) -> float:
    """Least share of items on which two models differ in being right, over all pairs."""
    names = sorted(correct)
    shares = [
        float((correct[a] != correct[b]).mean())
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    return min(shares)


@dataclass(frozen=True, slots=True)
class TaskVectors:
    """Task vectors d = model - base over all parameters.

    Attributes:
        relative_norm: ||d|| / ||base|| by model.
        cosine: Cosine of two task vectors, by pair ``a/b``.
    """

    relative_norm: dict[str, float]
    cosine: dict[str, float]


def task_vectors(
    base: Mapping[str, Tensor], models: Mapping[str, Mapping[str, Tensor]]
) -> TaskVectors:
    """Norms and cosines of the specialists' task vectors (arXiv 2212.04089)."""
    names = sorted(models)
    flat = {
        name: torch.cat(
            [(models[name][k].double() - base[k].double()).flatten() for k in sorted(base)]
        )
        for name in names
    }
    norm = torch.cat([base[k].double().flatten() for k in sorted(base)]).norm()
    cosine = {
        f"{a}/{b}": float(torch.nn.functional.cosine_similarity(flat[a], flat[b], dim=0))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
    return TaskVectors({n: float(flat[n].norm() / norm) for n in names}, cosine)
