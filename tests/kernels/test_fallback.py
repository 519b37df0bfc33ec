"""Without a compiler: the reference's bits through ``torch._int_mm`` or float32 products."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from agentforge_kernels import fallback, reference
from agentforge_kernels.backend import Activations
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.fallback import FallbackBackend, accumulate_in_float, int_mm_is_exact
from agentforge_kernels.format import pack, padded
from agentforge_kernels.reference_backend import ReferenceBackend
from agentforge_kernels.sparse import to_block_sparse, to_columns
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

EXTREMES = ["random", "all 127", "all -127", "all -128", "zero"]
SHAPES = [(1, 1), (65, 33), (100, 70), (3, 1500), (20, 4096), (2, 16384)]


@pytest.fixture(autouse=True)
def _no_notice() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=["int_mm", "float"])
def backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FallbackBackend]:
    """The backend where ``torch._int_mm`` is exact, and as it is where that saturates."""
    exact = request.param == "int_mm"
    if exact and not int_mm_is_exact():
        pytest.skip("torch._int_mm saturates on this processor")
    monkeypatch.setattr(fallback, "int_mm_is_exact", lambda: exact)
    if not exact:
        monkeypatch.setattr(torch, "_int_mm", None)
    # Products this small gain nothing from a second thread, and wait for it on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield FallbackBackend()
    torch.set_num_threads(threads)


def activations(tokens: int, columns: int, kind: str, seed: int = 0) -> Activations:
    generator = torch.Generator().manual_seed(seed)
    q = torch.zeros(tokens, padded(columns), dtype=torch.int8)
    if kind == "random":
        q[:, :columns] = torch.randint(
            -128, 128, (tokens, columns), generator=generator, dtype=torch.int8
        )
    elif kind != "zero":
        q[:, :columns] = int(kind.removeprefix("all "))
    scale = torch.rand(tokens, generator=generator) + 0.01
    return Activations(q, scale, q.sum(dim=1, dtype=torch.int32))


def weights(rows: int, columns: int, kind: str) -> Tensor:
    if kind == "random":
        generator = torch.Generator().manual_seed(rows * 131071 + columns)
        return torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
    return torch.full((rows, columns), {"all 127": 1, "zero": 0}.get(kind, -1), dtype=torch.int8)


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_matmul_is_bit_equal_to_the_reference(
    backend: FallbackBackend, rows: int, columns: int, kind: str
) -> None:
    trits = weights(rows, columns, kind)
    generator = torch.Generator().manual_seed(3)
    for tokens in (1, 7):
        given_q = activations(tokens, columns, kind)
        residual = torch.randn(tokens, rows, generator=generator) if tokens > 1 else None
        scale = torch.rand(rows if tokens > 1 else 1, generator=generator)
        packed = pack(trits, scale)
        q = given_q.q[:, :columns]
        wanted = reference.linear(q, given_q.scale, trits, scale, residual)
        sizes = (scale, residual, rows, columns)

        codes, layout = backend.lay_out_dense(packed.codes, columns)
        assert torch.equal(backend.ternary_linear(given_q, codes, layout, *sizes), wanted)
        tiles = to_block_sparse(packed)
        output = backend.ternary_linear_block_sparse(
            given_q, tiles.tiles, tiles.index, tiles.start, *sizes
        )
        assert torch.equal(output, wanted)
        lines, layout = backend.lay_out_columns(to_columns(packed).codes, rows)
        output = backend.ternary_linear_activation_sparse(given_q, lines, layout, *sizes)
        assert torch.equal(output, wanted)

        head = (trits.to(torch.int16) * 128).clamp(-128, 127).to(torch.int8)
        row_scale = scale.expand(rows)
        laid_out, layout = backend.lay_out_int8(head)
        output = backend.int8_linear(given_q, laid_out, layout, row_scale, residual, rows, columns)
        assert torch.equal(output, reference.linear(q, given_q.scale, head, row_scale, residual))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_fused_call_is_the_two_calls(backend: FallbackBackend, threads: int) -> None:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    x, norm = torch.randn(5, 300, generator=generator), torch.rand(300, generator=generator)
    trits, scale = weights(40, 300, "random"), torch.tensor([0.3])
    codes, layout = backend.lay_out_dense(pack(trits, scale).codes, 300)
    output = backend.ternary_linear_fused(x, norm, 1e-6, codes, layout, scale, None, 40, 300)
    q, activation_scale, _ = reference.quantize_activations(x, norm, 1e-6)
    assert torch.equal(output, reference.linear(q, activation_scale, trits, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_activations_are_the_references_and_padded_with_zeros(dtype: torch.dtype) -> None:
    x = torch.randn(6, 200, generator=torch.Generator().manual_seed(2)).to(dtype)
    before = x.clone()
    seen = FallbackBackend().quantize_activations(x)
    q, scale, total = reference.quantize_activations(x)
    assert seen.q.shape == (6, 256)
    assert torch.equal(seen.q[:, :200], q)
    assert not seen.q[:, 200:].any()
    assert torch.equal(seen.scale, scale)
    assert torch.equal(seen.sum, total)
    assert torch.equal(x, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("normed", [False, True])
def test_a_token_that_is_not_finite_has_scale_nan_and_no_other(bad: float, normed: bool) -> None:
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
    x[2, 7] = bad
    norm = torch.ones(50) if normed else None
    for backend in (ReferenceBackend(), FallbackBackend()):
        seen = backend.quantize_activations(x, norm)
        assert seen.scale.isnan().tolist() == [False, False, True, False]


def test_an_overflow_in_the_norm_has_scale_nan() -> None:
    x, norm = torch.ones(2, 50), torch.full((50,), 3e38)
    x[1, 0] = 100.0  # 100 / sqrt(200) times 3e38 is beyond float32
    assert ReferenceBackend().quantize_activations(x, norm).scale.isnan().tolist() == [False, True]


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 5),
    rows=st.integers(1, 6),
    columns=st.sampled_from([1, 2, 1023, 1024, 1025, 3000]),
    low=st.sampled_from([-128, -127, -1, 0, 126]),
    precision=st.sampled_from(["highest", "high", "medium"]),
    seed=st.integers(0, 2**31),
)
def test_float_products_are_exact_at_any_precision(
    tokens: int, rows: int, columns: int, low: int, precision: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-128, 128, (tokens, columns), generator=generator, dtype=torch.int8)
    q[:1] = -128
    weight = torch.randint(low, 128, (rows, columns), generator=generator, dtype=torch.int8)
    weight[:1] = low
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        seen = accumulate_in_float(q, weight)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen.dtype == torch.int32
    assert torch.equal(seen.long(), reference.accumulate(q, weight))


def test_float_products_of_many_extremes_need_the_split() -> None:
    q = torch.full((1, 40_000), -128, dtype=torch.int8)
    weight = torch.full((1, 40_000), -127, dtype=torch.int8)
    q[0, 0] = weight[0, 0] = 1
    wanted = 39_999 * 128 * 127 + 1
    assert wanted > fallback.EXACT_INTEGERS
    assert int(accumulate_in_float(q, weight)) == wanted


@pytest.mark.parametrize("fault", ["saturates", "missing"])
def test_an_inexact_int_mm_is_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def int_mm(q: Tensor, weight: Tensor) -> Tensor:
        if fault == "missing":
            raise RuntimeError("not implemented")
        pairs = q.int().unsqueeze(-1) * weight.int()
        return pairs.view(q.shape[0], -1, 2, weight.shape[1]).sum(2).clamp(-32768, 32767).sum(1)

    assert int_mm_is_exact.__wrapped__() is int_mm_is_exact()
    monkeypatch.setattr(torch, "_int_mm", int_mm)
    assert int_mm_is_exact.__wrapped__() is False


def test_weights_laid_out_for_something_else_are_refused() -> None:
    backend = FallbackBackend()
    codes = pack(weights(4, 4, "random"), 1.0).codes
    q, scale = activations(1, 4, "random"), torch.ones(1)
    for call in (backend.ternary_linear, backend.ternary_linear_activation_sparse):
        with pytest.raises(KernelInputError, match="^layout: panels; allowed: "):
            call(q, codes, "panels", scale, None, 4, 4)
    with pytest.raises(KernelInputError, match="^layout: rows; allowed: int8"):
        backend.int8_linear(q, codes, "rows", scale, None, 4, 4)


@pytest.mark.parametrize("built", [True, False])
def test_the_notice_is_given_once_and_says_why(
    monkeypatch: pytest.MonkeyPatch, built: bool
) -> None:
    reason = None if built else "the extension was not built (no C++ compiler)"
    monkeypatch.setattr(fallback, "unavailable_reason", lambda: reason)
    fallback._give_notice.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        FallbackBackend()
        FallbackBackend()
    assert len(seen) == 1
    message = str(seen[0].message)
    assert message.startswith("agentforge_kernels computes through torch._int_mm")
    assert message.endswith(
        "this backend was asked for."
        if built
        else "(no C++ compiler). For the compiled kernels install a C++ compiler (g++ or clang++) "
        "and reinstall the package."
    )
