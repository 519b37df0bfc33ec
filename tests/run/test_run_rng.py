from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from agentforge.run.rng import RngState, capture_rng, restore_rng


def draw(generators: dict[str, np.random.Generator], own: torch.Generator) -> list[object]:
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.standard_normal(3).tolist(),  # noqa: NPY002
        torch.rand(3).tolist(),
        torch.randn(3, generator=own).tolist(),
        [[g.random(), int(g.integers(2**40)), g.normal()] for g in generators.values()],
    ]


@pytest.mark.parametrize(
    "kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64]
)
def test_the_same_numbers_follow_after_json(kind: type[np.random.BitGenerator]) -> None:
    generators = {"order": np.random.Generator(kind(7)), "mask": np.random.Generator(kind(8))}
    own = torch.Generator().manual_seed(3)
    draw(generators, own)
    random.gauss(0, 1)  # leaves half of a pair behind, which is part of the state
    state = capture_rng(generators, {"own": own})
    text = json.dumps(state.state)
    first = draw(generators, own)
    assert draw(generators, own) != first
    saved = RngState(json.loads(text), state.tensors)
    restore_rng(saved, generators, {"own": own})
    assert draw(generators, own) == first
    # Into fresh generators, as a resumed run does.
    fresh = {name: np.random.Generator(kind(1)) for name in generators}
    restore_rng(saved, fresh, {"own": (other := torch.Generator())})
    assert draw(fresh, other) == first


def test_a_foreign_generator_is_an_error() -> None:
    with pytest.raises(KeyError, match="order"):
        restore_rng(capture_rng(), {"order": np.random.default_rng(0)})


def test_states_of_cards_that_are_not_there_are_left_alone() -> None:
    state = capture_rng()
    state.tensors["cuda.0"] = torch.zeros(16, dtype=torch.uint8)
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    restore_rng(state)
