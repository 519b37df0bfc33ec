"""The public operations: equal to the reference, known to torch's machinery, differentiable."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from agentforge_kernels import (
    Activations,
    Int8Weight,
    KernelInputError,
    PackedTernary,
    TernaryLinear,
    custom_ops,
    dispatch,
    int8_linear,
    layouts,
    native,
    pack,
    prepare,
    prepare_in_order,
    quantize_activations,
    quantize_int8,
    quantize_weights,
    reference,
    ste_ternary_linear,
    ternary_linear,
    ternary_linear_activation_sparse,
    ternary_linear_block_sparse,
    to_block_sparse,
    to_columns,
    unpack,
)
from agentforge_kernels.fallback import int_mm_is_exact
from agentforge_kernels.format import padded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

BACKENDS = ["auto", "fallback", "reference"]


@pytest.fixture(autouse=True)
def _automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


def choose(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute with a backend; the fallback cannot be forced by the variable."""
    if backend == "fallback":
        chosen = dispatch.backend_named("fallback")
        monkeypatch.setattr(dispatch, "backend_for", lambda device: chosen)
    else:
        monkeypatch.setenv(dispatch.VARIABLE, backend)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal floats."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def matrix(rows: int, columns: int, *, per_row: bool = False, seed: int = 0) -> PackedTernary:
    """A packed matrix with many zeros, and tiles that are zero altogether."""
    generator = torch.Generator().manual_seed(seed)
    trits = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
    trits[: rows // 2, columns // 3 :] = 0
    scale = torch.rand(rows if per_row else 1, generator=generator) + 0.5
    return pack(trits, scale)


def expected(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
) -> Tensor:
    """The reference, token by token."""
    tokens = x.reshape(-1, x.shape[-1])
    q, activation_scale, _ = reference.quantize_activations(tokens, norm_weight)
    flat = None if residual is None else residual.reshape(-1, weight.shape[0]).float()
    output = reference.linear(q, activation_scale, weight, scale, flat)
    return output.reshape(*x.shape[:-1], weight.shape[0])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(
    leading=st.lists(st.integers(0, 3), max_size=3),
    rows=st.integers(1, 130),
    columns=st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    per_row=st.booleans(),
    with_residual=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_every_operation_equals_the_reference(
    backend: str,
    leading: list[int],
    rows: int,
    columns: int,
    dtype: torch.dtype,
    per_row: bool,
    with_residual: bool,
    seed: int,
) -> None:
    packed = matrix(rows, columns, per_row=per_row, seed=seed)
    x = draw(*leading, columns, seed=seed).to(dtype)
    residual = draw(*leading, rows, seed=seed + 1).to(dtype) if with_residual else None
    with pytest.MonkeyPatch.context() as patch:
        choose(backend, patch)
        wanted = expected(x, unpack(packed), packed.scale, residual)
        activations = quantize_activations(x)
        blocks, columns_form, prepared = (
            to_block_sparse(packed),
            to_columns(packed),
            prepare(packed),
        )
        for given_x in (x, activations):
            for weight in (packed, prepared):
                assert torch.equal(ternary_linear(given_x, weight, residual=residual), wanted)
            output = ternary_linear_block_sparse(given_x, blocks, residual=residual)
            assert torch.equal(output, wanted)
            output = ternary_linear_activation_sparse(given_x, columns_form, residual=residual)
            assert torch.equal(output, wanted)
        head = quantize_int8(draw(rows, columns, seed=seed))
        wanted = expected(x, head.weight, head.scale, residual)
        for given_x in (x, activations):
            assert torch.equal(int8_linear(given_x, head, residual=residual), wanted)


@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (0,), (2, 0, 3)])
def test_activations_keep_the_leading_shape(leading: tuple[int, ...]) -> None:
    x = draw(*leading, 200)
    activations = quantize_activations(x)
    assert activations.q.shape == (*leading, 256)
    assert activations.scale.shape == activations.sum.shape == leading
    q, scale, total = reference.quantize_activations(x.reshape(-1, 200))
    assert torch.equal(activations.q[..., :200].reshape(-1, 200), q)
    assert not activations.q[..., 200:].any()
    assert torch.equal(activations.scale.reshape(-1), scale)
    assert torch.equal(activations.sum.reshape(-1), total)


@pytest.mark.parametrize("norm_dtype", [torch.float32, torch.bfloat16])
def test_a_fused_norm_is_within_one_step(norm_dtype: torch.dtype) -> None:
    x, packed = draw(7, 300), matrix(40, 300)
    norm_weight = (draw(300).abs() + 0.5).to(norm_dtype)
    activations = quantize_activations(x, norm_weight=norm_weight, epsilon=1e-6)
    q, _, _ = reference.quantize_activations(x, norm_weight, 1e-6)
    assert (activations.q[:, :300].int() - q.int()).abs().max() <= 1
    # The fused product is that of the activations quantised apart, bit for bit.
    wanted = ternary_linear(activations, packed)
    for weight in (packed, prepare(packed)):
        output = ternary_linear(x, weight, norm_weight=norm_weight, epsilon=1e-6)
        assert torch.equal(output, wanted)
    for output in (
        ternary_linear_block_sparse(
            x, to_block_sparse(packed), norm_weight=norm_weight, epsilon=1e-6
        ),
        ternary_linear_activation_sparse(
            x, to_columns(packed), norm_weight=norm_weight, epsilon=1e-6
        ),
    ):
        assert torch.equal(output, wanted)


def test_triton_answers_the_public_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from agentforge_kernels.triton.backend import TritonBackend
    from agentforge_kernels.verify.interpreter import interpreted

    backend = TritonBackend("turing")
    monkeypatch.setattr(dispatch, "backend_for", lambda device: backend)
    packed, x, residual = matrix(70, 200, per_row=True), draw(3, 200), draw(3, 70)
    wanted = expected(x, unpack(packed), packed.scale, residual)
    head = quantize_int8(draw(9, 200))
    with interpreted():
        for output in (
            ternary_linear(x, packed, residual=residual),
            ternary_linear(quantize_activations(x), prepare(packed), residual=residual),
            ternary_linear_block_sparse(x, to_block_sparse(packed), residual=residual),
            ternary_linear_activation_sparse(x, to_columns(packed), residual=residual),
            TernaryLinear.from_packed(packed)(x, residual),
        ):
            assert torch.equal(output, wanted)
        one = ternary_linear(x[:1], packed, residual=residual[:1])
        assert torch.equal(one, wanted[:1])
        assert torch.equal(int8_linear(x, head), expected(x, head.weight, head.scale))
        x[1, 3] = float("nan")
        with pytest.raises(KernelInputError, match="token 1"):
            ternary_linear(x, packed)


def operands() -> list[tuple[str, object, tuple[object, ...]]]:
    """Every operator of torch.ops.agentforge with arguments, gradients wanted and not."""
    packed, x, residual = matrix(70, 200), draw(5, 200), draw(5, 70)
    activations, norm_weight = quantize_activations(x), draw(200).abs()
    blocks, columns, head = to_block_sparse(packed), to_columns(packed), quantize_int8(draw(9, 200))
    codes, scale = packed.codes, packed.scale
    wanting = [tensor.clone().requires_grad_() for tensor in (x, norm_weight, residual)]
    return [
        ("quantise", custom_ops.quantize_activations, (x, None, 1e-5)),
        ("quantise with norm", custom_ops.quantize_activations, (x, norm_weight, 1e-5)),
        ("no token", custom_ops.quantize_activations, (x[:0], None, 1e-5)),
        ("dense", custom_ops.ternary_linear, (x, None, 1e-5, codes, scale, None, 200)),
        ("no token, dense", custom_ops.ternary_linear, (x[:0], None, 0.0, codes, scale, None, 200)),
        (
            "gradient",
            custom_ops.ternary_linear,
            (wanting[0], None, 1e-5, codes, scale, residual, 200),
        ),
        (
            "gradient through norm",
            custom_ops.ternary_linear,
            (wanting[0], wanting[1], 1e-5, codes, scale, wanting[2], 200),
        ),
        (
            "quantised",
            custom_ops.ternary_linear_quantized,
            (*activations, codes, scale, residual, 200),
        ),
        (
            "block-sparse",
            custom_ops.ternary_linear_block_sparse,
            (*activations, blocks.tiles, blocks.index, blocks.start, scale, residual, 70, 200),
        ),
        (
            "activation-sparse",
            custom_ops.ternary_linear_activation_sparse,
            (*activations, columns.codes, scale, None, 70),
        ),
        ("int8", custom_ops.int8_linear, (*activations, head.weight, head.scale, None)),
    ]


CASES = {name: (operator, arguments) for name, operator, arguments in operands()}


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str) -> None:
    operator, arguments = CASES[name]
    result = torch.library.opcheck(operator, arguments)
    assert len(result) == 4
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", CASES)
def test_fake_results_look_like_real_ones(name: str) -> None:
    operator, arguments = CASES[name]
    real = operator(*arguments)
    with FakeTensorMode() as mode:
        fake = operator(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
    for one, other in zip(
        real if isinstance(real, tuple) else (real,),
        fake if isinstance(fake, tuple) else (fake,),
        strict=True,
    ):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def test_public_functions_work_on_fake_and_meta_tensors() -> None:
    packed, x = matrix(70, 200), draw(2, 3, 200)
    on_meta = quantize_activations(x.to("meta"))
    assert on_meta.q.shape == (2, 3, 256)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert quantize_activations(fake).scale.shape == (2, 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        output = ternary_linear(x, prepare(packed))
        assert type(output) is not Tensor
        assert output.shape == (2, 3, 70)


COMPILED = """
import torch
from agentforge_kernels import *
torch.manual_seed(0)
packed = pack(torch.randint(-1, 2, (70, 200), dtype=torch.int8), 0.5)
prepared, blocks, columns = prepare(packed), to_block_sparse(packed), to_columns(packed)
head = quantize_int8(torch.randn(30, 70))
x, residual, norm = torch.randn(2, 3, 200), torch.randn(2, 3, 70), torch.rand(200)

def network(x, residual, norm):
    y = ternary_linear(x, prepared, norm_weight=norm, residual=residual)
    a = quantize_activations(x)
    z = ternary_linear(a, packed) + ternary_linear_block_sparse(a, blocks)
    z = z + ternary_linear_activation_sparse(x, columns)
    return int8_linear((y + z).relu(), head)

def layer(x, residual, norm):
    return ternary_linear(x, packed, norm_weight=norm, residual=residual)

for dynamic in (False, True):
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for tokens in (3, 5):
        x, residual = torch.randn(2, tokens, 200), torch.randn(2, tokens, 70)
        assert torch.equal(compiled(x, residual, norm), network(x, residual, norm))

compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
gradients = []
for function in (layer, compiled):
    inputs = [t.clone().requires_grad_() for t in (x, residual, norm)]
    function(*inputs).square().sum().backward()
    gradients.append([t.grad for t in inputs])
for one, other in zip(*gradients):
    assert one is not None and torch.equal(one, other)

weight = torch.randn(40, 200)
trained = torch.compile(ste_ternary_linear, fullgraph=True, backend="aot_eager")
gradients = []
for function in (ste_ternary_linear, trained):
    inputs = [t.clone().requires_grad_() for t in (x, weight)]
    output = function(*inputs)
    output.square().sum().backward()
    gradients.append([output, *(t.grad for t in inputs)])
for one, other in zip(*gradients):
    assert torch.equal(one, other)

exported = torch.export.export(TernaryLinear.from_packed(packed), (x,))
assert torch.equal(exported.module()(x), ternary_linear(x, packed))
bad = x.clone()
bad[1, 2, 5] = float("nan")
try:
    compiled(bad, residual, norm)
except KernelInputError as error:
    print(error)
"""


def test_compiles_without_a_break_and_gives_the_same_bits(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TORCHDYNAMO_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "x: NaN or infinity in token" in done.stdout


def test_gradient_is_the_dequantised_weight_s() -> None:
    packed, x, grad = matrix(70, 200, per_row=True), draw(4, 200), draw(4, 70)
    weight = unpack(packed).float() * packed.scale[:, None]
    x.requires_grad_()
    residual = draw(4, 70, seed=3).requires_grad_()
    output = ternary_linear(x, prepare(packed), residual=residual)
    assert torch.equal(
        output, expected(x.detach(), unpack(packed), packed.scale, residual.detach())
    )
    output.backward(grad)
    assert torch.equal(x.grad, grad @ weight)
    assert torch.equal(residual.grad, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_through_the_norm_is_the_norm_s(dtype: torch.dtype) -> None:
    packed, grad = matrix(70, 200), draw(2, 3, 70)
    x = draw(2, 3, 200).to(dtype).requires_grad_()
    norm_weight = draw(200).to(dtype).requires_grad_()
    ternary_linear(x, packed, norm_weight=norm_weight, epsilon=1e-3).backward(grad)
    exact_x = x.detach().double().requires_grad_()
    exact_norm = norm_weight.detach().double().requires_grad_()
    root = torch.sqrt(exact_x.square().mean(-1, keepdim=True) + 1e-3)
    weight = unpack(packed).double() * packed.scale.double()
    ((exact_x / root * exact_norm) @ weight.T).backward(grad.double())
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    )
    assert x.grad.dtype == norm_weight.grad.dtype == dtype
    assert torch.allclose(x.grad.double(), exact_x.grad, **tolerance)
    assert torch.allclose(norm_weight.grad.double(), exact_norm.grad, **tolerance)


def test_only_the_norm_s_weight_wants_a_gradient() -> None:
    packed, norm_weight = matrix(70, 200), draw(200).requires_grad_()
    ternary_linear(draw(3, 200), packed, norm_weight=norm_weight).sum().backward()
    assert norm_weight.grad is not None


def test_forward_mode_is_refused_and_not_taken_for_zero() -> None:
    packed, x = matrix(70, 200), draw(3, 200)
    for weight in (packed, prepare(packed)):
        with pytest.raises(KernelInputError, match="x: a tangent of forward-mode"):
            torch.func.jvp(lambda x, w=weight: ternary_linear(x, w), (x,), (x,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(draw(3, 70), draw(3, 70))
        with pytest.raises(KernelInputError, match="residual: a tangent"):
            ternary_linear(x, prepare(packed), residual=dual)
        with pytest.raises(KernelInputError, match="x: a tangent"):
            TernaryLinear.from_packed(packed)(forward_ad.make_dual(x, x))
        with pytest.raises(KernelInputError, match="weight: a tangent"):
            ste_ternary_linear(x, forward_ad.make_dual(draw(4, 200), draw(4, 200)))
        assert torch.equal(ternary_linear(x, packed), expected(x, unpack(packed), packed.scale))


def test_functions_mapped_over_tokens_and_negated_views() -> None:
    packed, x = matrix(70, 200), draw(3, 200)
    wanted = expected(x, unpack(packed), packed.scale)
    for weight in (packed, prepare(packed)):
        assert torch.equal(torch.func.vmap(lambda x, w=weight: ternary_linear(x, w))(x), wanted)
        negated = torch._neg_view(-x)
        assert negated.is_neg()
        assert torch.equal(ternary_linear(negated, weight), wanted)


def test_operations_without_a_gradient_say_so() -> None:
    packed, x = matrix(70, 200), draw(3, 200).requires_grad_()
    outputs = [
        ternary_linear(quantize_activations(x), packed),
        ternary_linear_block_sparse(x, to_block_sparse(packed)),
        ternary_linear_activation_sparse(x, to_columns(packed)),
        int8_linear(x, quantize_int8(draw(9, 200))),
    ]
    for output in outputs:
        with pytest.raises(RuntimeError, match="no autograd formula"):
            output.sum().backward()


def test_layouts_are_made_once_and_end_with_the_weight() -> None:
    packed, x = matrix(300, 513), draw(2, 513)
    gc.collect()
    before = len(layouts._cache)
    first = ternary_linear(x, packed)
    assert len(layouts._cache) == before + 1
    assert torch.equal(ternary_linear(x, packed), first)
    ternary_linear_activation_sparse(x, to_columns(packed))
    assert len(layouts._cache) <= before + 2
    del packed
    gc.collect()
    assert len(layouts._cache) == before


def test_a_weight_changed_in_place_is_laid_out_again() -> None:
    packed, other, x = matrix(70, 200), matrix(70, 200, seed=9), draw(2, 200)
    ternary_linear(x, packed)
    packed.codes.copy_(other.codes)
    assert torch.equal(ternary_linear(x, packed), expected(x, unpack(other), packed.scale))


def test_codes_read_as_rows_and_as_columns_do_not_share_a_layout() -> None:
    packed = matrix(128, 128)
    columns = to_columns(packed)
    same = type(columns)(packed.codes, packed.scale, 128)  # the transposed matrix
    x = draw(1, 128)
    assert torch.equal(ternary_linear(x, packed), expected(x, unpack(packed), packed.scale))
    output = ternary_linear_activation_sparse(x, same)
    assert torch.equal(output, expected(x, unpack(packed).T.contiguous(), packed.scale))


def test_matrices_prepared_in_order_follow_each_other() -> None:
    matrices = [matrix(64, 512), matrix(70, 200, seed=1), matrix(512, 64, seed=2)]
    prepared = prepare_in_order(matrices)
    for item, packed in zip(prepared, matrices, strict=True):
        x = draw(3, packed.columns)
        wanted = expected(x, unpack(packed), packed.scale)
        assert torch.equal(ternary_linear(x, item), wanted)
        assert torch.equal(ternary_linear(x, packed), wanted)
    if native.extension is not None:
        tensors = [item.laid_out.tensor for item in prepared]
        for one, following in zip(tensors, tensors[1:], strict=False):
            assert following.data_ptr() == one.data_ptr() + one.nbytes
    assert prepare_in_order([]) == []


def test_a_matrix_lives_as_long_as_what_was_prepared_from_it() -> None:
    prepared = prepare(matrix(512, 512))
    gc.collect()
    x = draw(1, 512)
    wanted = expected(x, unpack(prepared.packed), prepared.packed.scale)
    for _ in range(3):
        torch.full((1 << 16,), 0xFF, dtype=torch.uint8)  # would land in memory freed too early
        assert torch.equal(ternary_linear(x, prepared), wanted)


@pytest.mark.parametrize("backend", ["auto", "fallback", "reference"])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.device("meta")], ids=str)
def test_results_do_not_depend_on_torch_s_defaults(
    monkeypatch: pytest.MonkeyPatch, backend: str, default: torch.dtype | torch.device
) -> None:
    int_mm_is_exact.cache_clear()
    choose(backend, monkeypatch)
    x, trits = draw(3, 200), unpack(matrix(70, 200))
    head_weight = draw(9, 200)
    if isinstance(default, torch.device):
        torch.set_default_device(default)
    else:
        torch.set_default_dtype(default)
    try:
        packed, head = pack(trits, 0.5), quantize_int8(head_weight)
        outputs = [
            ternary_linear(x, packed),
            ternary_linear(x, prepare(packed)),
            ternary_linear(x, prepare_in_order([packed])[0]),
            ternary_linear(quantize_activations(x), packed),
            ternary_linear_block_sparse(x, to_block_sparse(packed)),
            ternary_linear_activation_sparse(x, to_columns(packed)),
            TernaryLinear.from_packed(packed)(x),
        ]
        head_output = int8_linear(x, head)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    wanted = expected(x, trits, torch.tensor([0.5]))
    for output in outputs:
        assert torch.equal(output, wanted)
    assert torch.equal(head_output, expected(x, head.weight, head.scale))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_token_or_row_may_have_any_stride(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    choose(backend, monkeypatch)
    packed, head = matrix(1, 200), quantize_int8(draw(1, 200))
    x = draw(1, 200)
    q, scale, total = quantize_activations(x)
    odd_x = x.as_strided((1, 200), (0, 1))
    odd = Activations(q.as_strided((1, 256), (0, 1)), scale.as_strided((1,), (0,)), total)
    odd_head = Int8Weight(head.weight.as_strided((1, 200), (0, 1)), head.scale)
    odd_packed = PackedTernary(packed.codes.as_strided((1, 64), (0, 1)), packed.scale, 200)
    for given_x in (x, odd_x, odd):
        for weight in (packed, odd_packed, prepare(odd_packed)):
            wanted = expected(x, unpack(packed), packed.scale)
            assert torch.equal(ternary_linear(given_x, weight), wanted)
        for weight in (head, odd_head):
            wanted = expected(x, head.weight, head.scale)
            assert torch.equal(int8_linear(given_x, weight), wanted)


def test_padding_of_activations_made_by_hand() -> None:
    packed = matrix(70, 200)
    q = torch.zeros(2, padded(200), dtype=torch.int8)
    q[:, :200] = 3
    activations = Activations(q, torch.ones(2), q.sum(1, dtype=torch.int32))
    wanted = reference.linear(q[:, :200], torch.ones(2), unpack(packed), packed.scale)
    assert torch.equal(ternary_linear(activations, packed), wanted)


def test_a_weight_quantised_from_floats_is_near_its_floats() -> None:
    weight = draw(40, 300)
    x = draw(6, 300)
    packed = pack(*quantize_weights(weight))
    dequantised = unpack(packed).float() * packed.scale
    exact = x.double() @ dequantised.double().T
    # Rounding to int8 is off by half a step at most, in every one of the products.
    step = x.abs().amax(1, keepdim=True) / 127
    bound = step * dequantised.abs().sum(1) / 2 + 1e-3
    assert ((ternary_linear(x, packed) - exact).abs() <= bound).all()
