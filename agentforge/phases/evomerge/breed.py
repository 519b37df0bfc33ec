"""Who follows: the first eight, mutants, merges of losers, newcomers. Pure, all chance from `rng`.

The documents mutate by noise of .01 on 1 % of the weights. In 25 million dimensions such noise
finds nothing; here the numbers of the recipe are mutated, a few dozen of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from agentforge.config.schema import EvoMergeConfig
from agentforge.merge.combo import COMBOS, Combo
from agentforge.merge.franken import first_slots
from agentforge.merge.groups import GROUPS
from agentforge.merge.recipe import (
    BUDGET,
    DENSITY,
    EQUAL_PLACES,
    PLACE,
    SCALE,
    SHARE,
    THRESHOLD,
    WEIGHT,
    Bounds,
    GroupWeights,
    Recipe,
    equal_weights,
)
from agentforge.model.behaviour import Behaviour
from agentforge.phases.evomerge.members import Candidate, Member, Sources

ELITES = 2
LOSERS = 3
"""Members of one loser-merge."""


def first_recipe(
    config: EvoMergeConfig, combo: Combo, behaviour: Behaviour, blocks: int, seed: int
) -> Recipe:
    """The documented recipe of a combo, run as the base is."""
    return Recipe(
        combo=combo,
        weights=equal_weights(),
        places=EQUAL_PLACES,
        density=config.density,
        scale=config.scale,
        strength=config.strength,
        slots=first_slots(blocks),
        seed=seed,
        halting_threshold=THRESHOLD.clip(behaviour.halting_threshold),
        write_budget=BUDGET.clip(behaviour.write_budget),
        blend=config.blend,
        chain=config.chain,
    )


def generation_zero(
    config: EvoMergeConfig, behaviour: Behaviour, blocks: int, seed: int, parents: Sources
) -> list[Candidate]:
    """The eight combos; a larger population repeats them with other masks of DARE."""
    return [
        Candidate(
            first_recipe(config, COMBOS[i % 8], behaviour, blocks, seed + i // 8), parents, "combo"
        )
        for i in range(config.population)
    ]


def next_generation(
    config: EvoMergeConfig,
    population: Sequence[Member],
    sigma: float,
    rng: np.random.Generator,
) -> tuple[list[Member], list[Candidate]]:
    """Who stays and who is made.

    Args:
        config: Scheme and rates.
        population: The last generation, best first.
        sigma: Step of mutations.
        rng: All chance of this generation.

    Returns:
        Members that stay unchanged, and the candidates that fill the population up.
    """
    size = len(population)
    if config.scheme == "keep_six":
        kept = list(population[: size - 2])
        losers = list(population[size - 2 :])
        merges = [_merge_losers([population[0], *losers], rng) for _ in range(2)]
        return kept, merges
    groups = [population[size - 2 * LOSERS + i :: 2] for i in range(2)]
    merges = [_merge_losers(group[:LOSERS], rng) for group in groups]
    if config.scheme == "six_and_two":
        best = [population[i % ELITES] for i in range(size - 2)]
        return [], [_mutant(config, m, m, sigma, rng) for m in best] + merges
    kept = list(population[:ELITES])
    better = population[: size // 2]
    mutants = []
    for _ in range(size - ELITES - 2):
        first = better[min(len(better) - 1, int(rng.exponential(1.0)))]
        second = better[int(rng.integers(len(better)))]
        mutants.append(_mutant(config, first, second, sigma, rng))
    return kept, mutants + merges


def newcomer(
    config: EvoMergeConfig,
    behaviour: Behaviour,
    blocks: int,
    parents: Sources,
    rng: np.random.Generator,
) -> Candidate:
    """A random combo of the three parents with random weights: fresh blood for a narrow population.

    The weights of each group are uniform on the simplex, so they sum to 1.
    """
    combo = COMBOS[int(rng.integers(8))]
    recipe = first_recipe(config, combo, behaviour, blocks, int(rng.integers(2**31)))
    shares = rng.dirichlet(np.ones(3), len(GROUPS)).T
    slots = tuple(int(s) for s in rng.integers(0, 4, blocks))
    return Candidate(replace(recipe, weights=_rows(shares), slots=slots), parents, "injected")


def _mutant(
    config: EvoMergeConfig, first: Member, second: Member, sigma: float, rng: np.random.Generator
) -> Candidate:
    """A mutant of the first, drawn towards the second; it merges what the first merges."""
    recipe = mutate(config, first.recipe, second.recipe, sigma, rng)
    made_from = (first.number,) if first is second else (first.number, second.number)
    return Candidate(recipe, first.candidate.sources, "mutant", made_from)


def mutate(
    config: EvoMergeConfig, a: Recipe, b: Recipe, sigma: float, rng: np.random.Generator
) -> Recipe:
    """Blend crossover of the weights (up to half the way to `b`), then Gaussian steps everywhere.

    The halting threshold and the write budget take half steps: they act on every token.
    """

    def step(value: float, bounds: Bounds, share: float = 1.0) -> float:
        return bounds.clip(value + float(rng.normal(0.0, share * sigma)))

    own, other = np.array(a.weights), np.array(b.weights)
    moved = rng.random(own.shape) < config.mutation_rate
    weights = own + 0.5 * rng.random() * (other - own)
    weights = weights + rng.normal(0.0, sigma, own.shape) * moved
    slots = list(a.slots)
    if slots and rng.random() < config.slot_rate:
        slots[int(rng.integers(len(slots)))] = int(rng.integers(4))
    combo = a.combo
    if rng.random() < config.flip_rate:
        combo = combo.flipped(int(rng.integers(3)))
    return replace(
        a,
        combo=combo,
        weights=_rows(np.clip(weights, WEIGHT.low, WEIGHT.high)),
        places=(step(a.places[0], PLACE), step(a.places[1], PLACE)),
        density=step(a.density, DENSITY),
        scale=step(a.scale, SCALE),
        strength=step(a.strength, SHARE),
        slots=tuple(slots),
        halting_threshold=step(a.halting_threshold, THRESHOLD, 0.5),
        write_budget=step(a.write_budget, BUDGET, 0.5),
    )


def _merge_losers(losers: Sequence[Member], rng: np.random.Generator) -> Candidate:
    """Three members' weights merged by a random combo, run as they are on average."""
    one, two, three = losers
    mean = Behaviour(
        sum(m.recipe.halting_threshold for m in losers) / LOSERS,
        sum(m.recipe.write_budget for m in losers) / LOSERS,
    )
    first = one.recipe
    recipe = replace(
        first,
        combo=COMBOS[int(rng.integers(8))],
        weights=equal_weights(),
        places=EQUAL_PLACES,
        slots=first_slots(len(first.slots)),
        halting_threshold=mean.halting_threshold,
        write_budget=mean.write_budget,
    )
    sources = (one.sha256, two.sha256, three.sha256)
    return Candidate(recipe, sources, "loser_merge", tuple(m.number for m in losers))


def _rows(weights: np.ndarray) -> tuple[GroupWeights, ...]:
    return tuple(tuple(float(w) for w in row) for row in weights)
