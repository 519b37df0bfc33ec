"""Combos, recipes and their execution on whole models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentforge.config.load import load_config
from agentforge.merge.apply import merge, plain_mean
from agentforge.merge.combo import COMBOS, Combo
from agentforge.merge.dare import dare
from agentforge.merge.franken import first_slots
from agentforge.merge.geometry import geometry
from agentforge.merge.groups import GROUPS, block_places, group_of
from agentforge.merge.recipe import EQUAL_PLACES, Recipe, equal_weights
from agentforge.merge.ties import ties
from agentforge.merge.validity import invalid_reason
from agentforge.model.language_model import CognateLM

BLOCKS = 3
TABLE = {
    "000": ("linear", "dare", "franken"),
    "001": ("linear", "dare", "dfs"),
    "010": ("linear", "ties", "franken"),
    "011": ("linear", "ties", "dfs"),
    "100": ("slerp", "dare", "franken"),
    "101": ("slerp", "dare", "dfs"),
    "110": ("slerp", "ties", "franken"),
    "111": ("slerp", "ties", "dfs"),
}
"""The mission's table: the leftmost digit is interpolation."""


def recipe(combo: str = "000", **changes: object) -> Recipe:
    plain = Recipe(
        combo=Combo.parse(combo),
        weights=equal_weights(),
        places=EQUAL_PLACES,
        density=0.9,
        scale=1.0,
        strength=0.2,
        slots=first_slots(BLOCKS),
        seed=1,
        halting_threshold=0.5,
        write_budget=1.0,
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def family() -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """A real small model and three neighbours of it; one integer buffer beside the weights."""
    config = load_config(preset="smoke", env={}).config.model
    torch.manual_seed(0)
    base = {n: t.clone() for n, t in CognateLM(config, 40).state_dict().items()}
    base["counter"] = torch.arange(3)
    generator = torch.Generator().manual_seed(5)
    models = [
        {
            n: t + 0.1 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
            for n, t in base.items()
        }
        for _ in range(3)
    ]
    return base, models


def recipes() -> st.SearchStrategy[Recipe]:
    weight = st.floats(-1, 2)
    share = st.floats(0, 1)
    return st.builds(
        Recipe,
        combo=st.sampled_from(COMBOS),
        weights=st.tuples(*[st.tuples(*[weight] * len(GROUPS))] * 3),
        places=st.tuples(share, share),
        density=st.floats(0.05, 1),
        scale=st.floats(0, 3),
        strength=share,
        slots=st.tuples(*[st.integers(0, 3)] * BLOCKS),
        seed=st.integers(0, 2**31),
        halting_threshold=st.floats(0.05, 1),
        write_budget=st.floats(0.05, 1),
        blend=share,
        chain=st.booleans(),
    )


@pytest.mark.parametrize("digits", TABLE)
def test_combos_are_those_of_the_table(digits):
    combo = Combo.parse(digits)
    assert tuple(t.name for t in combo.techniques) == TABLE[digits]
    assert combo.digits == digits
    assert COMBOS[combo.number] == combo
    for place in range(3):
        flipped = combo.flipped(place)
        changed = [a != b for a, b in zip(flipped.digits, digits, strict=True)]
        assert changed == [i == place for i in range(3)]


def test_combos_that_are_none():
    for text in ("", "01", "0101", "012", "abc"):
        with pytest.raises(ValueError, match="three binary digits"):
            Combo.parse(text)
    for number in (-1, 8):
        with pytest.raises(ValueError, match="0 to 7"):
            Combo(number)


@given(recipes())
def test_a_recipe_comes_back_from_json_exactly(one):
    assert Recipe.from_json(one.to_json()) == one


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"density": 0.0}, "density 0.0 is not within 0.05 to 1.0"),
        ({"density": float("nan")}, "density nan"),
        ({"scale": 3.5}, "scale 3.5 is not within 0.0 to 3.0"),
        ({"strength": -0.1}, "strength -0.1"),
        ({"blend": 1.1}, "blend 1.1"),
        ({"places": (0.5, 1.5)}, "places 1.5"),
        ({"halting_threshold": 0.0}, "halting_threshold 0.0"),
        ({"write_budget": 2.0}, "write_budget 2.0"),
        ({"weights": ((3.0,) * 4,) * 3}, "weights of model 1 3.0 is not within -1.0 to 2.0"),
        ({"weights": ((0.5,) * 4,) * 2}, "three models with 4 groups"),
        ({"slots": (0, 4, 1)}, "slots"),
    ],
)
def test_numbers_out_of_bounds_are_refused(changes, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        recipe(**changes)


def test_text_that_is_no_recipe():
    for text in ("{}", '{"combo": "012"}', "[]", "no json"):
        with pytest.raises(ValueError, match=r"recipe|three binary digits|Expecting value"):
            Recipe.from_json(text)


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_three_copies_of_the_base_are_the_base_bit_for_bit(family, one):
    base, _ = family
    child = merge(base, [base] * 3, one)
    assert list(child) == list(base)
    assert all(torch.equal(child[name], base[name]) for name in base)


@pytest.mark.parametrize("digits", TABLE)
@pytest.mark.parametrize("chain", [False, True])
def test_three_copies_of_a_model_come_back_at_density_1(family, digits, chain):
    base, models = family
    one = recipe(digits, density=1.0, strength=1.0, chain=chain)
    child = merge(base, [models[0]] * 3, one)
    worst = max(
        float((child[n] - models[0][n]).abs().max()) for n in base if base[n].is_floating_point()
    )
    assert worst < 2e-6


@pytest.mark.parametrize("digits", TABLE)
def test_children_have_the_bases_form_and_change_nothing(family, digits):
    base, models = family
    before = [{n: t.clone() for n, t in m.items()} for m in (base, *models)]
    child = merge(base, models, recipe(digits))
    for name, tensor in base.items():
        assert child[name].shape == tensor.shape
        assert child[name].dtype == tensor.dtype
    assert child["counter"].tolist() == [0, 1, 2]
    for old, new in zip(before, (base, *models), strict=True):
        assert all(torch.equal(old[n], new[n]) for n in old)
    assert invalid_reason(child, base) is None
    again = merge(base, models, recipe(digits))
    assert all(torch.equal(child[n], again[n]) for n in child)


def test_the_eight_combos_are_eight_models(family):
    base, models = family
    children = [merge(base, models, recipe(d)) for d in TABLE]
    distance = geometry(base, children).distance
    assert float(distance[np.triu_indices(8, 1)].min()) > 0


def test_one_dimensional_tensors_are_merged_linearly_whatever_the_combo(family):
    base, models = family
    gains = [n for n, t in base.items() if t.ndim == 1 and t.is_floating_point()]
    assert gains
    children = [merge(base, models, recipe(d, strength=1.0, scale=2.0)) for d in TABLE]
    for name in gains:
        assert all(torch.equal(c[name], children[0][name]) for c in children)


def test_a_matrix_by_hand(family):
    """000 and 010 of one attention matrix, stage by stage."""
    base, models = family
    name = "prelude.0.attention.q.weight"
    assert group_of(name) == "attention"
    b, xs = base[name], [m[name] for m in models]
    weights = ((0.5, 0.1, 0.1, 0.1), (0.2, 0.1, 0.1, 0.1), (0.4, 0.1, 0.1, 0.1))
    shares = (0.5, 0.2, 0.4)
    stage1 = b + sum(w * (x - b) for w, x in zip(shares, xs, strict=True))
    for digits, stage2 in (
        ("000", dare(b, xs, shares, 0.7, 1, name, 0.8)),
        ("010", ties(b, xs, shares, 0.7, 0.8)),
    ):
        one = recipe(digits, weights=weights, density=0.7, scale=0.8, blend=0.25, slots=(3, 0, 0))
        mixed = 0.75 * stage1 + 0.25 * stage2
        wanted = 0.8 * mixed + 0.2 * xs[2]
        torch.testing.assert_close(merge(base, models, one)[name], wanted, rtol=0, atol=2e-6)
        chained = replace(one, chain=True)
        origin = (
            dare(stage1, xs, shares, 0.7, 1, name, 0.8)
            if digits == "000"
            else ties(stage1, xs, shares, 0.7, 0.8)
        )
        wanted = 0.8 * (0.75 * stage1 + 0.25 * origin) + 0.2 * xs[2]
        torch.testing.assert_close(merge(base, models, chained)[name], wanted, rtol=0, atol=5e-6)


def test_the_embedding_is_never_dropped(family):
    base, models = family
    name = "embedding.table"
    children = [merge(base, models, recipe("001", density=d, strength=0.0)) for d in (0.1, 1.0)]
    assert torch.equal(children[0][name], children[1][name])
    other = "prelude.0.ffn.up.weight" if "prelude.0.ffn.up.weight" in base else None
    matrices = [n for n in base if ".ffn." in n and base[n].ndim == 2]
    assert not torch.equal(children[0][other or matrices[0]], children[1][other or matrices[0]])


def test_every_tensor_has_its_group_and_block(family):
    base, _ = family
    places = block_places(base)
    assert set(places.values()) == {0, 1, 2}
    assert places["core.0.attention.q.weight"] == 2
    assert "embedding.table" not in places
    found = {group_of(n) for n in base}
    assert found == set(GROUPS)
    assert all(group_of(n) == "memory" for n in base if ".memory" in n)


@pytest.mark.parametrize("count", [2, 4])
def test_two_or_four_models_are_refused(family, count):
    base, models = family
    with pytest.raises(ValueError, match=f"{count} models; a recipe merges exactly three"):
        merge(base, (models * 2)[:count], recipe())


def test_foreign_tensors_and_slots_are_refused(family):
    base, models = family
    name = "answer.weight"
    lacking = {n: t for n, t in models[0].items() if n != name}
    with pytest.raises(ValueError, match=r"answer.weight is missing"):
        merge(base, [lacking, *models[1:]], recipe())
    other = models[0] | {name: torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"answer.weight is of shape \(2, 2\)"):
        merge(base, [other, *models[1:]], recipe())
    with pytest.raises(ValueError, match="2 slots for a model of 3 blocks"):
        merge(base, models, recipe(slots=(0, 1)))


def test_plain_mean(family):
    _, models = family
    mean = plain_mean(models)
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            wanted = sum(m[name].double() for m in models) / 3
            torch.testing.assert_close(tensor.double(), wanted, rtol=0, atol=1e-6)
    assert mean["counter"].tolist() == [0, 1, 2]


def test_what_is_not_valid(family):
    base, models = family
    good = models[0]
    assert invalid_reason(good) is None
    name = "answer.weight"
    for bad, said in (
        (good[name].clone().fill_(float("nan")), "NaN or Inf"),
        (good[name].clone().fill_(1.0), "variance"),
    ):
        reason = invalid_reason(good | {name: bad})
        assert reason is not None
        assert name in reason
        assert said in reason
    one = good[name].clone()
    one[0, 0] = float("inf")
    assert "1 of" in str(invalid_reason(good | {name: one}))
    constant = base | {name: torch.ones_like(base[name])}
    assert invalid_reason(constant, constant) is None
    gain = "latent_norm.weight"
    assert base[gain].ndim == 1
    assert invalid_reason(good | {gain: torch.ones_like(base[gain])}) is None


def test_geometry_against_flat_vectors(family):
    base, models = family
    names = [n for n in base if base[n].is_floating_point()]

    def flat(m: dict[str, Tensor]) -> Tensor:
        return torch.cat([m[n].double().flatten() for n in names])

    found = geometry(base, models)
    b, xs = flat(base), [flat(m) for m in models]
    for i in range(3):
        for j in range(3):
            d, e = xs[i] - b, xs[j] - b
            assert found.delta_cosine[i, j] == pytest.approx(float(d @ e / d.norm() / e.norm()))
            assert found.distance[i, j] == pytest.approx(float((d - e).norm()), abs=1e-5)
            cosine = float(xs[i] @ xs[j] / xs[i].norm() / xs[j].norm())
            assert found.raw_cosine[i, j] == pytest.approx(cosine)
    pairs = [(0, 1), (0, 2), (1, 2)]
    wanted = np.mean([1 - found.delta_cosine[i, j] for i, j in pairs])
    assert found.diversity == pytest.approx(float(wanted))
    assert found.base_norm == pytest.approx(float(b.norm()))


def test_diversity_of_equal_opposite_and_single_models(family):
    base, models = family
    assert geometry(base, [models[0]] * 3).diversity == pytest.approx(0.0, abs=1e-12)
    opposite = {n: 2 * base[n] - t for n, t in models[0].items()}
    assert geometry(base, [models[0], opposite]).diversity == pytest.approx(2.0, abs=1e-6)
    assert geometry(base, [base, base]).diversity == 0.0
    assert geometry(base, models[:1]).diversity == 0.0
