"""TernaryLinear: a layer that is saved as stored, computed as laid out, and never stale."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from agentforge_kernels import (
    KernelInputError,
    PackedTernary,
    TernaryLinear,
    dispatch,
    native,
    pack,
    prepare_model,
    quantize_weights,
    reference,
    unpack,
)
from torch import Tensor, nn

both_backends = pytest.mark.parametrize("backend", ["auto", "reference"])


@pytest.fixture(autouse=True)
def _automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def packed_matrix(rows: int, columns: int, seed: int = 0, per_row: bool = False) -> PackedTernary:
    packed = pack(*quantize_weights(draw(rows, columns, seed=seed)))
    if not per_row:
        return packed
    return PackedTernary(packed.codes, draw(rows, seed=seed).abs() + 0.1, columns)


def expected(
    layer: TernaryLinear, x: Tensor, residual: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The reference's output, the bias added last."""
    q, scale, _ = reference.quantize_activations(x.reshape(-1, x.shape[-1]))
    packed = layer.packed
    flat = None if residual is None else residual.reshape(-1, packed.rows)
    output = reference.linear(q, scale, unpack(packed), packed.scale, flat)
    if bias is not None:
        output = output + bias
    return output.reshape(*x.shape[:-1], packed.rows)


@both_backends
@pytest.mark.parametrize("shape", [(200,), (1, 200), (1, 1, 200), (7, 200), (2, 3, 200), (0, 200)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_equals_the_reference(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    shape: tuple[int, ...],
    with_bias: bool,
    with_residual: bool,
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    bias = draw(70) if with_bias else None
    layer = TernaryLinear.from_packed(packed_matrix(70, 200, per_row=with_bias), bias=bias)
    x = draw(*shape)
    residual = draw(*shape[:-1], 70, seed=5) if with_residual else None
    wanted = expected(layer, x, residual, bias)
    assert torch.equal(layer(x, residual), wanted)
    with torch.inference_mode():
        assert torch.equal(layer(x, residual), wanted)
    x.requires_grad_()
    assert torch.equal(layer(x, residual), wanted)


def test_a_quantised_float_layer() -> None:
    linear = nn.Linear(300, 40)
    before = linear.weight.detach().clone()
    layer = TernaryLinear.from_linear(linear)
    trits, scale = quantize_weights(linear.weight.detach())
    assert torch.equal(linear.weight, before)
    assert torch.equal(unpack(layer.packed), trits)
    assert torch.equal(layer.scale, scale)
    assert torch.equal(layer.dequantize(), trits.float() * scale)
    x = draw(5, 300)
    assert torch.equal(layer(x), expected(layer, x, bias=linear.bias.detach()))
    assert TernaryLinear.from_linear(nn.Linear(300, 40, bias=False)).bias is None


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_is_fused(affine: bool) -> None:
    norm = nn.RMSNorm(300, eps=1e-6, elementwise_affine=affine)
    if affine:
        norm.weight.data.uniform_(0.5, 2)
    linear = nn.Linear(300, 40, bias=False)
    fused, apart = TernaryLinear.from_linear(linear, norm), TernaryLinear.from_linear(linear)
    x = draw(3, 300)
    steps = (norm(x).abs().amax(-1, keepdim=True) / 127) * apart.dequantize().abs().sum(1)
    assert ((fused(x) - apart(norm(x))).abs() <= steps * 0.1).all()
    assert not torch.equal(fused(x * 3), apart(x * 3))
    assert TernaryLinear.from_linear(linear, nn.RMSNorm(300)).epsilon == torch.finfo().eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_comes_out(dtype: torch.dtype) -> None:
    layer = TernaryLinear.from_packed(packed_matrix(70, 200), bias=draw(70))
    x = draw(3, 200).to(dtype)
    output = layer(x)
    assert output.dtype == dtype
    assert torch.equal(output, expected(layer, x, bias=layer.bias).to(dtype))
    halved = copy.deepcopy(layer).to(dtype)
    assert {name: buffer.dtype for name, buffer in halved.named_buffers()} == {
        "codes": torch.uint8,
        "scale": torch.float32,
        "bias": torch.float32,
    }
    assert torch.equal(halved(x), output)
    assert torch.equal(layer.type(torch.float64)(x), output)


def test_strides_of_any_kind_are_copied() -> None:
    layer = TernaryLinear.from_packed(packed_matrix(70, 200))
    x, residual = draw(2, 3, 200), draw(70, 2).T
    assert torch.equal(
        layer(x[:, -1], residual), layer(x[:, -1].contiguous(), residual.contiguous())
    )
    across = draw(200, 4).T
    assert torch.equal(layer(across), layer(across.contiguous()))


def test_state_dict_holds_the_stored_form_whatever_was_prepared() -> None:
    packed = packed_matrix(70, 200)
    layer = TernaryLinear.from_packed(packed, bias=draw(70), norm_weight=draw(200).abs())
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert list(before) == ["codes", "scale", "bias", "norm_weight"]
    layer(draw(2, 200))
    layer.prepare()
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(after["codes"], packed.codes)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_replaces_what_was_prepared(assign: bool) -> None:
    first = TernaryLinear.from_packed(packed_matrix(70, 200))
    second = TernaryLinear.from_packed(packed_matrix(70, 200, seed=4, per_row=True))
    x = draw(2, 200)
    old = first(x)
    first.load_state_dict(copy.deepcopy(second.state_dict()), assign=assign)
    assert not torch.equal(first(x), old)
    assert torch.equal(first(x), second(x))
    fresh = TernaryLinear(200, 70)
    assert not fresh(x).any()
    fresh.load_state_dict(second.state_dict())
    assert torch.equal(fresh(x), second(x))


def test_a_model_goes_through_a_file() -> None:
    model = nn.Sequential(nn.Linear(64, 200), TernaryLinear.from_packed(packed_matrix(70, 200)))
    x = draw(3, 64)
    wanted = model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    other = nn.Sequential(nn.Linear(64, 200), TernaryLinear(200, 70))
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), wanted)


def test_bad_weights_are_not_loaded() -> None:
    layer = TernaryLinear.from_packed(packed_matrix(70, 200))
    x = draw(2, 200)
    wanted = layer(x)
    good = layer.state_dict()
    code_3 = good["codes"].clone()
    code_3[3, 4] = 0xFF
    padding = good["codes"].clone()
    padding[0, -1] = 0
    for name, value, message in [
        ("codes", code_3, "codes: a code 3; allowed: codes 0, 1 and 2"),
        ("codes", padding, "padding that is not weight 0"),
        ("codes", good["codes"].int(), "codes: torch.int32"),
        ("codes", good["codes"][:, :32].clone(), "32 bytes a row for 200 columns"),
        ("codes", good["codes"][:50].clone(), "size mismatch for codes"),
        ("scale", torch.tensor([float("nan")]), "scale: NaN or infinity"),
        ("scale", torch.ones(69), r"float32 of shape \[1\] or \[70\]"),
        ("scale", torch.ones(1).half(), "scale: torch.float16"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**good, name: value})
        assert torch.equal(layer(x), wanted)
    newer = layer.state_dict()
    newer._metadata[""]["version"] = 2
    with pytest.raises(RuntimeError, match="format version 2; allowed: up to 1"):
        layer.load_state_dict(newer)


@both_backends
@pytest.mark.parametrize("change", ["codes", "scale", "data", "buffer"])
def test_buffers_changed_by_hand_are_seen(
    monkeypatch: pytest.MonkeyPatch, backend: str, change: str
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    layer, x = TernaryLinear.from_packed(packed_matrix(70, 200)), draw(1, 200)
    other = packed_matrix(70, 200, seed=8)
    layer(x)
    if change == "codes":
        layer.codes.copy_(other.codes)
    elif change == "scale":
        layer.scale.mul_(2)
    elif change == "data":
        layer.codes.data = other.codes
        layer.scale.data = torch.ones(70)
    else:
        layer._buffers["codes"] = other.codes
    assert torch.equal(layer(x), expected(layer, x))


def test_moving_to_another_device_forgets_the_layout() -> None:
    layer, x = TernaryLinear.from_packed(packed_matrix(70, 200)), draw(2, 200)
    wanted = layer(x)
    layer.to("meta")
    assert layer(x.to("meta")).shape == (2, 70)
    assert layer(x.to("meta")).is_meta
    layer.to_empty(device="cpu")
    layer.load_state_dict(TernaryLinear.from_packed(packed_matrix(70, 200)).state_dict())
    assert torch.equal(layer(x), wanted)


def test_copies_are_independent() -> None:
    layer, x = TernaryLinear.from_packed(packed_matrix(70, 200), bias=draw(70)), draw(2, 200)
    wanted = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._ready is None
        assert torch.equal(twin(x), wanted)
        twin.codes.fill_(0x55)
        assert torch.equal(twin(x), layer.bias.expand(2, 70))
        assert torch.equal(layer(x), wanted)


def test_weights_made_in_inference_mode_can_be_loaded_over() -> None:
    with torch.inference_mode():
        layer = TernaryLinear.from_packed(packed_matrix(70, 200))
        x = draw(2, 200)
        assert torch.equal(layer(x), expected(layer, x))
        other = TernaryLinear.from_packed(packed_matrix(70, 200, seed=3))
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x), other(x))
    assert torch.equal(layer(x), expected(other, x))


def test_gradient_reaches_the_input_and_the_residual() -> None:
    layer = TernaryLinear.from_packed(packed_matrix(70, 200, per_row=True), bias=draw(70))
    x, residual, grad = draw(4, 200), draw(4, 70), draw(4, 70, seed=9)
    x.requires_grad_()
    residual.requires_grad_()
    layer(x, residual).backward(grad)
    assert torch.equal(x.grad, grad @ layer.dequantize())
    assert torch.equal(residual.grad, grad)


def test_a_model_is_prepared_in_one_block() -> None:
    model = nn.Sequential(
        TernaryLinear.from_packed(packed_matrix(512, 64)),
        nn.ReLU(),
        nn.Sequential(TernaryLinear.from_packed(packed_matrix(70, 512, seed=1))),
    )
    x = draw(2, 64)
    wanted = model(x)
    assert prepare_model(model) == 2
    assert prepare_model(nn.ReLU()) == 0
    assert torch.equal(model(x), wanted)
    if native.extension is not None:
        first, second = (
            module._ready.prepared.laid_out.tensor
            for module in model.modules()
            if isinstance(module, TernaryLinear)
        )
        assert second.data_ptr() == first.data_ptr() + first.nbytes


def test_its_print_says_what_it_is() -> None:
    layer = TernaryLinear(200, 70, bias=True, norm=True, epsilon=1e-6)
    assert repr(layer) == (
        "TernaryLinear(in_features=200, out_features=70, bias=True, norm=True, epsilon=1e-06)"
    )
    per_row = TernaryLinear.from_packed(packed_matrix(70, 200, per_row=True))
    assert repr(per_row) == (
        "TernaryLinear(in_features=200, out_features=70, bias=False, scale per row)"
    )


def test_bad_construction_is_refused_by_name() -> None:
    packed = packed_matrix(70, 200)
    with pytest.raises(KernelInputError, match="in_features: 0"):
        TernaryLinear(0, 3)
    with pytest.raises(KernelInputError, match="linear: a Conv1d; allowed: a Linear"):
        TernaryLinear.from_linear(nn.Conv1d(3, 3, 1))
    with pytest.raises(KernelInputError, match="norm: a LayerNorm; allowed: a RMSNorm"):
        TernaryLinear.from_linear(nn.Linear(3, 3), nn.LayerNorm(3))
    with pytest.raises(KernelInputError, match=r"bias: .*\[69\]; allowed: floating \[70\]"):
        TernaryLinear.from_packed(packed, bias=torch.zeros(69))
    with pytest.raises(KernelInputError, match=r"norm_weight: torch.int64"):
        TernaryLinear.from_packed(packed, norm_weight=torch.zeros(200).long())
    with pytest.raises(KernelInputError, match="packed: a Tensor"):
        TernaryLinear.from_packed(packed.codes)
    broken = nn.Linear(4, 4)
    broken.weight.data[0, 0] = float("inf")
    with pytest.raises(KernelInputError, match="weight: NaN or infinity"):
        TernaryLinear.from_linear(broken)
