"""Adaptive halting: the distribution's algebra, and what a halted position means."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentforge.model.behaviour import ALL_STEPS, Behaviour
from agentforge.model.halting import HaltingHead, log_halting, log_prior, prior_kl
from agentforge.model.language_model import CognateLM
from tests.unit.tiny_models import random_ids, tiny_model

torch.set_num_threads(1)

LOGITS = st.lists(
    st.floats(-40, 40, allow_nan=False, width=32),
    min_size=0,
    max_size=9,  # none: one step
)


@settings(max_examples=200, deadline=None)
@given(LOGITS)
def test_halting_probabilities_sum_to_one_and_follow_the_definition(logits: list[float]) -> None:
    x = torch.tensor(logits, dtype=torch.float64)[:, None]
    p = log_halting(x).exp()[:, 0]
    assert p.shape == (len(logits) + 1,)
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
    left = 1.0
    for n, logit in enumerate(logits):
        stop = 1 / (1 + math.exp(-logit))
        assert float(p[n]) == pytest.approx(left * stop, rel=1e-9, abs=1e-300)
        left *= 1 / (1 + math.exp(logit))
    assert float(p[-1]) == pytest.approx(left, rel=1e-9, abs=1e-300)


@settings(max_examples=200, deadline=None)
@given(LOGITS.filter(bool), st.floats(0.01, 0.99))
def test_kl_is_never_negative(logits: list[float], rate: float) -> None:
    kl = prior_kl(log_halting(torch.tensor(logits)[:, None]), rate)
    assert kl.shape == (1,)
    assert float(kl) >= -1e-5
    assert math.isfinite(float(kl))


@pytest.mark.parametrize("steps", [2, 3, 7])
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.8])
def test_kl_is_zero_exactly_at_the_prior(steps: int, rate: float) -> None:
    logit = math.log(rate / (1 - rate))
    equal = log_halting(torch.full((steps - 1, 2), logit))
    assert float(prior_kl(equal, rate).abs().max()) < 1e-6
    moved = log_halting(torch.full((steps - 1, 2), logit + 0.5))
    assert float(prior_kl(moved, rate).min()) > 1e-3
    assert float(log_prior(steps, rate, torch.device("cpu")).exp().sum()) == pytest.approx(1, 1e-6)


@pytest.mark.parametrize(("steps", "lam"), [(1, 0.3), (4, 0.3), (6, 0.9)])
def test_constant_lambda_gives_the_geometric_distribution_cut_off(steps: int, lam: float) -> None:
    logit = math.log(lam / (1 - lam))
    p = log_halting(torch.full((steps - 1, 3), logit, dtype=torch.float64)).exp()
    expected = [lam * (1 - lam) ** n for n in range(steps - 1)] + [(1 - lam) ** (steps - 1)]
    torch.testing.assert_close(p[:, 1], torch.tensor(expected, dtype=torch.float64))
    prior = log_prior(steps, lam, torch.device("cpu")).exp().double()
    torch.testing.assert_close(
        prior, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7
    )


def test_kl_gradient_against_differences() -> None:
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def kl(logits: torch.Tensor) -> torch.Tensor:
        log_p = log_halting(logits)
        prior = log_prior(4, 0.3, torch.device("cpu")).double()[:, None]
        return (log_p.exp() * (log_p - prior)).sum()

    assert torch.autograd.gradcheck(kl, (x,))
    x = x.detach()
    assert float(prior_kl(log_halting(x), 0.3).sum()) == pytest.approx(float(kl(x)), rel=1e-6)


def test_a_new_head_neither_stops_at_once_nor_looks_at_its_input() -> None:
    head = HaltingHead(12, 1e-6)
    logits = head(torch.randn(3, 12))
    torch.testing.assert_close(logits, torch.full((3,), -1.0))


def biased(bias: float, **changes: object) -> CognateLM:
    model = tiny_model(**changes)
    with torch.no_grad():
        model.halting.logit.weight.zero_()
        model.halting.logit.bias.fill_(bias)
    return model


@pytest.mark.parametrize("threshold", [0.05, 0.5, 1.0])
def test_a_head_biased_to_stop_halts_every_position_at_step_one(threshold: float) -> None:
    model, ids = biased(20.0), random_ids(3, 9)
    # 1 - sigmoid(20) is 2e-9: the cumulative probability rounds to 1, which reaches even 1.0.
    found = model(ids, Behaviour(halting_threshold=threshold))
    assert found.steps.tolist() == [[1] * 9] * 3
    one = model(ids, Behaviour(ALL_STEPS, recursion_steps=1))
    assert torch.equal(found.answer, one.answer)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_head_biased_to_go_on_takes_all_steps(steps: int) -> None:
    model, ids = biased(-20.0), random_ids(2, 7)
    found = model(ids, Behaviour(0.5, recursion_steps=steps))
    assert found.steps.unique().tolist() == [steps]
    torch.testing.assert_close(
        found.answer, model.answers(ids, Behaviour(recursion_steps=steps))[-1], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("latent_steps", [1, 2])
@pytest.mark.parametrize(
    ("bias", "threshold", "expected"), [(0.0, 0.4, 1), (0.0, 0.7, 2), (-1.0, 0.6, 3)]
)
def test_halting_at_a_step_gives_the_answer_of_a_run_with_that_many_steps(
    latent_steps: int, bias: float, threshold: float, expected: int
) -> None:
    """All positions halt together: sigmoid(0) = .5 a step, sigmoid(-1) = .27 a step."""
    model = biased(bias, latent_steps=latent_steps, recursion_steps=6)
    ids = random_ids(2, 8)
    found = model(ids, Behaviour(threshold))
    assert found.steps.unique().tolist() == [expected]
    short = model(ids, Behaviour(ALL_STEPS, recursion_steps=expected))
    torch.testing.assert_close(found.answer, short.answer, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        found.answer, model.answers(ids, Behaviour())[expected - 1], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_single_token_gives_the_answer_of_a_run_with_its_steps(seed: int) -> None:
    model = tiny_model(seed, recursion_steps=5)
    taken = set()
    for token in range(12):
        ids = torch.tensor([[token]])
        found = model(ids, Behaviour(0.5))
        steps = int(found.steps)
        taken.add(steps)
        short = model(ids, Behaviour(ALL_STEPS, recursion_steps=steps))
        torch.testing.assert_close(found.answer, short.answer, rtol=0, atol=1e-6)
    assert len(taken) > 1, "the seed's head is constant: the test shows nothing"


def test_steps_follow_the_cumulative_probability() -> None:
    """Each position's steps from its own lambdas, as long as nobody before it halted."""
    model, ids = tiny_model(2, recursion_steps=5), random_ids(1, 1)
    with torch.no_grad():
        answers = model.answers(ids, Behaviour())
    survival, expected = 1.0, 5
    for step, answer in enumerate(answers[:-1], start=1):
        survival *= 1 - float(torch.sigmoid(model.halting(answer).detach()))
        if 1 - survival >= 0.6:
            expected = step
            break
    assert int(model(ids, Behaviour(0.6)).steps) == expected


def test_a_halted_position_keeps_its_answer_while_others_go_on() -> None:
    model, ids = tiny_model(1, recursion_steps=4), random_ids(2, 12)
    results = [model(ids, Behaviour(0.5, recursion_steps=r)) for r in (1, 2, 3, 4)]
    final = results[-1]
    assert final.steps.unique().numel() > 1
    for r, earlier in enumerate(results[:-1], start=1):
        halted = final.steps <= r
        assert torch.equal(final.answer[halted], earlier.answer[halted])
        assert torch.equal(final.steps[halted], earlier.steps[halted])
        assert bool((earlier.steps[~halted] == r).all())


@pytest.mark.parametrize("padding", [1, 6, 20])
def test_padding_on_the_right_changes_nothing_before_it(padding: int) -> None:
    model, ids = tiny_model(4), random_ids(2, 9)
    plain = model(ids, Behaviour(0.5))
    padded = model(torch.cat([ids, torch.zeros(2, padding, dtype=torch.int64)], 1), Behaviour(0.5))
    torch.testing.assert_close(
        model.embedding.logits(padded.answer[:, :9]),
        model.embedding.logits(plain.answer),
        rtol=0,
        atol=1e-5,
    )
    assert torch.equal(padded.steps[:, :9], plain.steps)
