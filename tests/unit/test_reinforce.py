"""REINFORCE against exact enumeration, KL against its definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from agentforge.thinking.reinforce import exact_kl, leave_one_out, policy_loss

V, LENGTH = 5, 2


class Policy(torch.nn.Module):
    """p(x1) p(x2 | x1) over five tokens, all parameters free."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = torch.nn.Parameter(torch.randn(V, generator=generator, dtype=torch.float64))
        self.second = torch.nn.Parameter(
            torch.randn(V, V, generator=generator, dtype=torch.float64)
        )

    def logits(self, words: torch.Tensor) -> torch.Tensor:
        """(N, 2) -> (N, 2, V)."""
        first = self.first.expand(len(words), V)
        return torch.stack((first, self.second[words[:, 0]]), dim=1)


def reward(words: torch.Tensor) -> torch.Tensor:
    return ((words[:, 0] + 2 * words[:, 1]) % 3 == 0).double() + 0.5 * (words[:, 0] == 4)


def exact_gradient(policy: Policy) -> torch.Tensor:
    words = torch.tensor(list(itertools.product(range(V), repeat=LENGTH)))
    log_p = F.log_softmax(policy.logits(words), -1).gather(2, words[..., None])[..., 0].sum(1)
    expected = (log_p.exp() * reward(words)).sum()
    grads = torch.autograd.grad(expected, list(policy.parameters()))
    return torch.cat([g.flatten() for g in grads])


def test_gradient_of_the_loss_is_the_exact_gradient_of_the_expected_reward() -> None:
    policy = Policy()
    exact = exact_gradient(policy)
    questions, samples = 25_000, 4
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        first = torch.multinomial(
            policy.first.softmax(0), questions * samples, replacement=True, generator=generator
        )
        second = torch.multinomial(policy.second.softmax(1)[first], 1, generator=generator)[:, 0]
    words = torch.stack((first, second), 1)
    advantage = leave_one_out(reward(words).view(questions, samples)).flatten()
    logits = policy.logits(words).flatten(0, 1)
    loss = policy_loss(
        logits, logits.detach(), words.flatten(), advantage.repeat_interleave(LENGTH), 0.0
    )
    grads = torch.autograd.grad(loss.total, list(policy.parameters()))
    # The loss is a mean over tokens: LENGTH of them a sample. It works in fp32.
    found = -LENGTH * torch.cat([g.flatten() for g in grads])
    assert float((found - exact).abs().max()) < 0.01 * float(exact.abs().max()) + 2e-3


def test_baseline_removes_nothing_but_noise_and_agreeing_samples_teach_nothing() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    found = leave_one_out(rewards)
    assert torch.equal(found[0], torch.zeros(3))
    assert found[1].tolist() == pytest.approx([-0.5, 1.0, -0.5])
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(torch.ones(3, 1))


def test_kl_to_itself_is_zero_and_its_gradient_pulls_back() -> None:
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(40, 11, generator=generator)
    same = reference.clone().requires_grad_()
    zero = torch.zeros(40)
    tokens = torch.randint(11, (40,), generator=generator)
    found = policy_loss(same, reference, tokens, zero, 2.0)
    assert float(found.kl) == 0.0
    assert float(torch.autograd.grad(found.total, same)[0].abs().max()) < 1e-7
    away = (reference + 0.5 * torch.randn(40, 11, generator=generator)).requires_grad_()
    expected = F.kl_div(
        F.log_softmax(reference, -1), F.log_softmax(away, -1), log_target=True, reduction="none"
    ).sum(-1)
    loss = policy_loss(away, reference, tokens, zero, 1.0)
    assert float(loss.kl) == pytest.approx(float(expected.mean().detach()), rel=1e-5)
    torch.testing.assert_close(exact_kl(away, reference), expected)
    step = away - 5.0 * torch.autograd.grad(loss.total, away)[0]
    assert float(exact_kl(step, reference).mean()) < float(loss.kl)
    assert float(loss.entropy) > 0
