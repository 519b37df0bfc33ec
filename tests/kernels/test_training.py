"""The training layer: the reference's bits forward, straight through the quantisers backward."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from agentforge_kernels import (
    KernelInputError,
    kept_tiles,
    pack,
    quantize_weights,
    reference,
    ste_ternary_linear,
    ste_ternary_linears,
    ternary_linear,
    training,
    weights_of_tiles,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def of_the_reference(x: Tensor, weight: Tensor) -> Tensor:
    q, scale, _ = reference.quantize_activations(x.reshape(-1, x.shape[-1]))
    output = reference.linear(q, scale, *quantize_weights(weight))
    return output.reshape(*x.shape[:-1], -1)


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 9),
    rows=st.integers(1, 60),
    columns=st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_forward_has_the_bits_of_the_reference(
    tokens: int, rows: int, columns: int, dtype: torch.dtype, seed: int
) -> None:
    x, weight = draw(tokens, columns, seed=seed).to(dtype), draw(rows, columns, seed=seed).to(dtype)
    output = ste_ternary_linear(x, weight)
    wanted = of_the_reference(x, weight)
    assert output.dtype == dtype
    assert torch.equal(output, wanted.to(dtype))
    packed = pack(*quantize_weights(weight))
    assert torch.equal(ternary_linear(x, packed), wanted)


@pytest.mark.parametrize("value", [127.0, -127.0, 1.0])
def test_forward_is_exact_where_float32_would_not_be(value: float) -> None:
    # 127 times 132,200 is beyond 2^24, up to which float32 holds every integer.
    columns = training.EXACT_COLUMNS + 1128
    x = torch.full((2, columns), value)
    x[:, 0] = 126 / 127 * value
    weight = torch.ones(3, columns)
    weight[1] = -1
    assert torch.equal(ste_ternary_linear(x, weight), of_the_reference(x, weight))


def test_forward_is_exact_under_autocast() -> None:
    x, weight = draw(5, 600), draw(30, 600)
    with torch.autocast("cpu", torch.bfloat16):
        output = ste_ternary_linear(x, weight)
    assert torch.equal(output, of_the_reference(x, weight))


def test_backward_is_a_linear_layer_s_with_the_dequantised_tensors() -> None:
    x, weight, bias, grad = draw(2, 3, 200), draw(70, 200), draw(70), draw(2, 3, 70, seed=5)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    ste_ternary_linear(*leaves).backward(grad)
    q, scale, _ = reference.quantize_activations(x.reshape(-1, 200))
    trits, weight_scale = quantize_weights(weight)
    dequantised_x = (q.float() * scale[:, None]).requires_grad_()
    dequantised_weight = (trits.float() * weight_scale).requires_grad_()
    F.linear(dequantised_x, dequantised_weight, bias).backward(grad.reshape(-1, 70))
    assert torch.equal(leaves[0].grad.reshape(-1, 200), dequantised_x.grad)
    assert torch.equal(leaves[1].grad, dequantised_weight.grad)
    assert torch.equal(leaves[2].grad, grad.sum((0, 1)))


def of_transformers(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output and gradients of transformers' AutoBitLinear, quantising online."""
    from transformers.integrations.bitnet import AutoBitLinear

    layer = AutoBitLinear(weight.shape[1], weight.shape[0], bias=False, online_quant=True)
    layer.weight.data = weight.clone()
    x = x.clone().requires_grad_()
    output = layer(x)
    output.backward(grad)
    return output.detach(), x.grad, layer.weight.grad


def test_equals_transformers_bit_for_bit_where_nothing_is_rounded() -> None:
    # Scales that are powers of two, small whole gradients: every float of both sides is exact, so
    # formulas are compared and not the order of additions.
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-127, 128, (6, 64), generator=generator).float() / 32
    x[:, 0] = 127 / 32
    weight = torch.randint(0, 2, (16, 64), generator=generator).float() * 2 - 1
    weight = torch.where(torch.arange(64) % 2 == 0, weight, weight * 0.25) * 0.8
    weight /= weight.abs().mean() * 2
    grad = torch.randint(-4, 5, (6, 16), generator=generator).float()
    assert float(weight.abs().mean()) == 0.5
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    output = ste_ternary_linear(*leaves)
    output.backward(grad)
    assert {-1, 0, 1} == set(quantize_weights(weight)[0].unique().tolist())
    for ours, theirs in zip(
        (output, leaves[0].grad, leaves[1].grad), of_transformers(x, weight, grad), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("tokens", "rows", "columns"), [(1, 1, 1), (7, 33, 200), (16, 64, 513)])
def test_is_close_to_transformers_everywhere(tokens: int, rows: int, columns: int) -> None:
    x, weight, grad = draw(tokens, columns), draw(rows, columns, seed=1), draw(tokens, rows, seed=2)
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    output = ste_ternary_linear(*leaves)
    output.backward(grad)
    for ours, theirs in zip(
        (output, leaves[0].grad, leaves[1].grad), of_transformers(x, weight, grad), strict=True
    ):
        # Float sums of up to 513 terms in another order, and q / (127 / m) for q * (m / 127).
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_only_what_is_wanted_is_computed_and_nothing_is_kept_for_evaluation() -> None:
    x, weight = draw(3, 20), draw(4, 20).requires_grad_()
    ste_ternary_linear(x, weight).sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert ste_ternary_linear(x, weight).grad_fn is None
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ste_ternary_linear(x, weight)
    assert sum(tensor.nbytes for tensor in saved) == 3 * 20 + 3 * 4 + 4 * 20 + 4


def test_learns_a_ternary_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(-1, 2, (8, 32), generator=generator).float()
    weight = (torch.randn(8, 32, generator=generator) * 0.1).requires_grad_()
    optimiser = torch.optim.Adam([weight], lr=0.02)
    losses = []
    for _ in range(150):
        x = torch.randn(64, 32, generator=generator)
        loss = F.mse_loss(ste_ternary_linear(x, weight), x @ target.T)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    trits, scale = quantize_weights(weight.detach())
    assert losses[-1] < losses[0] / 20
    assert (trits == target).float().mean() > 0.95
    assert abs(float(scale) - 1) < 0.3


@pytest.mark.parametrize("leading", [(0,), (2, 0), ()])
def test_no_token_and_one_token_without_a_dimension(leading: tuple[int, ...]) -> None:
    x, weight = draw(*leading, 20).requires_grad_(), draw(4, 20).requires_grad_()
    output = ste_ternary_linear(x, weight)
    assert output.shape == (*leading, 4)
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert weight.grad.shape == weight.shape


def test_bad_arguments_are_refused_by_name() -> None:
    x, weight = draw(3, 20), draw(4, 20)
    nan_x, nan_weight = x.clone(), weight.clone()
    nan_x[1, 3] = float("inf")
    nan_weight[2, 2] = float("nan")
    for arguments, message in [
        ((x.int(), weight), "x: torch.int32; allowed: float32, float16 or bfloat16"),
        ((x, weight.double()), "weight: torch.float64"),
        ((x[:, :19], weight), r"x: shape \[3, 19\]; allowed: \[..., 20\]"),
        ((x, weight[0]), r"weight: shape \[20\]"),
        ((x.to("meta"), weight), "x: device meta; allowed: cpu"),
        ((nan_x, weight), "x: NaN or infinity in token 1; allowed: finite values"),
        ((x, nan_weight), "weight: NaN or infinity"),
        ((x, weight, draw(5)), r"bias: shape \[5\]; allowed: \[4\]"),
        ((x, weight, draw(4).to("meta")), "bias: device meta"),
        (([1.0], weight), "x: a list; allowed: a Tensor"),
    ]:
        with pytest.raises(KernelInputError, match=message):
            ste_ternary_linear(*arguments)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 90), seed=st.integers(0, 2**16))
def test_paper_threshold_is_rounding(rows: int, columns: int, seed: int) -> None:
    weight = draw(rows, columns, seed=seed)
    inverse = 1.0 / weight.abs().mean().clamp(min=1e-5)
    trits, scale = quantize_weights(weight)
    assert torch.equal(trits, (weight * inverse).round().clamp(-1, 1).to(torch.int8))
    assert torch.equal(scale, (1.0 / inverse).reshape(1))


def test_halves_round_to_even_as_the_paper_s_rounding() -> None:
    weight = torch.tensor([[0.5, -0.5, 1.5, -1.5]])  # the mean magnitude is 1
    assert quantize_weights(weight)[0].tolist() == [[0, 0, 1, -1]]


@pytest.mark.parametrize(("threshold", "zeros"), [(0.05, 0.032), (0.2, 0.127), (0.5, 0.310)])
def test_thresholds_make_the_zeros_of_a_gaussian(threshold: float, zeros: float) -> None:
    trits, _ = quantize_weights(draw(500, 800), threshold=threshold)
    assert float((trits == 0).double().mean()) == pytest.approx(zeros, abs=0.003)


def test_pruned_weights_are_zero_uncounted_and_get_no_gradient() -> None:
    x, weight = draw(3, 100), draw(130, 100).requires_grad_()
    kept = weights_of_tiles(kept_tiles(weight, 0.4), 130, 100)
    output = ste_ternary_linear(x, weight, kept=kept)
    trits, scale = quantize_weights(weight.detach(), kept=kept)
    assert not trits[~kept].any()
    alone, alone_scale = quantize_weights(weight.detach()[kept][None])
    assert torch.equal(trits[kept], alone[0])
    assert torch.equal(scale, alone_scale)
    q, x_scale, _ = reference.quantize_activations(x)
    assert torch.equal(output, reference.linear(q, x_scale, trits, scale))
    output.sum().backward()
    assert weight.grad is not None
    assert not weight.grad[~kept].any()
    assert weight.grad[kept].any()


def test_a_matrix_of_which_nothing_is_kept_is_zero() -> None:
    kept = torch.zeros(5, 7, dtype=torch.bool)
    trits, scale = quantize_weights(draw(5, 7), kept=kept)
    assert not trits.any()
    assert bool(torch.isfinite(scale).all())


def test_bad_thresholds_and_masks_are_refused() -> None:
    weight = draw(4, 4)
    with pytest.raises(KernelInputError, match=r"threshold.*-0\.1"):
        quantize_weights(weight, threshold=-0.1)
    with pytest.raises(KernelInputError, match="threshold"):
        ste_ternary_linear(draw(2, 4), weight, threshold=float("nan"))
    with pytest.raises(KernelInputError, match="kept"):
        quantize_weights(weight, kept=torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(KernelInputError, match="kept"):
        ste_ternary_linear(draw(2, 4), weight, kept=torch.ones(4, 4))


def test_several_weights_have_the_bits_and_gradients_of_one_call_each() -> None:
    weights = [draw(rows, 90).requires_grad_() for rows in (3, 64, 20)]
    kept = [None, weights_of_tiles(kept_tiles(weights[1], 0.3), 64, 90), None]
    x = draw(2, 5, 90).requires_grad_()
    grads = [draw(2, 5, w.shape[0], seed=7) for w in weights]
    found = ste_ternary_linears(x, weights, kept=kept)
    torch.autograd.backward(found, grads)
    together = [x.grad, *[w.grad for w in weights]]
    x.grad = None
    for weight, mask, grad, output in zip(weights, kept, grads, found, strict=True):
        weight.grad = None
        alone = ste_ternary_linear(x, weight, kept=mask)
        assert torch.equal(alone, output)
        alone.backward(grad)
    for one, other in zip(together, [x.grad, *[w.grad for w in weights]], strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(KernelInputError, match="weights"):
        ste_ternary_linears(x, [])
    with pytest.raises(KernelInputError, match="equal columns"):
        ste_ternary_linears(x, [draw(3, 90), draw(3, 91)])
