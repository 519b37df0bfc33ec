from __future__ import annotations

import math

import pytest
import torch
from agentforge_kernels import reference
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.native_backend import NativeBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.native_cases import LEVEL_NAMES, LEVELS, level_in_use

all_levels = pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)
all_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"]
)
COLUMNS = [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 200, 1000, 4096, 5001]


def assert_equals_reference(level: int, x: Tensor, threads: int = 1) -> None:
    columns = x.shape[1]
    with level_in_use(level):
        got = NativeBackend(threads).quantize_activations(x)
    q, scale, total = reference.quantize_activations(x)
    assert torch.equal(got.q[:, :columns], q)
    assert torch.equal(got.scale, scale)
    assert torch.equal(got.sum, total)
    assert got.q.shape[1] % 128 == 0
    assert not got.q[:, columns:].any()


@all_levels
@all_dtypes
@pytest.mark.parametrize("columns", COLUMNS)
def test_random_values_equal_the_reference(level: int, dtype: torch.dtype, columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    for spread in (1.0, 1e-3, 1e4):
        assert_equals_reference(
            level, (torch.randn(3, columns, generator=generator) * spread).to(dtype)
        )


@all_levels
def test_a_million_values_equal_the_reference(level: int) -> None:
    # The inverse has two roundings; with one, about one value in a million rounds to another q.
    generator = torch.Generator().manual_seed(5)
    for _ in range(2 if level == 0 else 8):
        assert_equals_reference(level, torch.randn(256, 2048, generator=generator), threads=2)


@all_levels
@all_dtypes
def test_ties_go_to_the_even_step(level: int, dtype: torch.dtype) -> None:
    halves = torch.arange(-126.5, 127.0, 1.0)
    x = torch.cat([torch.tensor([127.0]), halves]).to(dtype)
    assert_equals_reference(level, x[None])


@all_levels
def test_extreme_magnitudes_equal_the_reference(level: int) -> None:
    tiny = torch.finfo(torch.float32).smallest_normal
    rows = [
        [0.0] * 70,
        [3.4e38, -3.4e38] * 35,
        [tiny, -tiny] * 35,
        [1e-45] * 70,  # the smallest subnormal
        [1e-5, -1e-5] * 35,
        [9.9e-6] * 70,
        [-0.0] * 70,
        [1.0] + [1e-30] * 69,
    ]
    assert_equals_reference(level, torch.tensor(rows))
    halves = torch.tensor([[65504.0, 6e-8, -65504.0], [6e-8, 6e-8, 0.0]], dtype=torch.float16)
    assert_equals_reference(level, halves)


@settings(max_examples=80, deadline=None)
@given(
    level=st.sampled_from(LEVELS),
    values=st.lists(
        st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=200
    ),
)
def test_any_finite_values_equal_the_reference(level: int, values: list[float]) -> None:
    assert_equals_reference(level, torch.tensor([values]))


@all_levels
@all_dtypes
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_token_that_is_not_finite_gets_scale_nan(
    level: int, dtype: torch.dtype, poison: float
) -> None:
    for columns in (1, 16, 65, 300):
        for position in {0, columns // 2, columns - 1}:
            x = torch.randn(3, columns).to(dtype)
            x[1, position] = poison
            for norm_weight in (None, torch.ones(columns)):
                with level_in_use(level):
                    scale = NativeBackend(1).quantize_activations(x, norm_weight, 1e-5).scale
                assert scale.isnan().tolist() == [False, True, False]


@all_levels
@all_dtypes
@pytest.mark.parametrize("columns", [1, 16, 65, 512, 1500])
def test_the_norm_is_within_one_step_of_the_reference(
    level: int, dtype: torch.dtype, columns: int
) -> None:
    generator = torch.Generator().manual_seed(columns)
    x = (torch.randn(6, columns, generator=generator) * 3).to(dtype)
    weight = torch.randn(columns, generator=generator)
    with level_in_use(level):
        got = NativeBackend(2).quantize_activations(x, weight, 1e-6)
    q, scale, _ = reference.quantize_activations(x, weight, 1e-6)
    assert (got.q[:, :columns].int() - q.int()).abs().max() <= 1
    assert torch.allclose(got.scale, scale, rtol=1e-6, atol=0)
    assert torch.equal(got.sum, got.q.sum(dim=1, dtype=torch.int32))


@all_levels
def test_the_norm_of_extreme_rows_neither_overflows_nor_vanishes(level: int) -> None:
    x = torch.stack([torch.full((100,), value) for value in (3e38, 1e30, 1e-20, 1e-38, 1e-44, 1.0)])
    x[:, ::3] *= -0.5
    weight = torch.linspace(0.5, 2.0, 100)
    for epsilon in (0.0, 1e-5):
        with level_in_use(level):
            got = NativeBackend(1).quantize_activations(x, weight, epsilon)
        q, scale, _ = reference.quantize_activations(x, weight, epsilon)
        assert (got.q[:, :100].int() - q.int()).abs().max() <= 1
        assert torch.allclose(got.scale, scale, rtol=1e-6, atol=0)


@all_levels
def test_a_norm_without_epsilon_of_a_zero_row_is_reported(level: int) -> None:
    with level_in_use(level):
        scale = NativeBackend(1).quantize_activations(torch.zeros(1, 50), torch.ones(50), 0.0).scale
    assert scale.isnan().all()  # 0 / 0, as in the reference


def test_no_tokens_give_empty_activations() -> None:
    got = NativeBackend(2).quantize_activations(torch.zeros(0, 40))
    assert got.q.shape == (0, 128)
    assert got.scale.shape == got.sum.shape == (0,)


def test_unsuitable_input_is_refused_by_name() -> None:
    backend = NativeBackend(1)
    with pytest.raises(KernelInputError, match="x: torch.float64"):
        backend.quantize_activations(torch.zeros(1, 4).double())
    with pytest.raises(KernelInputError, match="x"):
        backend.quantize_activations(torch.zeros(4))
    with pytest.raises(KernelInputError, match="norm_weight"):
        backend.quantize_activations(torch.zeros(1, 4), torch.ones(5))
