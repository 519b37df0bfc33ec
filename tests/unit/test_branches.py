"""Branches against the loop that runs prefix and branch as one sequence."""

from __future__ import annotations

import pytest
import torch

from agentforge.model.behaviour import ALL_STEPS, Behaviour
from agentforge.model.branches import branch_mask, run_branches, run_embedded_branches
from tests.unit.thinking_models import VOCAB, small_model

BEHAVIOURS = [
    Behaviour(ALL_STEPS, 1.0),
    Behaviour(0.55, 0.5),
    Behaviour(0.4, 0.0),
]


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("window", [3, 7, 64])
def test_a_branch_is_its_prefix_and_itself_run_as_one_sequence(
    behaviour: Behaviour, window: int
) -> None:
    model = small_model(window)
    torch.manual_seed(1)
    ids = torch.randint(VOCAB, (3, 17))
    places = torch.tensor([[0, 5, 16, 5], [2, 3, 4, 11], [7, 15, 8, 1]])
    branch_ids = torch.randint(VOCAB, (3, 4, 6))
    with torch.no_grad():
        found = run_branches(model, ids, places, branch_ids, behaviour)
        for b in range(3):
            for p in range(4):
                prefix = ids[b, : int(places[b, p]) + 1]
                whole = torch.cat((prefix, branch_ids[b, p]))[None]
                expected = model.run(whole, behaviour).answer[0, len(prefix) :]
                torch.testing.assert_close(found.branch[b, p], expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_the_sequence_itself_keeps_every_bit(behaviour: Behaviour) -> None:
    model = small_model()
    ids = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(2))
    places = torch.tensor([[3, 9], [0, 11]])
    with torch.no_grad():
        found = run_branches(model, ids, places, torch.zeros(2, 2, 4, dtype=torch.int64), behaviour)
        assert torch.equal(found.base, model.run(ids, behaviour).answer)


def test_gradients_do_not_leak_between_branches_or_from_the_rest_of_the_sequence() -> None:
    model = small_model(window=64)
    behaviour = Behaviour(ALL_STEPS, 1.0)
    ids = torch.randint(VOCAB, (1, 10), generator=torch.Generator().manual_seed(5))
    places = torch.tensor([[4, 7]])
    embedded = model.embedding(torch.randint(VOCAB, (1, 2, 5))).detach().requires_grad_()
    states = run_embedded_branches(model, ids, places, embedded, behaviour).branch
    (gradient,) = torch.autograd.grad(states[0, 0, 2].sum(), embedded)
    assert gradient[0, 0, :3].abs().sum() > 0
    assert torch.count_nonzero(gradient[0, 0, 3:]) == 0
    assert torch.count_nonzero(gradient[0, 1]) == 0


def test_mask_of_one_sequence_with_two_branches() -> None:
    mask = branch_mask(4, torch.tensor([[1, 3]]), 2, window=3)[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [0, 1, 0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 1, 1],
    ]


def test_a_branch_beyond_the_context_is_refused() -> None:
    model = small_model(context=16)
    with pytest.raises(ValueError, match="the context is 16"):
        run_branches(
            model,
            torch.zeros(1, 12, dtype=torch.int64),
            torch.tensor([[11]]),
            torch.zeros(1, 1, 5, dtype=torch.int64),
            Behaviour(),
        )
