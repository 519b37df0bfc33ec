"""The hybrid optimiser against torch's own two, mid-run resume, skipped steps, loss scaling."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from agentforge.config.schema import OptimConfig
from agentforge.errors import CheckpointError
from agentforge.optim.hybrid import HybridOptimizer, StepStats
from agentforge.optim.loss_scale import LossScaler

STEPS = 12
torch.set_num_threads(1)


class Net(nn.Module):
    """Embedding, two hidden matrices (one tall, one wide), a gain and an unused matrix."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(11, 6))
        self.up = nn.Parameter(torch.randn(10, 6) * 0.3)
        self.down = nn.Parameter(torch.randn(6, 10) * 0.3)
        self.unused = nn.Parameter(torch.randn(6, 6))
        self.gain = nn.Parameter(torch.ones(6))

    def loss(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 + step)
        ids = torch.randint(0, 11, (16,), generator=generator)
        x = self.embed[ids]
        x = x + torch.relu(x @ self.up.T) @ self.down.T
        logits = (x * self.gain) @ self.embed.T
        return nn.functional.cross_entropy(logits, (ids * 3 + 1) % 11)

    def hidden(self) -> dict[str, nn.Parameter]:
        return {"up": self.up, "down": self.down, "unused": self.unused}


def hybrid(net: Net, *, scaler: LossScaler | None = None, **config: object) -> HybridOptimizer:
    settings = {"warmup_steps": 3, "grokfast_lambda": 0.0, "weight_decay": 0.05} | config
    return HybridOptimizer(
        dict(net.named_parameters()),
        net.hidden(),
        OptimConfig.model_validate(settings),
        STEPS,
        scaler=scaler,
    )


def train(net: Net, optimizer: HybridOptimizer, steps: range) -> list[StepStats]:
    stats = []
    for step in steps:
        optimizer.zero_grad()
        net.loss(step).backward()
        stats.append(optimizer.step(step))
    return stats


def torch_reference(net: Net, lam: float, share: Callable[[int], float]) -> None:
    """The same training with torch's optimisers by hand; the filter written out again."""
    muon = torch.optim.Muon(
        list(net.hidden().values()), lr=0.02, weight_decay=0.05, momentum=0.95, nesterov=True
    )
    adamw = torch.optim.AdamW(
        [{"params": [net.embed]}, {"params": [net.gain], "weight_decay": 0.0}],
        lr=3e-3,
        betas=(0.9, 0.98),
        weight_decay=0.05,
    )
    averages: dict[str, Tensor] = {}
    for step in range(STEPS):
        muon.zero_grad()
        adamw.zero_grad()
        net.loss(step).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        if lam:
            for name, parameter in net.hidden().items():
                if parameter.grad is None:
                    continue
                before = averages.get(name)
                now = parameter.grad.clone()
                averages[name] = now if before is None else before * 0.98 + now * (1 - 0.98)
                parameter.grad = now + averages[name] * lam
        muon.param_groups[0]["lr"] = 0.02 * share(step)
        for group in adamw.param_groups:
            group["lr"] = 3e-3 * share(step)
        muon.step()
        adamw.step()


def weights(net: Net) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("lam", [0.0, 0.05, 2.0])
def test_bit_equal_to_torch_with_and_without_the_filter(lam: float) -> None:
    ours, reference = Net(), Net()
    optimizer = hybrid(ours, grokfast_lambda=lam)
    stats = train(ours, optimizer, range(STEPS))
    torch_reference(reference, lam, optimizer.share)
    assert_equal(weights(ours), weights(reference))
    assert not torch.equal(ours.up, Net().up)
    assert all((s.grokfast is None) == (lam == 0.0) for s in stats)


def test_the_filter_is_in_front_of_muon_only() -> None:
    plain, filtered = Net(), Net()
    one, two = hybrid(plain), hybrid(filtered, grokfast_lambda=2.0)
    train(plain, one, range(1))
    train(filtered, two, range(1))
    assert torch.equal(plain.embed, filtered.embed)
    assert torch.equal(plain.gain, filtered.gain)
    assert not any("embed" in key for key in two.grokfast.state_tensors())
    train(plain, one, range(1, 3))
    train(filtered, two, range(1, 3))
    assert not torch.equal(plain.up, filtered.up)


def test_a_parameter_without_gradient_is_skipped_with_its_decay() -> None:
    net = Net()
    before = net.unused.detach().clone()
    optimizer = hybrid(net, grokfast_lambda=0.3)
    train(net, optimizer, range(3))
    assert torch.equal(net.unused, before)
    assert not any("unused" in key for key in optimizer.state_tensors())


def test_match_rms_adamw_is_passed_on() -> None:
    nets = [Net(), Net()]
    train(nets[0], hybrid(nets[0]), range(1))
    train(nets[1], hybrid(nets[1], muon_adjust="match_rms_adamw", weight_decay=0.0), range(1))
    moved = [(net.up - Net().up).abs().max().item() for net in nets]
    assert moved[0] > moved[1] * 1.2, "0.2 sqrt(10) = 0.63 against sqrt(10/6) = 1.29"


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_schedule_changes_the_step_of_both_optimisers(kind: str) -> None:
    """One and the same gradient at two moments: the weights move in the ratio of the shares."""

    def moved(step: int, lr_scale: float = 1.0) -> tuple[float, float, float, StepStats]:
        net = Net()
        optimizer = hybrid(net, schedule=kind, weight_decay=0.0, final_lr_share=0.1)
        optimizer.lr_scale = lr_scale
        net.loss(0).backward()
        stats = optimizer.step(step)
        fresh = Net()
        return (
            (net.up - fresh.up).norm().item(),
            (net.embed - fresh.embed).norm().item(),
            (net.gain - fresh.gain).norm().item(),
            stats,
        )

    *full, at_peak = moved(3)
    for step in (0, 1, STEPS - 3, STEPS - 1):
        *part, late = moved(step)
        assert late.lr < at_peak.lr
        for a, b in zip(part, full, strict=True):
            assert a / b == pytest.approx(late.lr / at_peak.lr, rel=1e-3)
            assert a / b == pytest.approx(late.adamw_lr / at_peak.adamw_lr, rel=1e-3)
    *half, _ = moved(3, lr_scale=0.5)
    for a, b in zip(half, full, strict=True):
        assert a / b == pytest.approx(0.5, rel=1e-3)


def test_weight_decay_spares_vectors_and_uses_the_scheduled_rate() -> None:
    net = Net()
    optimizer = hybrid(net, weight_decay=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    stats = optimizer.step(5)
    fresh = Net()
    assert torch.equal(net.gain, fresh.gain)
    assert torch.allclose(net.embed, fresh.embed * (1 - stats.adamw_lr * 0.5), rtol=1e-6)
    assert torch.allclose(net.up, fresh.up * (1 - stats.lr * 0.5), rtol=1e-6)


def test_resume_in_the_middle_is_bit_equal() -> None:
    straight = Net()
    optimizer = hybrid(straight, grokfast_lambda=0.3)
    train(straight, optimizer, range(5))
    optimizer.lr_scale = 0.7
    saved = weights(straight)
    tensors = {name: t.clone() for name, t in optimizer.state_tensors().items()}
    scalars = json.loads(json.dumps(optimizer.state_scalars()))
    train(straight, optimizer, range(5, STEPS))

    resumed = Net(seed=9)
    with torch.no_grad():
        for name, parameter in resumed.named_parameters():
            parameter.copy_(saved[name])
    second = hybrid(resumed, grokfast_lambda=0.3)
    second.load_state(tensors, scalars)
    assert_equal(dict(second.state_tensors()), tensors)
    train(resumed, second, range(5, STEPS))
    assert_equal(weights(resumed), weights(straight))
    assert_equal(second.state_tensors(), optimizer.state_tensors())
    kinds = {key.rsplit(".", 1)[0] for key in tensors}
    assert kinds == {
        "muon.momentum_buffer",
        "adamw.exp_avg",
        "adamw.exp_avg_sq",
        "adamw.step",
        "grokfast.slow",
    }


def test_loaded_state_is_a_copy() -> None:
    net = Net()
    optimizer = hybrid(net, grokfast_lambda=0.3)
    train(net, optimizer, range(2))
    tensors = {name: t.clone() for name, t in optimizer.state_tensors().items()}
    kept = {name: t.clone() for name, t in tensors.items()}
    other = Net()
    second = hybrid(other, grokfast_lambda=0.3)
    second.load_state(tensors, optimizer.state_scalars())
    train(other, second, range(2, 4))
    assert_equal(tensors, kept)


def test_foreign_state_is_refused() -> None:
    net = Net()
    optimizer = hybrid(net, grokfast_lambda=0.3)
    train(net, optimizer, range(1))
    good, scalars = optimizer.state_tensors(), optimizer.state_scalars()
    fresh = hybrid(Net(), grokfast_lambda=0.3)
    faults = {
        "unknown": good | {"adamw.exp_avg.other": torch.ones(2)},
        "shape": good | {"muon.momentum_buffer.up": torch.ones(3, 3)},
        "type": good | {"grokfast.slow.up": good["grokfast.slow.up"].double()},
        "not a hidden matrix": good | {"grokfast.slow.embed": torch.ones(11, 6)},
        "incomplete": {k: t for k, t in good.items() if k != "adamw.step.embed"},
        "scalar": good | {"adamw.step.embed": torch.ones(2)},
    }
    for message, tensors in faults.items():
        with pytest.raises(CheckpointError, match=message):
            fresh.load_state(tensors, scalars)
    with pytest.raises(CheckpointError, match="lr_scale"):
        fresh.load_state(good, {})
    fresh.load_state(good, scalars)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["embed", "up", "gain"])
def test_a_gradient_that_is_not_finite_skips_the_whole_step(value: float, where: str) -> None:
    net = Net()
    optimizer = hybrid(net, grokfast_lambda=0.3)
    train(net, optimizer, range(2))
    before = weights(net)
    state = {name: t.clone() for name, t in optimizer.state_tensors().items()}
    optimizer.zero_grad()
    net.loss(2).backward()
    gradient = net.get_parameter(where).grad
    assert gradient is not None
    gradient.flatten()[0] = value
    stats = optimizer.step(2)
    assert stats.skipped
    assert stats.skip_reason == "non_finite"
    assert stats.grokfast is None
    assert_equal(weights(net), before)
    assert_equal(dict(optimizer.state_tensors()), state)
    assert not train(net, optimizer, range(3, 4))[0].skipped


def test_clipping_reports_the_norm_before_it() -> None:
    net = Net()
    optimizer = hybrid(net, clip_norm=0.01, grokfast_lambda=0.1)
    net.loss(0).backward()
    expected = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm()
    hidden = torch.cat([p.grad.flatten() for p in (net.up, net.down) if p.grad is not None]).norm()
    stats = optimizer.step(0)
    assert stats.clipped
    assert stats.grad_norm == pytest.approx(expected.item(), rel=1e-5)
    assert stats.grokfast is not None
    scale = 0.01 / expected.item()
    assert stats.grokfast.raw_norm == pytest.approx(hidden.item() * scale, rel=1e-3)


def test_step_without_gradients_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="call backward"):
        hybrid(Net()).step(0)


def test_models_with_only_one_kind_of_parameter() -> None:
    matrix = nn.Parameter(torch.ones(3, 3))
    for hidden in ({}, {"m": matrix}):
        optimizer = HybridOptimizer({"m": matrix}, hidden, OptimConfig(), 10)
        before = matrix.detach().clone()
        (matrix * torch.arange(9.0).view(3, 3)).sum().backward()
        assert not optimizer.step(3).skipped
        assert not torch.equal(matrix, before)


def scaled_train(
    net: Net, optimizer: HybridOptimizer, scaler: LossScaler, steps: range, break_at: int = -1
) -> list[StepStats]:
    stats = []
    for step in steps:
        optimizer.zero_grad()
        scaler.scale(net.loss(step)).backward()
        if step == break_at:
            assert net.gain.grad is not None
            net.gain.grad[0] = float("inf")  # an overflow in a parameter of one optimiser only
        stats.append(optimizer.step(step))
    return stats


def test_loss_scaling_by_a_power_of_two_changes_no_bit() -> None:
    plain, scaled = Net(), Net()
    train(plain, hybrid(plain, grokfast_lambda=0.3), range(STEPS))
    scaler = LossScaler("cpu", init_scale=1024.0)
    optimizer = hybrid(scaled, grokfast_lambda=0.3, scaler=scaler)
    stats = scaled_train(scaled, optimizer, scaler, range(STEPS))
    assert_equal(weights(scaled), weights(plain))
    assert all(s.loss_scale == 1024.0 for s in stats)


def test_overflow_drops_the_step_for_both_optimisers_and_halves_the_scale() -> None:
    net = Net()
    scaler = LossScaler("cpu", init_scale=1024.0, growth_interval=3)
    optimizer = hybrid(net, grokfast_lambda=0.3, scaler=scaler)
    scaled_train(net, optimizer, scaler, range(2))
    before = weights(net)
    (stats,) = scaled_train(net, optimizer, scaler, range(2, 3), break_at=2)
    assert stats.skip_reason == "overflow"
    assert stats.loss_scale == 1024.0
    assert scaler.value == 512.0
    assert_equal(weights(net), before)
    after = scaled_train(net, optimizer, scaler, range(3, 6))
    assert not any(s.skipped for s in after)
    assert scaler.value == 1024.0, "three good steps in a row double it"


def test_a_real_nan_is_told_from_an_overflow() -> None:
    net = Net()
    scaler = LossScaler("cpu", init_scale=4.0)
    optimizer = hybrid(net, scaler=scaler)
    reasons = []
    for step in range(4):
        stats = scaled_train(net, optimizer, scaler, range(step, step + 1), break_at=step)
        reasons.append(stats[0].skip_reason)
    assert reasons == ["overflow", "overflow", "non_finite", "non_finite"]


def test_real_fp16_autocast_overflow_recovers() -> None:
    """A loss scale far beyond fp16's range really overflows, backs off, and then trains."""
    net = nn.Linear(8, 8)
    scaler = LossScaler("cpu", init_scale=2.0**30)
    named = dict(net.named_parameters())
    optimizer = HybridOptimizer(
        named, {"weight": named["weight"]}, OptimConfig(), 60, scaler=scaler
    )
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    stats = []
    for step in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            y = net(x)
        scaler.scale((y.float() - x).square().mean()).backward()
        stats.append(optimizer.step(step))
    assert stats[0].skip_reason == "overflow"
    assert not stats[-1].skipped
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_scaler_state_resumes() -> None:
    net = Net()
    scaler = LossScaler("cpu", init_scale=64.0, growth_interval=3)
    optimizer = hybrid(net, scaler=scaler)
    scaled_train(net, optimizer, scaler, range(4))
    saved = json.loads(json.dumps(optimizer.state_scalars()))
    other = LossScaler("cpu")
    second = hybrid(Net(), scaler=other)
    second.load_state(optimizer.state_tensors(), saved)
    assert other.value == scaler.value == 128.0
    assert other.state() == scaler.state()
    without = hybrid(Net())
    without.load_state(optimizer.state_tensors(), saved)
    with pytest.raises(CheckpointError, match="loss scaler"):
        other.load_state({"scale": 3.0})
