"""Changing token t changes no output before t, and does change outputs from t on."""

from __future__ import annotations

import itertools

import pytest
import torch

from agentforge.model.behaviour import ALL_STEPS, Behaviour
from tests.unit.tiny_models import VOCAB, random_ids, tiny_model

torch.set_num_threads(1)

LENGTH = 13
SHAPES = list(itertools.product((1, 2, 3, 4), (1, 2), (1, 2), (0.0, 1.0)))


@pytest.mark.parametrize(("depth", "latent", "core", "budget"), SHAPES)
@pytest.mark.parametrize("threshold", [0.5, ALL_STEPS])
def test_forward_is_causal(
    depth: int, latent: int, core: int, budget: float, threshold: float
) -> None:
    model = tiny_model(7, recursion_steps=depth, latent_steps=latent, n_core=core)
    behaviour = Behaviour(threshold, budget)
    ids = random_ids(1, LENGTH)
    before = model(ids, behaviour)
    for t in (0, 4, 8, LENGTH - 1):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % VOCAB
        after = model(changed, behaviour)
        moved = (after.answer - before.answer).abs().amax(-1)[0]
        assert float(moved[:t].max()) < 1e-6 if t else True
        assert torch.equal(after.steps[:, :t], before.steps[:, :t])
        assert float(moved[t]) > 1e-4
        assert float(moved[t + 1 :].max()) > 1e-5 if t + 1 < LENGTH else True


@pytest.mark.parametrize(("depth", "latent", "core", "budget"), SHAPES)
def test_training_forward_is_causal_at_every_step(
    depth: int, latent: int, core: int, budget: float
) -> None:
    model = tiny_model(8, recursion_steps=depth, latent_steps=latent, n_core=core)
    ids, t = random_ids(2, LENGTH), 6
    changed = ids.clone()
    changed[1, t] = (changed[1, t] + 5) % VOCAB
    behaviour = Behaviour(write_budget=budget)
    with torch.no_grad():
        pairs = zip(model.answers(ids, behaviour), model.answers(changed, behaviour), strict=True)
        differences = [(a - b).abs().amax(-1) for a, b in pairs]
    assert len(differences) == depth
    for moved in differences:
        assert float(moved[0].max()) < 1e-6  # another row
        assert float(moved[1, :t].max()) < 1e-6
        assert float(moved[1, t]) > 1e-4


def test_gradients_flow_from_a_token_to_its_past_only() -> None:
    model = tiny_model(9)
    embedded: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    handle = model.embedding.register_forward_hook(keep)
    model.answers(random_ids(2, LENGTH), Behaviour())[-1][0, 5].sum().backward()
    handle.remove()
    gradient = embedded[0].grad
    assert gradient is not None
    size = gradient.abs().amax(-1)
    assert float(size[0, 6:].max()) == 0.0
    assert float(size[1].max()) == 0.0
    assert bool((size[0, :6] > 0).all())


def test_without_memory_nothing_passes_beyond_the_windows() -> None:
    """Two prelude blocks and one core pass, windows of 5: 12 tokens back and not one more."""
    model = tiny_model(3, recursion_steps=1)
    ids = random_ids(1, 25)
    changed = ids.clone()
    changed[0, 3] = (changed[0, 3] + 1) % VOCAB
    reach = 3 * (model.config.window - 1)
    for budget, beyond in ((0.0, False), (1.0, True)):
        behaviour = Behaviour(ALL_STEPS, budget)
        moved = (model(changed, behaviour).answer - model(ids, behaviour).answer).abs().amax(-1)[0]
        assert float(moved[3 + reach]) > 0
        assert (float(moved[3 + reach + 1 :].max()) > 1e-6) is beyond
