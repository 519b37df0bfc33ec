"""BitLinear: the projection it stands for at strength 0, the packed kernel's bits at strength 1."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import pytest
import torch
from agentforge_kernels import pack, reference, ternary_linear
from torch import Tensor
from torch.nn import functional as F

from agentforge.config.schema import MemoryConfig, ModelConfig
from agentforge.model.behaviour import Behaviour
from agentforge.model.bit_linear import BitLinear, bit_linears, dequantised, make_bit_linear
from agentforge.model.decode import Decoder
from agentforge.model.language_model import CognateLM
from agentforge.model.linear import Projection, project

SHAPES = ModelConfig(
    d_model=64,
    n_heads=2,
    n_prelude=2,
    ffn_width=96,
    embedding_rank=16,
    context=40,
    window=8,
    memory=MemoryConfig(layers=(1,), width=32, chunk=4, gate_rank=4),
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def layer(rows: int = 70, columns: int = 90, normed: bool = True) -> BitLinear:
    torch.manual_seed(1)
    return BitLinear(Projection(columns, rows, normed=normed), 0.5, None if normed else 1e-6)


def small_model() -> CognateLM:
    torch.manual_seed(0)
    model = CognateLM(SHAPES, 30)
    for _, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def quantise(model: CognateLM, strength: float = 1.0) -> dict[str, BitLinear]:
    for name, module in list(model.named_modules()):
        if isinstance(module, Projection):
            make_bit_linear(model, name, 0.5, 1e-6)
    layers = bit_linears(model)
    for found in layers.values():
        found.strength = strength
    return layers


def test_at_strength_0_it_is_the_projection() -> None:
    bit = layer(normed=False)
    x = draw(3, 5, 90)
    assert torch.equal(bit(x), F.linear(x, bit.weight))


def test_at_strength_1_it_has_the_bits_of_the_packed_matrix() -> None:
    bit = layer()
    bit.strength = 1.0
    x = draw(3, 5, 90)
    assert torch.equal(bit(x), ternary_linear(x, pack(*bit.codes())))


def test_at_strength_1_it_is_transformers_bit_linear() -> None:
    from transformers.integrations.bitnet import ActQuant, WeightQuant

    bit = layer()
    bit.strength = 1.0
    x = draw(7, 90)
    wanted = F.linear(ActQuant.apply(x), WeightQuant.apply(bit.weight))
    torch.testing.assert_close(bit(x), wanted, rtol=1e-5, atol=1e-5)
    trits, scale = bit.codes()
    assert torch.equal(trits.float() * scale, WeightQuant.apply(bit.weight))


def test_between_it_blends_weight_and_input() -> None:
    bit = layer()
    bit.strength = 0.25
    x = draw(4, 90)
    trits, scale = bit.codes()
    weight = 0.75 * bit.weight + 0.25 * (trits * scale)
    q, x_scale, _ = reference.quantize_activations(x)
    mixed = 0.75 * x + 0.25 * (q[:, :90] * x_scale[:, None])
    torch.testing.assert_close(bit(x), F.linear(mixed, weight))


def test_gradients_pass_both_roundings() -> None:
    bit = layer()
    for strength in (0.5, 1.0):
        bit.strength = strength
        bit.weight.grad = None
        x = draw(4, 90).requires_grad_()
        grad = draw(4, 70, seed=3)
        bit(x).backward(grad)
        trits, scale = bit.codes()
        weight = (1 - strength) * bit.weight.detach() + strength * trits * scale
        torch.testing.assert_close(x.grad, grad @ weight)
        mixed = (1 - strength) * x.detach() + strength * dequantised(x.detach())
        torch.testing.assert_close(bit.weight.grad, grad.T @ mixed)


def test_inputs_without_a_norm_get_one() -> None:
    bit = layer(normed=False)
    assert bit.norm is not None
    bit.strength = 1.0
    x = 100 * draw(4, 90)
    assert torch.equal(bit(x), ternary_linear(bit.norm(x), pack(*bit.codes())))
    assert layer(normed=True).norm is None


def test_pruned_tiles_are_zero_at_every_strength_and_stay_pruned() -> None:
    bit = layer(rows=130, columns=64)
    bit.prune(0.5)
    first = bit.tiles.clone()
    assert int((~first).sum()) == 6
    for strength in (0.0, 0.3, 1.0):
        bit.strength = strength
        # The unit vectors read the weight column by column, at every strength without rounding.
        assert not bit(torch.eye(64)).T[~bit.kept].any()
    assert not bit.codes()[0][~bit.kept].any()
    with torch.no_grad():
        bit.weight[~bit.kept] = 100.0
    bit.prune(0.6)
    assert not (bit.tiles & ~first).any()


def test_projections_of_one_input_may_be_mixed() -> None:
    torch.manual_seed(0)
    plain, bit = Projection(64, 32), BitLinear(Projection(64, 48), 0.5, None)
    bit.strength = 1.0
    x = draw(2, 3, 64)
    first, second = project(x, plain, bit)
    assert torch.equal(first, plain(x))
    assert torch.equal(second, bit(x))


def test_a_model_at_strength_0_is_unchanged_and_keeps_its_parameters() -> None:
    model = small_model()
    ids = torch.randint(0, 30, (3, 20), generator=torch.Generator().manual_seed(0))
    before = model(ids, Behaviour(0.5, 1.0))
    parameters = dict(model.named_parameters())
    layers = quantise(model, 0.0)
    assert set(layers) == {n.removesuffix(".weight") for n in model.hidden_matrices()}
    now = dict(model.named_parameters())
    assert all(now[name] is parameter for name, parameter in parameters.items())
    # Two blocks and a core have two un-normed inputs each: before the output and the down matrix.
    assert sum(found.norm is not None for found in layers.values()) == 6
    after = model(ids, Behaviour(0.5, 1.0))
    assert torch.equal(before.steps, after.steps)
    torch.testing.assert_close(before.answer, after.answer, rtol=1e-5, atol=1e-5)


def test_preserved_by_role() -> None:
    layers = quantise(small_model())
    for word in ("embedding", "norm", "halting", "gate.a", "gate.b", "rates", "filter", "inject"):
        assert not any(f"{word}" in name.replace("ffn.gate", "") for name in layers), word


@torch.no_grad()
def test_a_ternary_model_decodes_what_it_reads() -> None:
    model = small_model()
    quantise(model)
    ids = torch.randint(0, 30, (2, 24), generator=torch.Generator().manual_seed(0))
    behaviour = Behaviour(0.5, 1.0)
    whole = model.embedding.logits(model(ids, behaviour).answer)
    decoder = Decoder(model, behaviour, 2)
    steps = torch.stack([decoder.step(ids[:, t]) for t in range(24)], dim=1)
    # A rounding difference flips an int8 code, which later layers amplify: close, not equal.
    assert float((whole - steps).abs().median()) < 1e-3
    assert float((whole.argmax(-1) == steps.argmax(-1)).float().mean()) > 0.9


def test_nothing_else_is_replaced() -> None:
    model = small_model()
    with pytest.raises(TypeError, match="Linear"):
        make_bit_linear(model, "embedding.up", 0.5, 1e-6)
    make_bit_linear(model, "answer", 0.5, 1e-6)
    with pytest.raises(TypeError, match="BitLinear"):
        make_bit_linear(model, "answer", 0.5, 1e-6)
