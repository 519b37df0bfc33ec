"""Parameter roles, the Grokfast filter and QK-clip, each against its definition."""

import math

import pytest
import torch
from torch import Tensor, nn

from agentforge.errors import CheckpointError
from agentforge.optim.grokfast import GrokfastEMA
from agentforge.optim.groups import split_parameters
from agentforge.optim.qk_clip import qk_clip_


def parameters() -> dict[str, nn.Parameter]:
    return {
        "embed": nn.Parameter(torch.ones(7, 3)),
        "w": nn.Parameter(torch.ones(5, 3)),
        "mix": nn.Parameter(torch.ones(2, 3, 1)),
        "gain": nn.Parameter(torch.ones(3)),
        "scale": nn.Parameter(torch.tensor(1.0)),
    }


def test_every_parameter_gets_one_role() -> None:
    named = parameters()
    roles = split_parameters(named, {"w": named["w"]})
    assert list(roles.hidden) == ["w"]
    assert list(roles.decayed) == ["embed", "mix"]
    assert list(roles.plain) == ["gain", "scale"]


@pytest.mark.parametrize("name", ["mix", "gain", "scale"])
def test_hidden_must_be_a_matrix(name: str) -> None:
    named = parameters()
    with pytest.raises(ValueError, match="2-D only"):
        split_parameters(named, {name: named[name]})


def test_hidden_must_be_the_models_own() -> None:
    named = parameters()
    with pytest.raises(ValueError, match="not a parameter of the model"):
        split_parameters(named, {"other": named["w"]})
    with pytest.raises(ValueError, match="not the model's parameter"):
        split_parameters(named, {"w": nn.Parameter(torch.ones(5, 3))})


def test_tied_matrix_cannot_be_hidden() -> None:
    named = parameters()
    named["head"] = named["embed"]
    with pytest.raises(ValueError, match="tied"):
        split_parameters(named, {"embed": named["embed"]})
    named["view"] = nn.Parameter(named["w"].detach().view(5, 3))  # another object, same storage
    with pytest.raises(ValueError, match="tied"):
        split_parameters(named, {"w": named["w"]})
    assert "w" in split_parameters(named, {}).decayed, "tied weights are fine for AdamW"


def test_grokfast_is_the_papers_recurrence_bit_for_bit() -> None:
    torch.manual_seed(0)
    a, b = nn.Parameter(torch.zeros(3, 5)), nn.Parameter(torch.zeros(4))
    grokfast = GrokfastEMA({"a": a, "b": b}, alpha=0.9, lam=0.3)
    slow: dict[str, Tensor] = {}
    for step in range(6):
        raw = {"a": torch.randn(3, 5), "b": torch.randn(4)}
        a.grad, b.grad = raw["a"].clone(), raw["b"].clone()
        stats = grokfast.apply()
        for name, gradient in raw.items():
            slow[name] = gradient if step == 0 else 0.9 * slow[name] + (1 - 0.9) * gradient
        assert torch.equal(a.grad, raw["a"] + 0.3 * slow["a"])
        assert torch.equal(b.grad, raw["b"] + 0.3 * slow["b"])
        assert stats is not None
        flat_raw = torch.cat([raw["a"].flatten(), raw["b"]])
        flat_slow = torch.cat([slow["a"].flatten(), slow["b"]])
        assert stats.raw_norm == pytest.approx(float(flat_raw.norm()), rel=1e-5)
        assert stats.ratio == pytest.approx(float(flat_slow.norm() / flat_raw.norm()), rel=1e-5)
        assert stats.filtered == 2


def test_grokfast_ratio_is_one_for_a_constant_gradient_and_small_for_noise() -> None:
    p = nn.Parameter(torch.zeros(64, 64))
    steady, noisy = (GrokfastEMA({"p": p}, 0.98, 0.1) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        p.grad = torch.ones(64, 64)
        constant = steady.apply()
        p.grad = torch.randn(64, 64, generator=generator)
        noise = noisy.apply()
    assert constant is not None
    assert noise is not None
    assert constant.ratio == pytest.approx(1.0, rel=1e-5)
    # Stationary EMA of white noise: sqrt((1 - alpha) / (1 + alpha)) = 0.1005.
    assert noise.ratio == pytest.approx(math.sqrt(0.02 / 1.98), rel=0.05)


def test_grokfast_off_keeps_no_state() -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    grokfast = GrokfastEMA({"p": p}, 0.98, 0.0)
    assert grokfast.apply() is None
    assert grokfast.state_tensors() == {}
    assert torch.equal(p.grad, torch.ones(2, 2))
    with pytest.raises(CheckpointError, match="grokfast_lambda is 0"):
        grokfast.load_state_tensors({"p": torch.ones(2, 2)})


def test_grokfast_leaves_missing_gradients_alone() -> None:
    p, q = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    grokfast = GrokfastEMA({"p": p, "q": q}, 0.5, 1.0)
    p.grad = torch.ones(2, 2)
    stats = grokfast.apply()
    assert stats is not None
    assert stats.filtered == 1
    assert q.grad is None
    assert set(grokfast.state_tensors()) == {"p"}
    q.grad = torch.ones(2, 2)  # a late first gradient starts its own average: E_0 = g_0
    grokfast.apply()
    assert torch.equal(q.grad, torch.full((2, 2), 2.0))


def logits(x: Tensor, q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Attention logits (heads, positions, positions)."""
    width = q.shape[0] // heads
    queries = (x @ q.T).view(-1, heads, width).transpose(0, 1)
    keys = (x @ k.T).view(-1, heads, width).transpose(0, 1)
    return queries @ keys.transpose(1, 2) / math.sqrt(width)


@pytest.mark.parametrize(("heads", "width", "d_in"), [(4, 6, 24), (1, 8, 8), (3, 2, 10)])
def test_qk_clip_brings_the_largest_logit_to_tau(heads: int, width: int, d_in: int) -> None:
    generator = torch.Generator().manual_seed(heads)
    x = torch.randn(20, d_in, generator=generator)
    q = torch.randn(heads * width, d_in, generator=generator)
    k = torch.randn(heads * width, d_in, generator=generator)
    q[-width:] *= 5  # the last head is the loud one
    q_before, k_before = q.clone(), k.clone()
    s_max = logits(x, q, k, heads).amax(dim=(1, 2))
    quiet = s_max[:-1].max().item() if heads > 1 else 0.0
    tau = (quiet + s_max[-1].item()) / 2
    assert qk_clip_(q, k, s_max, tau) == 1
    after = logits(x, q, k, heads).amax(dim=(1, 2))
    assert after[-1].item() == pytest.approx(tau, rel=1e-4)
    assert torch.equal(q[:-width], q_before[:-width])
    assert torch.equal(k[:-width], k_before[:-width])
    # The shrinkage is shared: W_q and W_k by the square root each.
    assert torch.allclose(q[-width:] / q_before[-width:], k[-width:] / k_before[-width:])


def test_qk_clip_below_tau_changes_nothing() -> None:
    q, k = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    assert qk_clip_(q, k, torch.tensor([30.0, -2.0]), 30.0) == 0
    assert torch.equal(q, torch.ones(4, 4))
    assert qk_clip_(q, k, torch.tensor([120.0, 1.0]), 30.0) == 1
    assert torch.equal(q[:2], torch.full((2, 4), 0.5))
    assert torch.equal(k[2:], torch.ones(2, 4))


def test_qk_clip_never_erases_a_head() -> None:
    q, k = torch.ones(4, 4), torch.ones(4, 4)
    assert qk_clip_(q, k, torch.tensor([float("inf"), float("nan")]), 30.0) == 0
    assert torch.equal(q, torch.ones(4, 4))


def test_qk_clip_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="multiple of 3 heads"):
        qk_clip_(torch.ones(4, 4), torch.ones(4, 4), torch.ones(3), 30.0)
    with pytest.raises(ValueError, match="equal matrices"):
        qk_clip_(torch.ones(4, 4), torch.ones(2, 4), torch.ones(2), 30.0)
    with pytest.raises(ValueError, match="positive"):
        qk_clip_(torch.ones(4, 4), torch.ones(4, 4), torch.ones(2), 0.0)
