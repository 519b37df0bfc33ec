"""Dense, block-sparse or activation-sparse: chosen by thresholds, explained, the same bits."""

from __future__ import annotations

import re
import threading

import pytest
import torch
from agentforge_kernels import (
    KernelInputError,
    PackedTernary,
    TernaryLinear,
    dispatch,
    native,
    native_call,
    pack,
    prepare,
    prepare_in_order,
    prepare_model,
    reference,
    ternary_linear,
    thresholds,
    unpack,
)
from agentforge_kernels.thresholds import Threshold
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

if native.extension is None:
    pytest.skip(f"{native.unavailable_reason()}", allow_module_level=True)

FORMS = ["dense", "block-sparse", "activation-sparse"]
ALWAYS = (Threshold(1 << 40, -1e9, 3),)
NEVER: tuple[Threshold, ...] = ()


@pytest.fixture(autouse=True)
def calls_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices take sparse forms, as if called from native code."""
    monkeypatch.setattr(thresholds, "CALL_BYTES", 0)


def test_a_small_matrix_stays_dense_when_python_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "BLOCK_SPARSE", (Threshold(1 << 40, 0.2, 64),))
    packed = matrix(512, 512, 0.9)
    assert prepare(packed).form.startswith("block-sparse")
    monkeypatch.setattr(thresholds, "CALL_BYTES", 64 << 10)  # as many as the matrix has
    assert prepare(packed).form.startswith("dense: ")
    assert prepare(matrix(2048, 2048, 0.5)).form.startswith("block-sparse")  # 1 MB


@pytest.fixture(autouse=True)
def _automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


def force(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds under which every matrix takes a form, for up to three tokens."""
    blocks, columns = form == "block-sparse", form == "activation-sparse"
    monkeypatch.setattr(thresholds, "BLOCK_SPARSE", ALWAYS if blocks else NEVER)
    monkeypatch.setattr(thresholds, "ACTIVATION_SPARSE", ALWAYS if columns else NEVER)


def matrix(rows: int, columns: int, zero_tiles: float, seed: int = 0) -> PackedTernary:
    """A matrix of which a share of the 64 x 16 tiles is zero."""
    generator = torch.Generator().manual_seed(seed)
    trits = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
    grid = torch.rand(-(-rows // 64), -(-columns // 16), generator=generator) < zero_tiles
    zero = grid.repeat_interleave(64, 0).repeat_interleave(16, 1)[:rows, :columns]
    return pack(trits.masked_fill(zero, 0), torch.rand(rows, generator=generator) + 0.5)


def tokens_of(count: int, columns: int, zero: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, columns, generator=generator)
    return x.masked_fill(torch.rand(count, columns, generator=generator) < zero, 0.0)


def expected(x: Tensor, packed: PackedTernary, residual: Tensor | None = None) -> Tensor:
    q, scale, _ = reference.quantize_activations(x)
    return reference.linear(q, scale, unpack(packed), packed.scale, residual)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 200),
    columns=st.integers(1, 400),
    tokens=st.integers(1, 6),
    zero_tiles=st.sampled_from([0.0, 0.5, 1.0]),
    zero=st.sampled_from([0.0, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    with_residual=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_every_form_gives_the_bits_of_the_reference(
    form: str,
    rows: int,
    columns: int,
    tokens: int,
    zero_tiles: float,
    zero: float,
    dtype: torch.dtype,
    with_residual: bool,
    seed: int,
) -> None:
    packed = matrix(rows, columns, zero_tiles, seed)
    x = tokens_of(tokens, columns, zero, seed).to(dtype)
    residual = torch.randn(tokens, rows) if with_residual else None
    with pytest.MonkeyPatch.context() as patch:
        force(form, patch)
        weight = prepare(packed)
    assert weight.form.startswith(form)
    for _ in range(2):
        output = ternary_linear(x, weight, residual=residual)
        assert torch.equal(output, expected(x, packed, residual))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_the_layer_takes_the_form_too(
    monkeypatch: pytest.MonkeyPatch, form: str, tokens: int
) -> None:
    force(form, monkeypatch)
    packed, bias = matrix(70, 200, 0.5), torch.randn(70)
    norm_weight = torch.rand(200) + 0.5
    layer = TernaryLinear.from_packed(packed, bias=bias, norm_weight=norm_weight)
    x, residual = tokens_of(tokens, 200, 0.5), torch.randn(tokens, 70)
    assert layer.prepare().form.startswith(form)
    output = layer(x, residual)
    force("dense", monkeypatch)
    plain = TernaryLinear.from_packed(packed, bias=bias, norm_weight=norm_weight)
    assert torch.equal(output, plain(x, residual))


@pytest.mark.parametrize("form", FORMS[1:])
def test_the_sparse_kernel_is_used_for_few_tokens_only(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    calls: list[int] = []
    maker = "block_sparse_product" if form == "block-sparse" else "activation_sparse_product"
    make = getattr(native_call, maker)

    def counting(*arguments: object) -> native_call.Product:
        product = make(*arguments)

        def count(*values: object) -> int:
            calls.append(values[4])
            return product(*values)

        return count

    monkeypatch.setattr(native_call, maker, counting)
    force(form, monkeypatch)
    weight = prepare(matrix(70, 200, 0.5))
    for tokens in (1, 3, 4, 20):
        ternary_linear(tokens_of(tokens, 200, 0.5), weight)
    assert calls == [1, 3]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 3])
def test_nan_is_seen_in_every_form(monkeypatch: pytest.MonkeyPatch, form: str, tokens: int) -> None:
    force(form, monkeypatch)
    weight = prepare(matrix(70, 200, 0.5))
    for value in (float("nan"), float("inf")):
        x = tokens_of(tokens, 200, 0.5)
        x[tokens - 1, 7] = value
        with pytest.raises(KernelInputError, match=f"x: NaN or infinity in token {tokens - 1}"):
            ternary_linear(x, weight)
    good = tokens_of(tokens, 200, 0.5)
    assert torch.equal(ternary_linear(good, weight), expected(good, weight.packed))


def test_threads_of_python_do_not_share_scratch_memory() -> None:
    # A long product gives up the interpreter's lock, and another thread quantises meanwhile.
    packed = matrix(2048, 2048, 0.5)
    weight = prepare(packed)
    assert "block-sparse" in weight.form
    inputs = [tokens_of(32, 2048, 0.0, seed) for seed in range(4)]
    wanted = [expected(x, packed) for x in inputs]
    same: list[bool] = []

    def work(number: int) -> None:
        for _ in range(5):
            same.append(torch.equal(ternary_linear(inputs[number], weight), wanted[number]))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(same) == 20
    assert all(same)


def test_two_sparse_forms_share_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = matrix(256, 512, 0.5)
    columns, tiles = (Threshold(1 << 40, 0.4, 2),), (Threshold(1 << 40, 0.4, 12),)
    monkeypatch.setattr(thresholds, "ACTIVATION_SPARSE", columns)
    monkeypatch.setattr(thresholds, "BLOCK_SPARSE", tiles)
    weight = prepare(packed, zero_activations=0.9)
    both = "activation-sparse up to 2 tokens, block-sparse up to 12 tokens, dense beyond: "
    assert weight.form.startswith(both)
    for tokens in (1, 2, 3, 8, 9, 12, 13):  # around the borders of both
        x = tokens_of(tokens, 512, 0.9, tokens)
        assert torch.equal(ternary_linear(x, weight), expected(x, packed))
    # Where tiles leave out more and serve more tokens, columns are of no use.
    assert prepare(packed, zero_activations=0.45).form.startswith("block-sparse up to 12 tokens, d")
    monkeypatch.setattr(thresholds, "ACTIVATION_SPARSE", tiles)
    weight = prepare(packed, zero_activations=0.9)
    assert weight.form.startswith("activation-sparse up to 12 tokens, dense beyond: ")


def test_zeros_spread_at_random_never_pay() -> None:
    trits = torch.randint(-1, 2, (640, 640), dtype=torch.int8)
    trits[torch.rand(640, 640) < 0.45] = 0
    weight = prepare(pack(trits, 1.0))
    assert weight.form.startswith("dense: 0% of the tiles and 0% of the activations")


def test_the_form_is_explained_with_its_numbers() -> None:
    blocks = prepare(matrix(512, 512, 0.75)).form
    assert blocks.startswith("block-sparse ")
    assert re.search(r": 7\d% of the tiles and 0% of the activations are zero, enough", blocks)
    assert blocks.endswith(" at 65,536 bytes")
    packed = matrix(512, 512, 0.0)
    columns = prepare(packed, zero_activations=0.95).form
    assert columns.startswith("activation-sparse ")
    assert "0% of the tiles and 95% of the activations are zero, enough" in columns
    assert prepare(packed, zero_activations=0.1).form == (
        "dense: 0% of the tiles and 10% of the activations are zero, too few for a sparse form to "
        "pay at 65,536 bytes"
    )


def test_backends_that_were_not_measured_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    weight = prepare(matrix(512, 512, 0.9), zero_activations=0.99)
    assert weight.form == "dense: sparse forms were not measured for the backend reference"
    assert weight.call is None


def test_a_share_outside_its_range_is_refused() -> None:
    packed = matrix(70, 200, 0.0)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(KernelInputError, match="zero_activations: .*; allowed: 0 to 1"):
            prepare(packed, zero_activations=share)


def test_matrices_in_order_keep_their_forms() -> None:
    matrices = [matrix(512, 512, 0.75), matrix(512, 512, 0.0), matrix(512, 512, 0.0, seed=1)]
    forms = [item.form.split()[0] for item in prepare_in_order(matrices, [0.0, 0.95, 0.0])]
    assert forms == ["block-sparse", "activation-sparse", "dense:"]
    model = nn.Sequential(
        TernaryLinear.from_packed(matrices[2]),
        TernaryLinear.from_packed(matrices[1], zero_activations=0.95),
    )
    assert prepare_model(model) == 2
    assert model[1].prepare().form.startswith("activation-sparse")
    assert "zero_activations=0.95" in repr(model[1])
    x = tokens_of(1, 512, 0.0)
    inner = expected(x, matrices[2])
    assert torch.equal(model(x), expected(inner, matrices[1]))


@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_goes_the_dense_way(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    force(form, monkeypatch)
    packed = matrix(70, 200, 0.5)
    x = tokens_of(1, 200, 0.5).requires_grad_()
    ternary_linear(x, prepare(packed)).sum().backward()
    weight = unpack(packed).float() * packed.scale[:, None]
    assert torch.equal(x.grad, torch.ones(1, 70) @ weight)
