from __future__ import annotations

import threading

import pytest
import torch
from agentforge_kernels.arena import place_consecutively
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import pack
from agentforge_kernels.native_backend import MOST_COLUMNS, NativeBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.native_cases import (
    LEVEL_NAMES,
    LEVELS,
    activations_of,
    expected,
    extension,
    level_in_use,
    random_trits,
    unaligned,
)

all_levels = pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)
both_thread_counts = pytest.mark.parametrize("threads", [1, 2])

SHAPES = [
    (1, 1),
    (1, 16),
    (63, 15),
    (64, 128),
    (65, 33),
    (100, 70),
    (130, 1500),
    (512, 512),
    (192, 4096),
]
TOKENS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 33]


def multiply(
    backend: NativeBackend,
    q: Tensor,
    trits: Tensor,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and expected output of the dense matmul."""
    rows, columns = trits.shape
    scale = torch.tensor([0.5]) if scale is None else scale
    activations = activations_of(q)
    panels, layout = backend.lay_out_dense(pack(trits, scale).codes, columns)
    output = backend.ternary_linear(activations, panels, layout, scale, residual, rows, columns)
    return output, expected(activations, trits, scale, residual)


def random_q(tokens: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + tokens * 8191 + columns)
    return torch.randint(-128, 128, (tokens, columns), generator=generator, dtype=torch.int8)


@all_levels
@both_thread_counts
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_token_count_equals_the_reference(
    level: int, threads: int, rows: int, columns: int
) -> None:
    backend = NativeBackend(threads)
    trits = random_trits(rows, columns)
    generator = torch.Generator().manual_seed(7)
    with level_in_use(level):
        for tokens in TOKENS:
            if level == 0 and tokens * rows * columns > 3_000_000:
                continue  # the portable level is slow, and the size adds no path to it
            per_row = tokens % 2 == 0
            scale = torch.rand(rows if per_row else 1, generator=generator) + 0.1
            residual = torch.randn(tokens, rows, generator=generator) if tokens % 3 else None
            output, wanted = multiply(backend, random_q(tokens, columns), trits, scale, residual)
            assert torch.equal(output, wanted)


@all_levels
@pytest.mark.parametrize(
    "columns", [1, 2, 15, 16, 17, 127, 128, 129, 1023, 1024, 1025, 5000, 16384]
)
@pytest.mark.parametrize("value", [127, -127, -128, 0])
def test_extreme_sums_are_exact(level: int, columns: int, value: int) -> None:
    backend = NativeBackend(1)
    weights = torch.ones(3, columns, dtype=torch.int8)
    weights[1] = -1
    weights[2] = 0
    with level_in_use(level):
        for tokens in (1, 2, 6):
            q = torch.full((tokens, columns), value, dtype=torch.int8)
            output, wanted = multiply(backend, q, weights)
            assert torch.equal(output, wanted)
            assert not output[:, 2].any()


@all_levels
def test_alternating_extremes_do_not_saturate(level: int) -> None:
    columns = 4096
    q = torch.tensor([127, -128], dtype=torch.int8).repeat(columns // 2)
    weights = torch.stack([torch.tensor([1, -1], dtype=torch.int8).repeat(columns // 2)] * 2)
    weights[1] *= -1
    with level_in_use(level):
        for tokens in (1, 5):
            output, wanted = multiply(NativeBackend(1), q.repeat(tokens, 1), weights)
            assert torch.equal(output, wanted)


@all_levels
@both_thread_counts
@pytest.mark.parametrize("tokens", [1, 4, 13])
def test_fused_equals_quantise_then_multiply(level: int, threads: int, tokens: int) -> None:
    backend = NativeBackend(threads)
    generator = torch.Generator().manual_seed(3)
    for rows, columns in ((65, 33), (640, 1000), (128, 2048)):
        trits = random_trits(rows, columns)
        scale = torch.rand(1, generator=generator)
        residual = torch.randn(tokens, rows, generator=generator)
        norm_weight = torch.rand(columns, generator=generator) + 0.5
        panels, layout = backend.lay_out_dense(pack(trits, scale).codes, columns)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = torch.randn(tokens, columns, generator=generator).to(dtype)
            for weight in (None, norm_weight):
                with level_in_use(level):
                    activations = backend.quantize_activations(x, weight, 1e-5)
                    apart = backend.ternary_linear(
                        activations, panels, layout, scale, residual, rows, columns
                    )
                    fused = backend.ternary_linear_fused(
                        x, weight, 1e-5, panels, layout, scale, residual, rows, columns
                    )
                assert torch.equal(fused, apart)
                assert torch.equal(apart, expected(activations, trits, scale, residual))


@all_levels
def test_unaligned_tensors_give_the_same_result(level: int) -> None:
    backend = NativeBackend(2)
    rows, columns = 200, 300
    trits = random_trits(rows, columns)
    scale = torch.rand(rows)
    codes = pack(trits, scale).codes
    panels, layout = backend.lay_out_dense(unaligned(codes), columns)
    with level_in_use(level):
        for tokens in (1, 3, 9):
            x = torch.randn(tokens, columns)
            residual = unaligned(torch.randn(tokens, rows))
            activations = backend.quantize_activations(unaligned(x))
            moved = activations._replace(
                q=unaligned(activations.q),
                scale=unaligned(activations.scale),
                sum=unaligned(activations.sum),
            )
            arguments = (unaligned(panels), layout, unaligned(scale), residual, rows, columns)
            wanted = expected(activations, trits, scale, residual)
            assert torch.equal(backend.ternary_linear(moved, *arguments), wanted)
            fused = backend.ternary_linear_fused(unaligned(x), None, 1e-5, *arguments)
            assert torch.equal(fused, wanted)


@settings(max_examples=60, deadline=None)
@given(
    level=st.sampled_from(LEVELS),
    rows=st.integers(1, 140),
    columns=st.integers(1, 400),
    tokens=st.integers(1, 20),
    threads=st.integers(1, 3),
    per_row=st.booleans(),
    with_residual=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(
    level: int,
    rows: int,
    columns: int,
    tokens: int,
    threads: int,
    per_row: bool,
    with_residual: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(rows if per_row else 1, generator=generator)
    residual = torch.randn(tokens, rows, generator=generator) if with_residual else None
    with level_in_use(level):
        output, wanted = multiply(
            NativeBackend(threads),
            random_q(tokens, columns, seed),
            random_trits(rows, columns, seed),
            scale,
            residual,
        )
    assert torch.equal(output, wanted)


@all_levels
@both_thread_counts
def test_more_tokens_than_the_scratch_holds_at_once(level: int, threads: int) -> None:
    columns, tokens = 131072, 260  # 32 MB of packed activations are 256 tokens
    if level == 0:
        columns, tokens = 131072, 258
    q = random_q(tokens, 512).repeat(1, columns // 512)
    with level_in_use(level):
        output, wanted = multiply(NativeBackend(threads), q, random_trits(1, columns))
    assert torch.equal(output, wanted)


@all_levels
@pytest.mark.parametrize("columns", [65536, 65537, 262144 + 40])
def test_more_columns_than_scaled_fields_can_sum(level: int, columns: int) -> None:
    # Up to 65,536 columns fields stay where they are in their byte, scaled by up to 64.
    q = torch.full((1, columns), -128, dtype=torch.int8)
    weights = torch.ones(2, columns, dtype=torch.int8)
    weights[1] = -1
    with level_in_use(level):
        output, wanted = multiply(NativeBackend(1), q, weights)
    assert torch.equal(output, wanted)


@both_thread_counts
def test_few_rows_and_many_tokens_are_split_by_token(threads: int) -> None:
    output, wanted = multiply(NativeBackend(threads), random_q(300, 2048), random_trits(64, 2048))
    assert torch.equal(output, wanted)


def test_no_tokens_give_an_empty_result() -> None:
    output, wanted = multiply(NativeBackend(2), random_q(0, 64), random_trits(5, 64))
    assert output.shape == wanted.shape == (0, 5)


@all_levels
@pytest.mark.parametrize("tokens", [1, 8])
def test_a_token_with_nan_is_nan_and_the_others_are_not(level: int, tokens: int) -> None:
    backend = NativeBackend(1)
    trits = random_trits(70, 200)
    scale = torch.tensor([1.0])
    panels, layout = backend.lay_out_dense(pack(trits, scale).codes, 200)
    for poison in (float("nan"), float("inf"), -float("inf")):
        x = torch.randn(tokens, 200)
        x[tokens // 2, 199] = poison
        with level_in_use(level):
            y = backend.ternary_linear_fused(x, None, 1e-5, panels, layout, scale, None, 70, 200)
        bad = torch.zeros(tokens, dtype=torch.bool)
        bad[tokens // 2] = True
        assert torch.equal(y.isnan().all(dim=1), bad)
        assert torch.equal(y.isnan().any(dim=1), bad)


def test_the_extension_names_the_first_bad_token() -> None:
    x = torch.randn(9, 32)
    x[4, 31] = float("nan")
    x[7, 0] = float("inf")
    panels = torch.full((extension.panels_bytes(64, 32),), 0x55, dtype=torch.uint8)
    output, scale = torch.empty(9, 64), torch.ones(1)

    def first_bad(x: Tensor) -> int:
        addresses = panels.data_ptr(), scale.data_ptr(), False, 0, output.data_ptr()
        bad = extension.dense_linear_fused(
            x.data_ptr(), 0, 0, 0.0, x.shape[0], *addresses, 64, 32, 2
        )
        assert isinstance(bad, int)
        return bad

    assert first_bad(x) == 4
    assert first_bad(x[7:]) == 0
    assert first_bad(x[:1]) == -1


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (64, 16), (65, 17), (100, 200), (130, 384)])
def test_panels_hold_every_weight_where_the_layout_says(rows: int, columns: int) -> None:
    backend = NativeBackend(1)
    trits = random_trits(rows, columns)
    codes = pack(trits, 1.0).codes
    panels, layout = backend.lay_out_dense(codes, columns)
    assert layout == "panels"
    groups = -(-columns // 16)
    blocks = panels.view(-1, groups, 4, 16, 4)  # panel, group, line, lane, byte
    fields = torch.stack([(blocks >> (2 * field)) & 3 for field in range(4)], dim=1)
    # panel, field, lane | group, line, byte: the row and the column of a weight.
    weights = fields.permute(0, 1, 4, 2, 3, 5).reshape(-1, groups * 16).to(torch.int8) - 1
    assert torch.equal(weights[:rows, :columns], trits)
    assert not weights[rows:].any()
    assert not weights[:, columns:].any()
    assert torch.equal(backend.stored_codes(panels, rows, columns), codes)


def test_placed_consecutively_weights_are_equal_and_adjacent() -> None:
    backend = NativeBackend(1)
    shapes = [(64, 512), (100, 70), (512, 64)]
    trits = [random_trits(*shape) for shape in shapes]
    laid_out = [backend.lay_out_dense(pack(t, 1.0).codes, t.shape[1])[0] for t in trits]
    placed = place_consecutively(laid_out)
    for before, after in zip(laid_out, placed, strict=True):
        assert torch.equal(before, after)
        assert after.data_ptr() % 64 == 0
    for first, second in zip(placed, placed[1:], strict=False):
        assert second.data_ptr() == first.data_ptr() + first.nbytes
    q = activations_of(random_q(2, 70))
    y = backend.ternary_linear(q, placed[1], "panels", torch.ones(1), None, 100, 70)
    assert torch.equal(y, expected(q, trits[1], torch.ones(1)))


def test_calls_from_several_python_threads_do_not_mix() -> None:
    backend = NativeBackend(2)
    cases = [
        (random_q(tokens, 1000, tokens), random_trits(700, 1000, tokens))
        for tokens in (1, 5, 40, 64)
    ]
    failures: list[int] = []

    def work(q: Tensor, trits: Tensor) -> None:
        for _ in range(10):
            output, wanted = multiply(backend, q, trits)
            if not torch.equal(output, wanted):
                failures.append(len(q))

    workers = [threading.Thread(target=work, args=case) for case in cases]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_arguments_are_refused_by_name() -> None:
    backend = NativeBackend(1)
    trits = random_trits(10, 64)
    panels, layout = backend.lay_out_dense(pack(trits, 1.0).codes, 64)
    good = activations_of(random_q(2, 64))
    one = torch.ones(1)
    with pytest.raises(KernelInputError, match="layout: rows"):
        backend.ternary_linear(good, panels, "rows", one, None, 10, 64)
    with pytest.raises(KernelInputError, match="activations.q"):
        backend.ternary_linear(good, panels, layout, one, None, 10, 200)
    with pytest.raises(KernelInputError, match="codes"):
        backend.ternary_linear(good, panels[:-1], layout, one, None, 10, 64)
    with pytest.raises(KernelInputError, match="weight_scale"):
        backend.ternary_linear(good, panels, layout, torch.ones(3), None, 10, 64)
    with pytest.raises(KernelInputError, match="residual"):
        backend.ternary_linear(good, panels, layout, one, torch.zeros(3), 10, 64)
    with pytest.raises(KernelInputError, match="residual: torch.float64"):
        backend.ternary_linear(good, panels, layout, one, torch.zeros(2, 10).double(), 10, 64)
    broken = good._replace(scale=good.scale[:1])
    with pytest.raises(KernelInputError, match="activations.scale"):
        backend.ternary_linear(broken, panels, layout, one, None, 10, 64)
    with pytest.raises(KernelInputError, match="device meta"):
        backend.ternary_linear(good, panels.to("meta"), layout, one, None, 10, 64)
    with pytest.raises(KernelInputError, match="x: 63 columns"):
        backend.ternary_linear_fused(
            torch.zeros(1, 63), None, 1e-5, panels, layout, one, None, 10, 64
        )
    with pytest.raises(KernelInputError, match="columns"):
        backend.lay_out_dense(torch.zeros(1, 32, dtype=torch.uint8), MOST_COLUMNS + 1)


def test_strided_tensors_are_copied_not_misread() -> None:
    backend = NativeBackend(1)
    trits = random_trits(40, 128)
    codes = pack(trits, 1.0).codes
    panels, layout = backend.lay_out_dense(codes.T.contiguous().T, 128)
    x = torch.randn(128, 3).T
    residual = torch.randn(40, 3).T
    scale = torch.rand(80)[::2]
    y = backend.ternary_linear_fused(x, None, 1e-5, panels, layout, scale, residual, 40, 128)
    wanted = expected(backend.quantize_activations(x.contiguous()), trits, scale, residual)
    assert torch.equal(y, wanted)


def test_levels_are_forced_and_released() -> None:
    best = extension.best_isa()
    for level in LEVELS:
        assert extension.force_isa(level)
        assert extension.isa() == level
    assert extension.force_isa(-1)
    assert extension.isa() == best == max(LEVELS)
    assert not extension.force_isa(5)
    assert not extension.force_isa(-2)
    for level in set(range(5)) - set(LEVELS):
        assert not extension.force_isa(level)
    assert extension.isa() == best
