"""Members of the population: what each was made from, and how good it turned out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from agentforge.merge.recipe import Recipe
from agentforge.model.behaviour import Behaviour

Origin = Literal["combo", "mutant", "loser_merge", "injected"]
Sources = tuple[str, str, str]
"""Hashes of the weights of the three models a recipe merges."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A child that is not made yet.

    Attributes:
        recipe: How.
        sources: Of what.
        origin: Which rule of the search made it.
        made_from: Numbers of the members it descends from; empty: the three parents alone.
    """

    recipe: Recipe
    sources: Sources
    origin: Origin
    made_from: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """A child that was made and measured.

    Attributes:
        number: Rises with every child of the run.
        generation: It was made in.
        candidate: What it is.
        sha256: Hash of its weights (`weights_sha256`).
        fitness: Composite on the search split; of the first items alone when `raced`.
        first_fitness: The same on the first items alone: what a race compares.
        perplexity, accuracy, blocks: Its terms, see `fitness.Terms`.
        by_skill: Mean item score by skill.
        items: Items it was measured on.
        raced: It fell behind on the first items and was not measured on the others.
        fallback: Why the recipe's result was replaced by the linear mean; empty: it was not.
    """

    number: int
    generation: int
    candidate: Candidate
    sha256: str
    fitness: float
    first_fitness: float
    perplexity: float
    accuracy: float
    blocks: float
    by_skill: Mapping[str, float]
    items: int
    raced: bool = False
    fallback: str = ""

    @property
    def recipe(self) -> Recipe:
        """How it was merged."""
        return self.candidate.recipe

    @property
    def behaviour(self) -> Behaviour:
        """How it is run."""
        return behaviour_of(self.recipe)

    @property
    def key(self) -> str:
        """What its measurement depends on: weights and behaviour."""
        return measurement_key(self.sha256, self.behaviour)

    def to_json(self) -> dict[str, Any]:
        """For checkpoints and the evolution log."""
        row = asdict(self)
        row["candidate"]["recipe"] = json.loads(self.recipe.to_json())
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Member:
        """From `to_json`."""
        values = dict(row)
        made = values["candidate"]
        values["candidate"] = Candidate(
            recipe=Recipe.from_json(json.dumps(made["recipe"])),
            sources=tuple(made["sources"]),
            origin=made["origin"],
            made_from=tuple(made["made_from"]),
        )
        return cls(**values)


def behaviour_of(recipe: Recipe) -> Behaviour:
    """The run-time settings a recipe carries."""
    return Behaviour(recipe.halting_threshold, recipe.write_budget)


def measurement_key(sha256: str, behaviour: Behaviour) -> str:
    """Key of the fitness cache."""
    return f"{sha256}/{behaviour.halting_threshold!r}/{behaviour.write_budget!r}"


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes, dtypes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.view(-1).numpy().data)
    return digest.hexdigest()


def ranked(members: list[Member]) -> list[Member]:
    """Best first; equal fitness: the older one first."""
    return sorted(members, key=lambda m: (-m.fitness, m.number))
