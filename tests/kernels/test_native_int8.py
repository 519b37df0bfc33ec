from __future__ import annotations

import pytest
import torch
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.int8 import MOST_COLUMNS
from agentforge_kernels.native_backend import NativeBackend
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
    unaligned,
)

all_levels = pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)

SHAPES = [(1, 1), (15, 3), (16, 4), (64, 16), (65, 17), (100, 70), (130, 1500), (300, 512)]
TOKENS = [1, 2, 3, 4, 5, 6, 7, 12, 13, 33]


def random_int8(first: int, second: int, seed: int = 0) -> Tensor:
    """All 256 values, -128 among them."""
    generator = torch.Generator().manual_seed(seed + first * 8191 + second)
    return torch.randint(-128, 128, (first, second), generator=generator, dtype=torch.int8)


def check(
    q: Tensor, weight: Tensor, scale: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Compare every level and one and two threads with the reference; returns the output."""
    scale = torch.ones(weight.shape[0]) if scale is None else scale
    lanes, layout = NativeBackend(1).lay_out_int8(weight)
    activations = activations_of(q)
    wanted = expected(activations, weight, scale, residual)
    for level in LEVELS:
        with level_in_use(level):
            for threads in (1, 2):
                output = NativeBackend(threads).int8_linear(
                    activations, lanes, layout, scale, residual, *weight.shape
                )
                assert torch.equal(output, wanted), (extension.isa_name(level), threads, len(q))
    return wanted


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_token_count_equals_the_reference(rows: int, columns: int) -> None:
    weight = random_int8(rows, columns)
    generator = torch.Generator().manual_seed(7)
    for tokens in TOKENS:
        scale = torch.rand(1 if tokens == 5 else rows, generator=generator) + 0.1
        residual = torch.randn(tokens, rows, generator=generator) if tokens % 3 else None
        check(random_int8(tokens, columns, 1), weight, scale, residual)


@pytest.mark.parametrize("columns", [1, 3, 16, 17, 255, 256, 257, 1025, 16384, 65793, 65800])
def test_extreme_sums_are_exact(columns: int) -> None:
    # From 65,794 columns on, 255 * 127 each (weights raised by 128) leave 32 bits on the way.
    weight = torch.tensor([127, -127, -128, 0], dtype=torch.int8)[:, None].repeat(1, columns)
    for value in (127, -127, -128):
        for tokens in (1, 2, 6):
            output = check(torch.full((tokens, columns), value, dtype=torch.int8), weight)
            assert not output[:, 3].any()


def test_the_most_columns_allowed_are_exact() -> None:
    weight = torch.full((2, MOST_COLUMNS), -128, dtype=torch.int8)
    weight[1] = 127
    for tokens in (1, 2):
        output = check(torch.full((tokens, MOST_COLUMNS), -128, dtype=torch.int8), weight)
    assert float(output[0, 0]) > 0.0099 * 2**31  # the accumulator is 2^31 - 2^14, the scale 0.01


def test_alternating_extremes_do_not_saturate() -> None:
    columns = 4096
    q = torch.tensor([127, -128], dtype=torch.int8).repeat(columns // 2)
    pairs = ([127, -128], [-128, 127], [-128, -128], [127, 127])
    weight = torch.stack(
        [torch.tensor(pair, dtype=torch.int8).repeat(columns // 2) for pair in pairs]
    )
    for tokens in (1, 4, 5):
        check(q.repeat(tokens, 1), weight)


@all_levels
def test_unaligned_tensors_give_the_same_result(level: int) -> None:
    rows, columns = 200, 300
    weight = random_int8(rows, columns)
    scale = torch.rand(rows)
    backend = NativeBackend(2)
    lanes, layout = backend.lay_out_int8(unaligned(weight))
    with level_in_use(level):
        for tokens in (1, 3, 9):
            activations = activations_of(random_int8(tokens, columns, 1))
            residual = torch.randn(tokens, rows)
            output = backend.int8_linear(
                activations._replace(
                    q=unaligned(activations.q),
                    scale=unaligned(activations.scale),
                    sum=unaligned(activations.sum),
                ),
                unaligned(lanes),
                layout,
                unaligned(scale),
                unaligned(residual),
                rows,
                columns,
            )
            assert torch.equal(output, expected(activations, weight, scale, residual))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 400),
    tokens=st.integers(1, 20),
    extreme=st.booleans(),
    with_residual=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(
    rows: int, columns: int, tokens: int, extreme: bool, with_residual: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(rows, generator=generator)
    residual = torch.randn(tokens, rows, generator=generator) if with_residual else None
    q, weight = random_int8(tokens, columns, seed), random_int8(rows, columns, seed + 1)
    if extreme:
        q = torch.where(q < 0, -128, 127).to(torch.int8)
        weight = torch.where(weight < 0, -128, 127).to(torch.int8)
    check(q, weight, scale, residual)


@all_levels
@pytest.mark.parametrize("tokens", [1, 8])
def test_a_token_with_scale_nan_is_nan_and_the_others_are_not(level: int, tokens: int) -> None:
    backend = NativeBackend(1)
    lanes, layout = backend.lay_out_int8(random_int8(70, 200))
    activations = activations_of(random_int8(tokens, 200, 1))
    activations.scale[tokens // 2] = float("nan")
    with level_in_use(level):
        y = backend.int8_linear(activations, lanes, layout, torch.ones(70), None, 70, 200)
    bad = torch.zeros(tokens, dtype=torch.bool)
    bad[tokens // 2] = True
    assert torch.equal(y.isnan().all(dim=1), bad)
    assert torch.equal(y.isnan().any(dim=1), bad)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (64, 16), (65, 17), (100, 30)])
def test_lanes_hold_every_weight_where_the_layout_says(rows: int, columns: int) -> None:
    weight = random_int8(rows, columns)
    lanes, layout = NativeBackend(1).lay_out_int8(weight)
    assert layout == "lanes"
    assert lanes.numel() == extension.lanes_bytes(rows, columns)
    steps = -(-columns // 16) * 4
    raised = lanes.view(-1, steps, 64, 4).permute(0, 2, 1, 3).reshape(-1, 4 * steps)
    weights = (raised.to(torch.int16) - 128).to(torch.int8)
    assert torch.equal(weights[:rows, :columns], weight)
    assert not weights[rows:].any()
    assert not weights[:, columns:].any()


def test_arguments_are_refused_by_name() -> None:
    backend = NativeBackend(1)
    weight = random_int8(70, 64)
    lanes, layout = backend.lay_out_int8(weight)
    good = activations_of(random_int8(2, 64, 1))
    scale = torch.ones(70)
    multiply = backend.int8_linear
    multiply(good, lanes, layout, scale, None, 70, 64)
    with pytest.raises(KernelInputError, match="layout: int8"):
        multiply(good, weight, "int8", scale, None, 70, 64)
    with pytest.raises(KernelInputError, match="weight: .* values"):
        multiply(good, lanes[:-1], layout, scale, None, 70, 64)
    with pytest.raises(KernelInputError, match="weight: torch.int8"):
        multiply(good, lanes.view(torch.int8), layout, scale, None, 70, 64)
    with pytest.raises(KernelInputError, match=r"activations\.q"):
        multiply(good, lanes, layout, scale, None, 70, 200)
    with pytest.raises(KernelInputError, match="weight_scale: 69"):
        multiply(good, lanes, layout, scale[:69], None, 70, 64)
    with pytest.raises(KernelInputError, match="residual"):
        multiply(good, lanes, layout, scale, torch.zeros(2, 69), 70, 64)
    with pytest.raises(KernelInputError, match="rows: 0"):
        multiply(good, lanes[:0], layout, scale[:1], None, 0, 64)
    with pytest.raises(KernelInputError, match="weight: shape"):
        backend.lay_out_int8(weight.flatten())
    with pytest.raises(KernelInputError, match="weight: torch.float32"):
        backend.lay_out_int8(weight.float())
    too_wide = torch.zeros(1, dtype=torch.int8).expand(1, MOST_COLUMNS + 1)
    with pytest.raises(KernelInputError, match="columns: 131072; allowed: 1 to 131071"):
        backend.lay_out_int8(too_wide)
    with pytest.raises(KernelInputError, match="columns: 131072"):
        multiply(activations_of(too_wide), lanes, layout, scale, None, 70, MOST_COLUMNS + 1)


def test_no_tokens_give_an_empty_result() -> None:
    assert check(random_int8(0, 64), random_int8(5, 64)).shape == (0, 5)
