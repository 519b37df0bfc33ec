"""Fitness, breeding and the archive of the merge search, without any model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from agentforge.config.schema import EvoMergeConfig
from agentforge.evals.items import ItemResults, joined
from agentforge.merge.combo import COMBOS
from agentforge.model.behaviour import Behaviour
from agentforge.phases.evomerge.breed import (
    first_recipe,
    generation_zero,
    mutate,
    newcomer,
    next_generation,
)
from agentforge.phases.evomerge.fitness import (
    BlockCount,
    Terms,
    first_items,
    item_scores,
    reference,
    terms,
)
from agentforge.phases.evomerge.history import Evolution
from agentforge.phases.evomerge.members import Candidate, Member, ranked
from agentforge.sizing import FITNESS_BANDS

PARENTS = ("p1", "p2", "p3")
BASE = Behaviour(0.5, 1.0)
COUNT = BlockCount(fixed=2, per_step=1)


def results(correct: list[bool], loss: float = 1.0, steps: float = 2.0) -> ItemResults:
    n = len(correct)
    return ItemResults(
        correct=np.array(correct),
        loss_sum=np.full(n, 2 * loss),
        targets=np.full(n, 2),
        steps=np.full(n, steps),
        tokens=np.full(n, 5),
        difficulty=np.zeros(n, dtype=np.int32),
        writes=0.5,
        gate=0.1,
        step_counts=np.array([0, 1, n]),
        position_writes=np.array([0.5, np.nan]),
    )


def member(number: int, fitness: float, **changes) -> Member:
    config = EvoMergeConfig()
    recipe = first_recipe(config, COMBOS[number % 8], BASE, 3, number)
    values = {
        "number": number,
        "generation": 0,
        "candidate": Candidate(recipe, PARENTS, "combo"),
        "sha256": f"w{number}",
        "fitness": fitness,
        "first_fitness": fitness,
        "perplexity": 2.0,
        "accuracy": 0.5,
        "blocks": 3.0,
        "by_skill": {"total": 0.5},
        "items": 10,
    }
    return Member(**(values | changes))


def population(size: int = 8) -> list[Member]:
    return ranked([member(i, 1.0 + 0.1 * i) for i in range(size)])


def test_terms_are_means_over_skills():
    found = terms(
        {"a": results([True, False], loss=1.0, steps=1.0), "b": results([True] * 6, loss=3.0)},
        True,
        COUNT,
        1000,
    )
    assert found.accuracy == pytest.approx((0.5 + 1.0) / 2)
    assert found.perplexity == pytest.approx(math.exp(2.0))
    steps = (2 * 5 * 1.0 + 6 * 5 * 2.0) / 40
    assert found.blocks == pytest.approx(2 + steps)
    assert found.items == 8
    assert found.by_skill == {"a": 0.5, "b": 1.0}


def test_the_parents_mean_fitness_is_one_and_weights_follow_the_size():
    parents = [
        Terms(2.0, 0.2, 4.0, 100, {}, 10),
        Terms(4.0, 0.5, 3.0, 100, {}, 10),
        Terms(8.0, 0.9, 5.0, 100, {}, 10),
    ]
    for band in FITNESS_BANDS:
        against = reference(parents, band)
        assert np.mean([against.fitness(p) for p in parents]) == pytest.approx(1.0)
        better = Terms(2.0, 0.9, 3.0, 100, {}, 10)
        inverse = np.mean([1 / 2, 1 / 4, 1 / 8])
        speed = np.mean([1 / 4, 1 / 3, 1 / 5])
        wanted = (
            band.perplexity * 0.5 / inverse
            + band.accuracy * 0.9 / (1.6 / 3)
            + band.speed * (1 / 3) / speed
            + band.memory
        )
        assert against.fitness(better) == pytest.approx(wanted)


def test_without_any_right_answer_accuracys_weight_goes_to_perplexity():
    parents = [Terms(2.0, 0.0, 4.0, 100, {}, 10)] * 3
    against = reference(parents, FITNESS_BANDS[0])
    assert against.weights == (0.8, 0.0, 0.1, 0.1)
    assert against.fitness(parents[0]) == pytest.approx(1.0)


def test_what_is_not_finite_is_worth_nothing():
    parents = [Terms(2.0, 0.5, 4.0, 100, {}, 10)] * 3
    against = reference(parents, FITNESS_BANDS[0])
    for value in (math.nan, math.inf):
        assert against.fitness(Terms(value, 0.9, 3.0, 100, {}, 10)) == 0.0
    with pytest.raises(ValueError, match="not finite"):
        reference([*parents[:2], Terms(math.nan, 0.5, 4.0, 100, {}, 10)], FITNESS_BANDS[0])
    overflow = terms({"a": results([False], loss=1e4)}, True, COUNT, 1)
    assert not overflow.finite


def test_scores_of_real_records_are_probabilities():
    found = results([True, False], loss=math.log(4))
    assert item_scores(found, exact=True).tolist() == [1.0, 0.0]
    assert item_scores(found, exact=False) == pytest.approx([0.25, 0.25])


def test_two_parts_joined_are_the_whole():
    first, second = results([True, False], loss=1.0, steps=1.0), results([True] * 3, loss=2.0)
    whole = joined(first, second)
    assert whole.correct.tolist() == [True, False, True, True, True]
    assert whole.loss == pytest.approx((2 * 2 * 1.0 + 3 * 2 * 2.0) / 10)
    assert whole.mean_steps == pytest.approx((2 * 1.0 + 3 * 2.0) / 5)
    assert whole.writes == pytest.approx(0.5)
    assert whole.step_counts.tolist() == [0, 2, 5]
    assert whole.position_writes[0] == 0.5
    assert math.isnan(whole.position_writes[1])
    again = first_items({"a": whole}, 2)["a"]
    assert again.correct.tolist() == first.correct.tolist()
    assert again.loss == pytest.approx(first.loss)


def test_generation_zero_is_the_eight_combos_of_the_documents():
    made = generation_zero(EvoMergeConfig(), BASE, 3, 42, PARENTS)
    assert [c.recipe.combo for c in made] == list(COMBOS)
    for candidate in made:
        recipe = candidate.recipe
        assert candidate.sources == PARENTS
        assert recipe.weights == ((1 / 3,) * 4,) * 3
        assert recipe.places == (1 / 2, 1 / 3)
        assert recipe.slots == (1, 2, 3)
        assert (recipe.halting_threshold, recipe.write_budget) == (0.5, 1.0)
    many = generation_zero(EvoMergeConfig(population=12), BASE, 3, 42, PARENTS)
    assert many[8].recipe.combo == COMBOS[0]
    assert many[8].recipe.seed != many[0].recipe.seed


def test_two_elites_stay_four_mutants_and_two_loser_merges_follow():
    members = population()
    rng = np.random.default_rng(0)
    kept, made = next_generation(EvoMergeConfig(), members, 0.1, rng)
    assert kept == members[:2]
    assert [c.origin for c in made] == ["mutant"] * 4 + ["loser_merge"] * 2
    for child in made[:4]:
        assert child.sources == PARENTS
        assert set(child.made_from) <= {m.number for m in members[:4]}
    losers = [set(c.made_from) for c in made[4:]]
    assert losers[0] | losers[1] == {m.number for m in members[2:]}
    assert not losers[0] & losers[1]
    by_number = {m.number: m for m in members}
    for child in made[4:]:
        assert child.sources == tuple(by_number[n].sha256 for n in child.made_from)


def test_the_documents_schemes_are_settings():
    members = population()
    rng = np.random.default_rng(0)
    kept, made = next_generation(EvoMergeConfig(scheme="six_and_two"), members, 0.1, rng)
    assert kept == []
    assert [c.origin for c in made] == ["mutant"] * 6 + ["loser_merge"] * 2
    assert [c.made_from for c in made[:6]] == [(7,), (6,)] * 3
    kept, made = next_generation(EvoMergeConfig(scheme="keep_six"), members, 0.1, rng)
    assert kept == members[:6]
    assert [c.made_from for c in made] == [(7, 1, 0)] * 2


@pytest.mark.parametrize("size", [8, 9, 16])
@pytest.mark.parametrize("scheme", ["elites", "six_and_two", "keep_six"])
def test_the_population_keeps_its_size(size, scheme):
    config = EvoMergeConfig(scheme=scheme, population=size)
    kept, made = next_generation(config, population(size), 0.1, np.random.default_rng(1))
    assert len(kept) + len(made) == size


def test_mutants_stay_within_bounds_and_differ():
    rng = np.random.default_rng(3)
    one, two = population()[:2]
    seen = set()
    for _ in range(300):
        child = mutate(EvoMergeConfig(), one.recipe, two.recipe, 0.9, rng)  # checks its bounds
        seen.add(child.to_json())
        assert child.seed == one.recipe.seed
    assert len(seen) == 300


def test_the_same_chance_gives_the_same_children():
    def children() -> list[str]:
        rng = np.random.default_rng([42, 2, 7])
        return [
            c.recipe.to_json() for c in next_generation(EvoMergeConfig(), population(), 0.1, rng)[1]
        ]

    assert children() == children()


def test_newcomers_have_weights_that_sum_to_one():
    rng = np.random.default_rng(5)
    for _ in range(20):
        child = newcomer(EvoMergeConfig(), BASE, 3, PARENTS, rng)
        for shares in child.recipe.groups.values():
            assert sum(shares) == pytest.approx(1.0)


def test_equal_fitness_ranks_the_older_first():
    one, two, three = member(1, 1.0), member(0, 1.0), member(2, 2.0)
    assert [m.number for m in ranked([one, two, three])] == [2, 0, 1]


def test_evolution_comes_back_from_json_exactly():
    evolution = Evolution(sigma=0.1 + 0.2)
    evolution.members = [member(i, 1 / (i + 3)) for i in range(8)]
    evolution.population = ranked(evolution.members)
    evolution.history.append(evolution.row(0.05, 1e-5))
    evolution.distances = [[0.0, 1 / 3], [1 / 3, 0.0]]
    evolution.interventions = [(5, "inject")]
    evolution.ended_by = "max_gen"
    again = Evolution.from_json(json.loads(json.dumps(evolution.to_json())))
    assert again == evolution
    assert again.history[0].combos == {c.digits: 1 for c in COMBOS}


def test_the_champion_was_measured_to_the_end_and_its_descent_is_known():
    first = member(0, 1.0)
    fast = member(1, 9.0, raced=True)
    middle = Candidate(first.recipe, PARENTS, "mutant", (0,))
    second = member(2, 2.0, candidate=middle)
    merged = Candidate(first.recipe, ("w0", "w2", "w1"), "loser_merge", (0, 2, 1))
    third = member(3, 3.0, candidate=merged)
    copy = member(4, 3.0, sha256="w3", candidate=merged)
    evolution = Evolution(sigma=0.1, members=[first, fast, second, third, copy])
    assert evolution.champion == third
    assert [m.number for m in evolution.top(5)] == [3, 2, 0]
    assert [m.number for m in evolution.lineage(third)] == [3, 2, 1, 0]


def test_settings_that_contradict_each_other_are_refused():
    for values, said in (
        ({"models": ("a", "b"), "base": "c"}, "names 2 files; exactly three"),
        ({"models": ("a", "b", "c", "d"), "base": "c"}, "names 4 files"),
        ({"models": ("a", "b", "c")}, "belong together"),
        ({"base": "a"}, "belong together"),
        ({"sigma": 0.5}, "not between"),
        ({"diversity_act": 0.5}, "above diversity_warn"),
        ({"density": 0.0}, "density"),
        ({"density": 1.5}, "density"),
        ({"scale": -1.0}, "scale"),
        ({"population": 4}, "population"),
    ):
        with pytest.raises(ValueError, match=said):
            EvoMergeConfig(**values)
