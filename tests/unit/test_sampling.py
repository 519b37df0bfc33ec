"""Sampling: the same luck for the same row, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentforge.model.behaviour import Behaviour
from agentforge.model.decode import generate_greedy
from agentforge.thinking.sampling import draws, sample
from tests.unit.thinking_models import VOCAB, small_model

BEHAVIOUR = Behaviour(0.5, 1.0)
PROMPTS = [[3, 4, 5], [9, 8, 7, 6, 5, 4], [11], [3, 4, 5, 20]]
STOP = 1


def test_greedy_equals_the_plain_decoder() -> None:
    model = small_model()
    found = sample(model, PROMPTS, BEHAVIOUR, stop_id=STOP, max_new_tokens=9, temperature=0.0)
    plain = generate_greedy(model, [list(p) for p in PROMPTS], BEHAVIOUR, 9, STOP)
    assert [list(c.tokens) for c in found] == plain


def test_a_row_does_not_depend_on_its_batch_nor_on_padding() -> None:
    model = small_model()
    together = sample(
        model,
        PROMPTS,
        BEHAVIOUR,
        stop_id=STOP,
        max_new_tokens=12,
        temperature=1.0,
        seed=5,
        copies=3,
    )
    for place, prompt in enumerate(PROMPTS):
        alone = sample(
            model,
            [prompt],
            BEHAVIOUR,
            stop_id=STOP,
            max_new_tokens=12,
            temperature=1.0,
            seed=5,
            rows=[place],
            copies=3,
        )
        assert alone == together[3 * place : 3 * place + 3]


def test_copies_and_seeds_differ_and_repeat() -> None:
    model = small_model()

    def of(seed: int) -> list[tuple[int, ...]]:
        found = sample(
            model, PROMPTS, BEHAVIOUR, stop_id=STOP, max_new_tokens=8, temperature=1.5, seed=seed,
            copies=2,
        )  # fmt: skip
        return [c.tokens for c in found]

    assert of(1) == of(1)
    assert of(1) != of(2)
    assert of(1)[0] != of(1)[1]


def test_frequencies_follow_the_probabilities() -> None:
    model = small_model()
    with torch.no_grad():
        answer = model.run(torch.tensor([[3, 4]]), BEHAVIOUR).answer[0, -1]
        p = (model.embedding.logits(answer).double() / 0.8).softmax(-1).numpy()
    found = sample(
        model, [[3, 4]], BEHAVIOUR, stop_id=VOCAB + 5, max_new_tokens=1, temperature=0.8,
        seed=2, copies=20_000,
    )  # fmt: skip
    count = np.bincount([c.tokens[0] for c in found], minlength=VOCAB)
    # Chi-square with 36 degrees of freedom: 99.9 % lie below 68 (cells of tiny mass pooled).
    big = 20_000 * p > 5
    rest = np.array([20_000 * p[~big].sum(), count[~big].sum()])
    chi = float((((count - 20_000 * p) ** 2) / (20_000 * p))[big].sum())
    chi += (rest[1] - rest[0]) ** 2 / max(rest[0], 1.0)
    assert chi < 80


def test_forbidden_tokens_ends_and_limits() -> None:
    model = small_model(context=16)
    found = sample(
        model, [[3] * 10, [4]], BEHAVIOUR, stop_id=STOP, max_new_tokens=40, temperature=1.0,
        forbidden=[STOP, 2],
    )  # fmt: skip
    assert [len(c.tokens) for c in found] == [6, 15]
    assert not any(c.ended for c in found)
    assert not any(2 in c.tokens for c in found)
    only = sample(
        model, [[3]], BEHAVIOUR, stop_id=STOP, max_new_tokens=40, temperature=1.0,
        forbidden=[i for i in range(VOCAB) if i != STOP],
    )  # fmt: skip
    assert only[0].ended
    assert only[0].tokens == ()
    assert sample(model, [], BEHAVIOUR, stop_id=1, max_new_tokens=3, temperature=0.0) == []


def test_draws_depend_on_seed_and_row_alone() -> None:
    whole = draws(4, [0, 1, 2], 50)
    assert np.array_equal(draws(4, [2], 50)[0], whole[2])
    assert np.array_equal(draws(4, [1], 20)[0], whole[1, :20])
    assert not np.array_equal(draws(5, [1], 20)[0], whole[1, :20])


def test_bad_arguments_are_refused() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="temperature -1"):
        sample(model, [[1]], BEHAVIOUR, stop_id=1, max_new_tokens=3, temperature=-1.0)
    with pytest.raises(ValueError, match="must have tokens"):
        sample(model, [[]], BEHAVIOUR, stop_id=1, max_new_tokens=3, temperature=0.0)
