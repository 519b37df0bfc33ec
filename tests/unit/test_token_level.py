"""Quiet-STaR at token level: mixing, rewards, gradients, theatre's easiest place."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from agentforge.model.behaviour import ALL_STEPS, Behaviour
from agentforge.thinking.token_level import (
    TokenThoughts,
    sample_thoughts,
    token_level_loss,
)
from tests.unit.thinking_models import VOCAB, small_model

BEHAVIOUR = Behaviour(ALL_STEPS, 1.0)
IDS = torch.randint(VOCAB, (2, 20), generator=torch.Generator().manual_seed(4))
PLACES = torch.tensor([[2, 9, 15], [0, 7, 11]])


def drawn(model: object, extra: TokenThoughts, seed: int = 0) -> torch.Tensor:
    return sample_thoughts(
        model,  # type: ignore[arg-type]
        extra,
        IDS,
        PLACES,
        BEHAVIOUR,
        thoughts=4,
        length=5,
        generator=torch.Generator().manual_seed(seed),
    )


def test_mixing_weight_zero_is_the_base_model_exactly() -> None:
    model = small_model()
    extra = TokenThoughts(model, 1, 2)
    thoughts = drawn(model, extra)
    with torch.no_grad():
        found = token_level_loss(
            model, extra, IDS, PLACES, thoughts, BEHAVIOUR, talk=4, mixing_weight=0.0
        )
        log_p = F.log_softmax(model.embedding.logits(model.run(IDS, BEHAVIOUR).answer), -1)
    assert float(found.gain) == 0.0
    assert float(found.reward_std) == 0.0
    for b in range(2):
        for p in range(3):
            at = int(PLACES[b, p]) + torch.arange(4)
            expected = log_p[b, at].gather(1, IDS[b, at + 1][:, None]).sum()
            assert torch.allclose(found.log_likelihood[b, p], expected.expand(4))


def test_likelihood_at_weight_one_is_that_of_prefix_thought_and_text_in_a_row() -> None:
    model = small_model()
    extra = TokenThoughts(model, 1, 2)
    thoughts = drawn(model, extra)
    with torch.no_grad():
        found = token_level_loss(
            model, extra, IDS, PLACES, thoughts, BEHAVIOUR, talk=4, mixing_weight=1.0
        )
        for b, p, g in ((0, 0, 0), (0, 2, 3), (1, 1, 2)):
            place = int(PLACES[b, p])
            future = IDS[b, place + 1 : place + 5]
            # The start and end vectors begin as the rows of tokens 1 and 2.
            middle = torch.tensor([1, *thoughts[b, p, g].tolist(), 2])
            whole = torch.cat((IDS[b, : place + 1], middle, future[:-1]))[None]
            answer = model.run(whole, BEHAVIOUR).answer[0, -4:]
            expected = F.log_softmax(model.embedding.logits(answer), -1)
            expected = expected.gather(1, future[:, None]).sum()
            torch.testing.assert_close(found.log_likelihood[b, p, g], expected)


def test_rewards_are_compared_within_a_position_and_thoughts_get_gradient_from_them_alone() -> None:
    model = small_model()
    extra = TokenThoughts(model, 1, 2)
    thoughts = drawn(model, extra)
    same = thoughts[:, :, :1].expand(-1, -1, 4, -1)
    found = token_level_loss(model, extra, IDS, PLACES, same, BEHAVIOUR, talk=3)
    assert float(found.reward_std) < 1e-6
    different = token_level_loss(model, extra, IDS, PLACES, thoughts, BEHAVIOUR, talk=3)
    assert float(different.reward_std) > 1e-3
    plain = token_level_loss(
        model, extra, IDS, PLACES, thoughts, BEHAVIOUR, talk=3, reinforce_weight=0.0
    )
    assert float(plain.total.detach()) != float(different.total.detach())


def test_reinforce_term_against_the_loop_of_the_paper() -> None:
    model = small_model()
    extra = TokenThoughts(model, 1, 2)
    thoughts = drawn(model, extra)
    on = token_level_loss(model, extra, IDS, PLACES, thoughts, BEHAVIOUR, talk=3)
    off = token_level_loss(
        model, extra, IDS, PLACES, thoughts, BEHAVIOUR, talk=3, reinforce_weight=0.0
    )
    total = 0.0
    with torch.no_grad():
        reward = on.log_likelihood - on.log_likelihood.mean(-1, keepdim=True)
        for b in range(2):
            for p in range(3):
                prefix = IDS[b, : int(PLACES[b, p]) + 1]
                for g in range(4):
                    thought = thoughts[b, p, g]
                    whole = torch.cat((prefix, torch.tensor([1]), thought[:-1]))[None]
                    answer = model.run(whole, BEHAVIOUR).answer[0, len(prefix) :]
                    log_p = F.log_softmax(model.embedding.logits(answer), -1)
                    chosen = log_p.gather(1, thought[:, None])[:, 0]
                    total -= float(reward[b, p, g] * chosen.sum())
    assert float((on.total - off.total).detach()) == pytest.approx(
        total / thoughts.numel(), abs=1e-5
    )


def test_start_end_and_mixing_learn() -> None:
    model = small_model()
    extra = TokenThoughts(model, 1, 2)
    loss = token_level_loss(model, extra, IDS, PLACES, drawn(model, extra), BEHAVIOUR, talk=3)
    loss.total.backward()
    assert extra.start.grad is not None
    assert extra.end.grad is not None
    assert float(extra.start.grad.abs().sum()) > 0
    assert float(extra.end.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in extra.mixing.parameters())


def test_sampling_repeats_and_never_writes_what_is_forbidden() -> None:
    model = small_model()
    extra = TokenThoughts(model, 1, 2)
    assert torch.equal(drawn(model, extra, 7), drawn(model, extra, 7))
    assert not torch.equal(drawn(model, extra, 7), drawn(model, extra, 8))
    allowed = tuple(i for i in range(VOCAB) if i not in (5, 6))
    found = sample_thoughts(
        model,
        extra,
        IDS,
        PLACES,
        BEHAVIOUR,
        thoughts=2,
        length=6,
        generator=torch.Generator().manual_seed(0),
        forbidden=allowed,
    )
    assert set(found.unique().tolist()) <= {5, 6}


def test_a_place_without_a_future_is_refused() -> None:
    model = small_model()
    extra = TokenThoughts(model, 1, 2)
    places = torch.tensor([[18], [3]])
    thoughts = torch.zeros(2, 1, 2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="beyond 20 tokens"):
        token_level_loss(model, extra, IDS, places, thoughts, BEHAVIOUR, talk=2)
