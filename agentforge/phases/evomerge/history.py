"""The course of a search: one row a generation, and everything a checkpoint holds of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from agentforge.merge.combo import COMBOS
from agentforge.phases.evomerge.members import Member, ranked


@dataclass(frozen=True, slots=True)
class Row:
    """One generation.

    Attributes:
        generation: 0 for the first eight.
        best, mean, worst, std: Fitness of its population.
        champion: Best fitness of any member so far.
        diversity: Mean cosine distance of the population's deltas from the base.
        raw_diversity: The same of the weights themselves.
        sigma: Step of the mutations that made it.
        best_combo: Three digits.
        combos: Members of the population by combo.
        unique: Different weights in the population.
        evaluations: Models measured so far.
        raced: Of those, dropped early.
        fallbacks: Degenerate children so far.
    """

    generation: int
    best: float
    mean: float
    worst: float
    std: float
    champion: float
    diversity: float
    raw_diversity: float
    sigma: float
    best_combo: str
    combos: dict[str, int]
    unique: int
    evaluations: int
    raced: int
    fallbacks: int


@dataclass(slots=True)
class Evolution:
    """How far the search is.

    Attributes:
        members: Every member ever made, by number.
        population: The last generation, best first.
        history: One row a generation.
        sigma: Step of the next mutations.
        distances: Pairwise distances of generation 0's weights, in the order of the combos.
        interventions: What was done about a narrow population: generation and action.
        ended_by: ``max_gen``, ``early_stop``, ``target``, ``finish``; empty while it runs.
    """

    sigma: float
    members: list[Member] = field(default_factory=list)
    population: list[Member] = field(default_factory=list)
    history: list[Row] = field(default_factory=list)
    distances: list[list[float]] = field(default_factory=list)
    interventions: list[tuple[int, str]] = field(default_factory=list)
    ended_by: str = ""

    @property
    def generation(self) -> int:
        """The last whole generation; -1 before the first."""
        return len(self.history) - 1

    @property
    def champion(self) -> Member:
        """The best member ever measured to the end."""
        return self.top(1)[0]

    def top(self, count: int) -> list[Member]:
        """The best members measured to the end, each with weights or behaviour of its own."""
        best: dict[str, Member] = {}
        for member in ranked([m for m in self.members if not m.raced]):
            best.setdefault(member.key, member)
        return list(best.values())[:count]

    def known(self) -> dict[str, Member]:
        """Members by what their measurement depends on, the first of each."""
        found: dict[str, Member] = {}
        for member in self.members:
            found.setdefault(member.key, member)
        return found

    def lineage(self, member: Member) -> list[Member]:
        """A member and everyone it descends from, youngest first."""
        by_number = {m.number: m for m in self.members}
        wanted, found = [member.number], {}
        while wanted:
            number = wanted.pop()
            if number not in found:
                found[number] = by_number[number]
                wanted += by_number[number].candidate.made_from
        return [found[n] for n in sorted(found, reverse=True)]

    def row(self, diversity: float, raw_diversity: float) -> Row:
        """The row of the population as it is now."""
        fitness = np.array([m.fitness for m in self.population])
        counts = {c.digits: 0 for c in COMBOS}
        for member in self.population:
            counts[member.recipe.combo.digits] += 1
        measured = self.known().values()
        return Row(
            generation=len(self.history),
            best=float(fitness.max()),
            mean=float(fitness.mean()),
            worst=float(fitness.min()),
            std=float(fitness.std()),
            champion=self.champion.fitness,
            diversity=diversity,
            raw_diversity=raw_diversity,
            sigma=self.sigma,
            best_combo=self.population[0].recipe.combo.digits,
            combos=counts,
            unique=len({m.sha256 for m in self.population}),
            evaluations=len(measured),
            raced=sum(m.raced for m in measured),
            fallbacks=sum(bool(m.fallback) for m in self.members),
        )

    def to_json(self) -> dict[str, Any]:
        """For checkpoints and the evolution log; numbers come back exactly."""
        return {
            "sigma": self.sigma,
            "members": [m.to_json() for m in self.members],
            "population": [m.number for m in self.population],
            "history": [asdict(row) for row in self.history],
            "distances": self.distances,
            "interventions": [list(i) for i in self.interventions],
            "ended_by": self.ended_by,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Evolution:
        """From `to_json`."""
        members = [Member.from_json(m) for m in row["members"]]
        by_number = {m.number: m for m in members}
        return cls(
            sigma=row["sigma"],
            members=members,
            population=[by_number[n] for n in row["population"]],
            history=[Row(**r) for r in row["history"]],
            distances=row["distances"],
            interventions=[(int(g), str(a)) for g, a in row["interventions"]],
            ended_by=row["ended_by"],
        )
