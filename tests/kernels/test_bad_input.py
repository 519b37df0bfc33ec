"""Arguments no kernel may be given: each is refused by name, none crashes and none passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from agentforge_kernels import (
    Activations,
    Int8Weight,
    KernelInputError,
    PackedTernary,
    TernaryLinear,
    dispatch,
    int8_linear,
    native,
    pack,
    prepare,
    quantize_activations,
    quantize_int8,
    quantize_weights,
    reference,
    ternary_linear,
    ternary_linear_activation_sparse,
    ternary_linear_block_sparse,
    to_block_sparse,
    to_columns,
    unpack,
)
from agentforge_kernels.execute import refuse_bad_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

ROWS, COLUMNS = 70, 200
Operation = Callable[..., Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


PACKED = pack(*quantize_weights(draw(ROWS, COLUMNS)))
HEAD = quantize_int8(draw(ROWS, COLUMNS))
OPERATIONS: dict[str, tuple[Operation, object]] = {
    "packed": (ternary_linear, PACKED),
    "prepared": (ternary_linear, prepare(PACKED)),
    "block-sparse": (ternary_linear_block_sparse, to_block_sparse(PACKED)),
    "activation-sparse": (ternary_linear_activation_sparse, to_columns(PACKED)),
    "int8": (int8_linear, HEAD),
}
every_operation = pytest.mark.parametrize("name", OPERATIONS)
every_backend = pytest.mark.parametrize("backend", ["auto", "fallback", "reference"])


@pytest.fixture(autouse=True)
def _choice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend of the parameter of that name; the automatic one without it."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.delenv(dispatch.CHECK_VARIABLE, raising=False)
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None:
        choose(callspec.params.get("backend", "auto"), monkeypatch)


def choose(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "fallback":
        chosen = dispatch.backend_named("fallback")
        monkeypatch.setattr(dispatch, "backend_for", lambda device: chosen)
    elif backend != "auto":
        monkeypatch.setenv(dispatch.VARIABLE, backend)


def run(name: str, x: object, **options: object) -> Tensor:
    operation, weight = OPERATIONS[name]
    return operation(x, weight, **options)


def refused(argument: str, seen: str, allowed: str, call: Callable[[], object]) -> None:
    """The call is refused, for this argument, naming what was seen and what is allowed."""
    with pytest.raises(KernelInputError) as raised:
        call()
    assert raised.value.argument == argument
    assert seen in str(raised.value.seen)
    assert allowed in raised.value.allowed
    assert str(raised.value).startswith(f"{argument}: ")


X_CASES: list[tuple[str, object, str, str]] = [
    ("float64", draw(3, COLUMNS).double(), "torch.float64", "float32, float16 or bfloat16"),
    ("int8", torch.zeros(3, COLUMNS, dtype=torch.int8), "torch.int8", "float32"),
    ("bool", torch.zeros(3, COLUMNS, dtype=torch.bool), "torch.bool", "float32"),
    ("complex", torch.zeros(3, COLUMNS, dtype=torch.complex64), "torch.complex64", "float32"),
    ("list", [1.0], "a list", "a Tensor"),
    ("none", None, "a NoneType", "a Tensor"),
    ("scalar", torch.tensor(1.0), "shape []", "[..., "),
    ("narrow", draw(3, COLUMNS - 1), "[3, 199]", "[..., 200]"),
    ("wide", draw(3, 256), "[3, 256]", "[..., 200]"),
    ("no column", torch.zeros(3, 0), "[3, 0]", "columns"),
    ("transposed", draw(COLUMNS, 3).T, "strides [1, 3]", "a contiguous tensor"),
    ("every other", draw(3, 2 * COLUMNS)[:, ::2], "strides [400, 2]", "a contiguous tensor"),
    ("expanded", draw(1, COLUMNS).expand(3, COLUMNS), "strides [0, 1]", "a contiguous tensor"),
    ("sparse", draw(3, COLUMNS).to_sparse(), "layout torch.sparse_coo", "a dense tensor"),
    ("meta", torch.zeros(3, COLUMNS, device="meta"), "device meta", "cpu, where the weight is"),
]


@every_operation
@pytest.mark.parametrize(
    ("x", "seen", "allowed"), [c[1:] for c in X_CASES], ids=[c[0] for c in X_CASES]
)
def test_activations_that_are_refused(name: str, x: object, seen: str, allowed: str) -> None:
    refused("x", seen, allowed, lambda: run(name, x))


@pytest.mark.parametrize(
    ("x", "seen"),
    [c[1:3] for c in X_CASES if c[0] not in ("narrow", "wide", "meta")],
    ids=[c[0] for c in X_CASES if c[0] not in ("narrow", "wide", "meta")],
)
def test_activations_that_are_not_quantised(x: object, seen: str) -> None:
    refused("x", seen, "", lambda: quantize_activations(x))


def test_what_to_do_about_strides_is_said() -> None:
    with pytest.raises(KernelInputError, match=r"Call x\.contiguous\(\) first"):
        ternary_linear(draw(COLUMNS, 3).T, PACKED)


@every_backend
@every_operation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 5])
def test_nan_and_infinity_name_the_token(
    backend: str, name: str, dtype: torch.dtype, tokens: int
) -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        for token in {0, tokens - 1}:
            x = draw(tokens, COLUMNS).to(dtype)
            x[token, COLUMNS - 1] = value
            for shaped in (x, x.reshape(tokens, 1, COLUMNS)):
                refused("x", f"token {token}", "finite", lambda x=shaped: run(name, x))
            refused("x", f"token {token}", "finite", lambda x=x: quantize_activations(x))
            refused(
                "x", f"token {token}", "finite",
                lambda x=x: run(name, x, norm_weight=torch.ones(COLUMNS)),
            )  # fmt: skip


@every_backend
def test_nan_that_a_norm_makes_is_seen(backend: str) -> None:
    norm = torch.ones(COLUMNS)
    norm[3] = float("nan")
    refused(
        "x", "token 0", "finite", lambda: ternary_linear(draw(2, COLUMNS), PACKED, norm_weight=norm)
    )


def test_nan_is_seen_behind_the_dispatcher_and_by_the_layer() -> None:
    x = draw(3, COLUMNS)
    x[2, 0] = float("nan")
    refused("x", "token 2", "finite", lambda: ternary_linear(x.clone().requires_grad_(), PACKED))
    refused("x", "token 2", "finite", lambda: TernaryLinear.from_packed(PACKED)(x))


def test_a_gpu_is_waited_for_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        """A scale on a GPU: reading a number from it would wait for the device."""

        device = torch.device("cuda", 0)
        reads = 0

        def numel(self) -> int:
            return 1

        def item(self) -> float:
            self.reads += 1
            return 1.0

    scale = OnGpu()
    refuse_bad_tokens(scale, "x")  # type: ignore[arg-type]
    assert scale.reads == 0
    monkeypatch.setenv(dispatch.CHECK_VARIABLE, "1")
    refuse_bad_tokens(scale, "x")  # type: ignore[arg-type]
    assert scale.reads == 1


@every_operation
def test_residuals_that_are_refused(name: str) -> None:
    x = draw(2, 3, COLUMNS)
    good = draw(2, 3, ROWS)
    for residual, seen, allowed in [
        (good[0], "[3, 70]", "[2, 3, 70], the output's"),
        (good[:, :1].clone(), "[2, 1, 70]", "[2, 3, 70]"),
        (good[..., :69].contiguous(), "[2, 3, 69]", "[2, 3, 70]"),
        (draw(6, ROWS), "[6, 70]", "[2, 3, 70]"),
        (good.double(), "torch.float64", "float32"),
        (good.int(), "torch.int32", "float32"),
        (good.to("meta"), "device meta", "cpu"),
        (draw(ROWS, 3, 2).permute(2, 1, 0), "strides", "a contiguous tensor"),
        (1.0, "a float", "a Tensor"),
    ]:
        refused("residual", seen, allowed, lambda r=residual: run(name, x, residual=r))
    assert run(name, x, residual=good).shape == good.shape


@every_operation
def test_norms_that_are_refused(name: str) -> None:
    x, good = draw(3, COLUMNS), draw(COLUMNS).abs()
    for norm, seen, allowed in [
        (good[:-1].clone(), "[199]", "[200], the columns of x"),
        (good[None], "[1, 200]", "[200]"),
        (good.double(), "torch.float64", "float32"),
        (good.to("meta"), "device meta", "cpu"),
        (draw(2 * COLUMNS)[::2], "strides [2]", "a contiguous tensor"),
    ]:
        refused("norm_weight", seen, allowed, lambda n=norm: run(name, x, norm_weight=n))
    for epsilon in (-1e-5, float("nan"), float("inf")):
        refused(
            "epsilon", str(epsilon), "0 or more",
            lambda e=epsilon: run(name, x, norm_weight=good, epsilon=e),
        )  # fmt: skip


@every_operation
def test_quantised_activations_that_are_refused(name: str) -> None:
    good = quantize_activations(draw(3, COLUMNS))
    bad_scale = good.scale.clone()
    bad_scale[1] = float("inf")
    for change, argument, seen, allowed in [
        ({"q": good.q.int()}, "x.q", "torch.int32", "int8 [..., 256]"),
        ({"q": good.q[:, :200].contiguous()}, "x.q", "[3, 200]", "padded to a multiple of 128"),
        ({"q": good.q[:, :128].contiguous()}, "x.q", "[3, 128]", "int8 [..., 256]"),
        ({"q": torch.zeros(256, 3, dtype=torch.int8).T}, "x.q", "strides", "contiguous"),
        ({"q": good.q.to("meta")}, "x.q", "device meta", "cpu"),
        ({"scale": good.scale[:2].clone()}, "x.scale", "[2]", "[3], the leading shape"),
        ({"scale": good.scale.double()}, "x.scale", "torch.float64", "torch.float32"),
        ({"scale": bad_scale}, "x.scale", "token 1", "finite"),
        ({"sum": good.sum[None]}, "x.sum", "[1, 3]", "[3]"),
        ({"sum": good.sum.long()}, "x.sum", "torch.int64", "torch.int32"),
    ]:
        refused(argument, seen, allowed, lambda c=change: run(name, good._replace(**c)))
    norm = torch.ones(COLUMNS)
    refused("norm_weight", "quantised", "None", lambda: run(name, good, norm_weight=norm))


@every_operation
def test_weights_of_another_kind_are_refused(name: str) -> None:
    operation, own = OPERATIONS[name]
    x = draw(3, COLUMNS)
    for _, weight in OPERATIONS.values():
        if type(weight) is type(own) or operation is ternary_linear and "Prepared" in str(weight):
            continue
        if operation is ternary_linear and isinstance(weight, PackedTernary):
            continue
        refused("weight", f"a {type(weight).__name__}", "a ", lambda w=weight: operation(x, w))
    refused("weight", "a Tensor", "a ", lambda: operation(x, draw(ROWS, COLUMNS)))
    refused("weight", "a Linear", "a ", lambda: operation(x, torch.nn.Linear(COLUMNS, ROWS)))


def test_int8_weights_that_are_refused() -> None:
    good, scale = HEAD.weight, HEAD.scale
    nan = scale.clone()
    nan[4] = float("nan")
    for weight, row_scale, argument, seen in [
        (good.int(), scale, "weight", "torch.int32"),
        (good[0], scale, "weight", "[200]"),
        (good[:, ::2], scale, "weight", "strides"),
        (torch.zeros(1, 131072, dtype=torch.int8), torch.ones(1), "weight", "131072 columns"),
        (good, scale[:3], "scale", "[3]"),
        (good, scale.double(), "scale", "torch.float64"),
        (good, nan, "scale", "NaN"),
        (good, scale.to("meta"), "scale", "device meta"),
    ]:
        refused(argument, seen, "", lambda w=weight, s=row_scale: Int8Weight(w, s))
    for weight in (torch.zeros(3, 4).int(), torch.zeros(4), torch.full((2, 3), float("inf"))):
        with pytest.raises(KernelInputError, match="weight"):
            quantize_int8(weight)


def test_the_largest_int8_sums_fit_32_bits() -> None:
    columns = 131071
    weight = Int8Weight(torch.full((2, columns), -128, dtype=torch.int8), torch.ones(1))
    q = torch.zeros(1, 131072, dtype=torch.int8)
    q[:, :columns] = -128
    activations = Activations(q, torch.ones(1), q.sum(1, dtype=torch.int32))
    wanted = torch.full((1, 2), float(columns * 128 * 128))
    assert torch.equal(int8_linear(activations, weight), wanted)


@every_backend
def test_a_forced_backend_computes_what_was_prepared_for_another(backend: str) -> None:
    x, prepared = draw(3, COLUMNS), OPERATIONS["prepared"][1]
    q, scale, _ = reference.quantize_activations(x)
    wanted = reference.linear(q, scale, unpack(PACKED), PACKED.scale)
    assert torch.equal(ternary_linear(x, prepared), wanted)


shapes = st.builds(
    lambda leading, last: [*leading, *last],
    st.lists(st.integers(0, 3), max_size=3),
    st.lists(st.sampled_from([0, 1, ROWS, COLUMNS - 1, COLUMNS, 256]), max_size=1),
)
dtypes = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64]
)


class Recipe(NamedTuple):
    """Any small tensor: often of the right shape, with odd strides, devices and values."""

    shape: list[int]
    dtype: torch.dtype
    change: str
    seed: int

    def make(self) -> Tensor:
        tensor = draw(*self.shape, seed=self.seed).to(self.dtype)
        if self.change == "transposed" and tensor.ndim >= 2:
            return tensor.transpose(0, -1)
        if self.change == "nan" and tensor.numel() and tensor.is_floating_point():
            tensor.view(-1)[self.seed % tensor.numel()] = float("nan")
        if self.change == "strided" and tensor.ndim:
            return tensor.repeat_interleave(2, dim=-1)[..., ::2]
        return tensor.to("meta") if self.change == "meta" else tensor


def recipes(last: int) -> st.SearchStrategy[Recipe]:
    """Recipes, often for a tensor whose last dimension is ``last``."""
    return st.builds(
        Recipe,
        shape=shapes | st.sampled_from([[1, last], [3, last], [2, 1, last]]),
        dtype=dtypes,
        change=st.sampled_from(["", "", "", "transposed", "nan", "strided", "meta"]),
        seed=st.integers(0, 99),
    )


@every_operation
@settings(max_examples=120, deadline=None)
@given(
    x_recipe=recipes(COLUMNS),
    residual_recipe=st.none() | recipes(ROWS),
    norm_recipe=st.none() | recipes(COLUMNS) | st.just(Recipe([COLUMNS], torch.float32, "", 0)),
)
def test_any_tensor_is_refused_or_multiplied_right(
    name: str, x_recipe: Recipe, residual_recipe: Recipe | None, norm_recipe: Recipe | None
) -> None:
    x, residual = x_recipe.make(), residual_recipe and residual_recipe.make()
    norm = norm_recipe and norm_recipe.make()
    try:
        output = run(name, x, residual=residual, norm_weight=norm)
    except KernelInputError:
        return
    tokens = x.reshape(-1, COLUMNS)
    activations = quantize_activations(tokens, norm_weight=norm)
    weight, scale = (HEAD.weight, HEAD.scale) if name == "int8" else (unpack(PACKED), PACKED.scale)
    wanted = reference.linear(activations.q[:, :COLUMNS], activations.scale, weight, scale)
    wanted = wanted.reshape(*x.shape[:-1], ROWS)
    if residual is not None:
        wanted = wanted + residual.float()
    assert torch.equal(output.nan_to_num(), wanted.nan_to_num())


@settings(max_examples=150, deadline=None)
@given(x_recipe=recipes(COLUMNS), residual_recipe=st.none() | recipes(ROWS))
def test_the_layer_refuses_any_tensor_or_multiplies_it_right(
    x_recipe: Recipe, residual_recipe: Recipe | None
) -> None:
    x, residual = x_recipe.make(), residual_recipe and residual_recipe.make()
    layer = TernaryLinear.from_packed(PACKED, bias=torch.ones(ROWS))
    try:
        output = layer(x, residual)
    except KernelInputError:
        return
    q, scale, _ = reference.quantize_activations(x.reshape(-1, COLUMNS))
    wanted = reference.linear(q, scale, unpack(PACKED), PACKED.scale)
    wanted = wanted.reshape(*x.shape[:-1], ROWS)
    if residual is not None:
        wanted = wanted + residual.float()
    assert torch.equal(output.nan_to_num(), (wanted + 1).to(x.dtype).nan_to_num())


@pytest.mark.skipif(native.extension is None, reason="the extension is not built")
def test_tensors_without_memory_do_not_reach_the_extension() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    backend = dispatch.backend_named("native")
    with FakeTensorMode() as mode:
        codes = mode.from_tensor(PACKED.codes)
        with pytest.raises(KernelInputError, match="FakeTensor"):
            backend.lay_out_dense(codes, COLUMNS)
        with pytest.raises(KernelInputError, match="FakeTensor"):
            backend.quantize_activations(draw(3, COLUMNS), None, 1e-5)
    with pytest.raises(KernelInputError, match="FakeTensor"):
        backend.lay_out_dense(codes, COLUMNS)
