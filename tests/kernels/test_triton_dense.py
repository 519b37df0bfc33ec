"""Dense Triton kernels and their backend, in Triton's interpreter: no GPU is needed.

Every shipped configuration runs once as a case; the backend's wrappers, which choose kernel and
configuration, are held against the reference over shapes, families and extremes.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
import triton
import triton.language as tl
from agentforge_kernels.backend import Activations
from agentforge_kernels.errors import BackendUnavailableError, KernelInputError
from agentforge_kernels.format import PackedTernary, pack, padded
from agentforge_kernels.reference_backend import ReferenceBackend
from agentforge_kernels.sparse import to_block_sparse, to_columns
from agentforge_kernels.triton import launch, user_configs
from agentforge_kernels.triton.backend import TritonBackend
from agentforge_kernels.triton.configs import GemmConfig, GemvConfig
from agentforge_kernels.triton.devices import DOT4_INSTRUCTION, FAMILIES, Family
from agentforge_kernels.triton.dot4 import dot4
from agentforge_kernels.verify.cases import KernelCase
from agentforge_kernels.verify.dense_cases import CASES
from agentforge_kernels.verify.interpreter import interpreted, run_interpreted
from agentforge_kernels.verify.quantizer_cases import expected_q
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

REFERENCE = ReferenceBackend()
CHOSEN: tuple[Family, ...] = ("turing", "ampere", "cdna")
"""A family for each way of computing: float32 or matrix units, each instruction set."""


@pytest.fixture(autouse=True)
def _only_what_is_checked_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """No configurations of whoever runs the tests."""
    monkeypatch.setenv(user_configs.PATH_VARIABLE, "/nowhere/kernels.json")


@pytest.fixture(autouse=True)
def _quiet_numpy() -> Iterator[None]:
    """The interpreter is numpy: overflow to infinity, which kernels allow for, warns there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def distinct_cases() -> Iterator[KernelCase]:
    """Cases that differ in more than warps, stages and instruction: the interpreter has none."""
    seen = set()
    for case in CASES:
        constexprs = {**case.constexprs_for(case.targets[0]), "INSTRUCTION": None}
        arguments = case.build(0)
        layout = tuple(
            value.dtype if isinstance(value, Tensor) else value for value in arguments.values()
        )
        key = (case.kernel.fn, tuple(sorted(constexprs.items(), key=str)), layout)
        if key not in seen:
            seen.add(key)
            yield case


def trits_of(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + rows * 8191 + columns)
    return torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)


def activations_of(q: Tensor) -> Activations:
    """Activations around int8 ``[tokens, columns]``."""
    stored = torch.nn.functional.pad(q, (0, padded(q.shape[1]) - q.shape[1]))
    scale = torch.linspace(0.01, 0.03, q.shape[0])
    return Activations(stored, scale, q.sum(dim=1, dtype=torch.int32))


def unaligned(tensor: Tensor) -> Tensor:
    """The same contents, one byte beyond an aligned address."""
    memory = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
    moved = memory[1:].view(tensor.shape).copy_(tensor)
    assert moved.data_ptr() % 2
    return moved


def assert_matmul_exact(
    family: Family, activations: Activations, packed: PackedTernary, residual: Tensor | None
) -> Tensor:
    """The backend's product, asserted to equal the reference's bit for bit."""
    backend = TritonBackend(family)
    with interpreted():
        codes, layout = backend.lay_out_dense(packed.codes, packed.columns)
        output = backend.ternary_linear(
            activations, codes, layout, packed.scale, residual, packed.rows, packed.columns
        )
    expected = REFERENCE.ternary_linear(
        activations, packed.codes, "rows", packed.scale, residual, packed.rows, packed.columns
    )
    assert output.dtype == torch.float32
    assert torch.equal(output, expected)
    return output


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", list(distinct_cases()), ids=lambda case: case.name)
def test_case(case: KernelCase, seed: int) -> None:
    run_interpreted(case, seed)


@pytest.mark.parametrize("target", ["gfx942", "gfx1100"])
def test_cases_with_amd_instructions(target: str) -> None:
    ran = 0
    for case in CASES:
        if target in case.targets and case.name.startswith(("gemv_masked_8x32", "fused_float32")):
            run_interpreted(case, target=target)
            ran += 1
    assert ran >= 2


@given(
    family=st.sampled_from(FAMILIES),
    rows=st.integers(1, 40),
    columns=st.integers(1, 700),
    tokens=st.sampled_from([1, 1, 2, 3, 5, 8, 9, 17]),
    scale_per_row=st.booleans(),
    with_residual=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15, deadline=None)
def test_matmul_equals_the_reference(
    family: Family,
    rows: int,
    columns: int,
    tokens: int,
    scale_per_row: bool,
    with_residual: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-128, 128, (tokens, columns), generator=generator, dtype=torch.int8)
    scale = torch.rand(rows if scale_per_row else 1, generator=generator) + 0.01
    residual = torch.randn(tokens, rows, generator=generator) if with_residual else None
    packed = pack(trits_of(rows, columns, seed), scale)
    assert_matmul_exact(family, activations_of(q), packed, residual)


@pytest.mark.parametrize("family", CHOSEN)
@pytest.mark.parametrize("columns", [1, 127, 129, 16384])
def test_extreme_sums_are_exact(family: Family, columns: int) -> None:
    weights = torch.ones(3, columns, dtype=torch.int8)
    weights[1] = -1
    weights[2] = 0
    packed = pack(weights, 0.5)
    for value in (127, -127, -128, 0):
        for tokens in (1, 2, 9) if columns < 1000 else (1, 2):
            q = torch.full((tokens, columns), value, dtype=torch.int8)
            output = assert_matmul_exact(family, activations_of(q), packed, None)
            assert not output[:, 2].any()


def test_many_rows_take_two_rows_a_thread() -> None:
    backend = TritonBackend("ampere")
    config = launch.lookup("gemv", "ampere", 8192, 2048, 1)
    assert isinstance(config, GemvConfig)
    assert config.rows_per_thread == 2
    # The wrapper with that configuration, but fewer rows than it is chosen for.
    packed = pack(trits_of(21, 2100), 0.25)
    q = torch.randint(-127, 128, (1, 2100), dtype=torch.int8)
    activations = activations_of(q)
    with interpreted():
        codes, _ = backend.lay_out_dense(packed.codes, 2100)
        output = launch.multiply_one(activations, codes, packed.scale, None, "ampere", config)
    expected = REFERENCE.ternary_linear(
        activations, packed.codes, "rows", packed.scale, None, 21, 2100
    )
    assert torch.equal(output, expected)


def test_split_columns_are_exact() -> None:
    config = launch.lookup("gemv", "hopper", 200, 16384, 1)
    assert isinstance(config, GemvConfig)
    assert config.split == 4
    rows, columns = 6, 9000
    packed = pack(trits_of(rows, columns), torch.rand(rows) + 0.1)
    q = torch.randint(-128, 128, (1, columns), dtype=torch.int8)
    assert_matmul_exact("hopper", activations_of(q), packed, torch.randn(1, rows))


def test_float32_sums_go_over_to_integers_in_time() -> None:
    """An odd sum beyond 2^24, which float32 does not hold: 66,560 columns of 254, one of 127."""
    columns = 520 * 128
    weights = torch.ones(2, columns, dtype=torch.int8)
    weights[0, 0] = 0
    packed = pack(weights, 1.0)
    activations = activations_of(torch.full((1, columns), 127, dtype=torch.int8))
    config = GemmConfig(4, 16, 32, num_stages=1, block_columns=32)
    with interpreted():
        output = launch.multiply_many(
            activations, packed.codes, packed.scale, None, "turing", config
        )
    exact = torch.tensor([[127 * (columns - 1), 127 * columns]], dtype=torch.int32)
    assert torch.equal(output, exact.float() * activations.scale[:, None])


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_unaligned_tensors(tokens: int) -> None:
    packed = pack(trits_of(10, 300), 0.5)
    activations = activations_of(torch.randint(-127, 128, (tokens, 300), dtype=torch.int8))
    moved = Activations(unaligned(activations.q), activations.scale, activations.sum)
    backend = TritonBackend("ampere")
    with interpreted():
        codes, layout = backend.lay_out_dense(unaligned(packed.codes), 300)
        assert codes.data_ptr() % 16 == 0
        output = backend.ternary_linear(moved, codes, layout, packed.scale, None, 10, 300)
    expected = REFERENCE.ternary_linear(
        activations, packed.codes, "rows", packed.scale, None, 10, 300
    )
    assert torch.equal(output, expected)


@given(
    columns=st.integers(1, 1500),
    tokens=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    magnitude=st.sampled_from([1.0, 1e-4, 1e-7, 1e4]),
    seed=st.integers(0, 1000),
)
# torch's 127 / x is not the rounded quotient: here it decides between 13 and 14.
@example(columns=62, tokens=2, dtype=torch.float16, magnitude=1e-4, seed=1)
@settings(max_examples=10, deadline=None)
def test_quantiser(
    columns: int, tokens: int, dtype: torch.dtype, magnitude: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(tokens, columns, generator=generator) * magnitude).to(dtype)
    norm_weight = torch.rand(columns, generator=generator) + 0.5
    backend = TritonBackend("turing")
    with interpreted():
        plain = backend.quantize_activations(x)
        normed = backend.quantize_activations(x, norm_weight, 1e-5)
    for seen, expected in zip(plain, REFERENCE.quantize_activations(x), strict=True):
        assert torch.equal(seen, expected)
    expected = REFERENCE.quantize_activations(x, norm_weight, 1e-5)
    assert (normed.q.int() - expected.q.int()).abs().max() <= 1
    torch.testing.assert_close(normed.scale, expected.scale, rtol=1e-6, atol=0.0)
    assert torch.equal(normed.sum, normed.q.sum(dim=1, dtype=torch.int32))
    assert not normed.q[:, columns:].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_not_finite_gives_nan(bad: float) -> None:
    x = torch.randn(3, 200)
    x[1, 137] = bad
    packed = pack(trits_of(5, 200), 0.5)
    backend = TritonBackend("ampere")
    for norm_weight in (None, torch.ones(200)):
        with interpreted():
            activations = backend.quantize_activations(x, norm_weight, 1e-5)
            output = backend.ternary_linear(
                activations, packed.codes, "rows", packed.scale, None, 5, 200
            )
            fused = backend.ternary_linear_fused(
                x[1:2], norm_weight, 1e-5, packed.codes, "rows", packed.scale, None, 5, 200
            )
        assert activations.scale.isnan().tolist() == [False, True, False]
        assert output.isnan().all(dim=1).tolist() == [False, True, False]
        assert fused.isnan().all()


def test_nothing_to_divide_by_gives_nan() -> None:
    x = torch.zeros(2, 100)
    x[0] = 1.0
    with interpreted():
        activations = TritonBackend("turing").quantize_activations(x, torch.ones(100), 0.0)
    assert activations.scale.isnan().tolist() == [False, True]
    assert activations.q[1].count_nonzero() == 0


@pytest.mark.parametrize("columns", [100, 1024, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_equals_quantise_then_multiply(columns: int, dtype: torch.dtype) -> None:
    rows = 19
    x, residual = torch.randn(1, columns).to(dtype), torch.randn(1, rows)
    packed = pack(trits_of(rows, columns), torch.rand(rows) + 0.1)
    backend = TritonBackend("turing")
    matrix = (packed.codes, "rows", packed.scale, residual, rows, columns)
    for norm_weight in (None, torch.rand(columns) + 0.5):
        with interpreted():
            activations = backend.quantize_activations(x, norm_weight, 1e-5)
            apart = backend.ternary_linear(activations, *matrix)
            fused = backend.ternary_linear_fused(x, norm_weight, 1e-5, *matrix)
        if norm_weight is None:
            assert torch.equal(fused, apart)
        else:
            # The same q; the scale's last bit depends on the order in which squares are added.
            assert torch.equal(activations.q[:, :columns], expected_q(x, norm_weight))
            torch.testing.assert_close(fused, apart, rtol=1e-5, atol=1e-5)


def test_fused_of_many_tokens_or_columns_is_two_steps() -> None:
    backend = TritonBackend("turing")
    for tokens, columns in ((2, 300), (1, 2100)):
        x = torch.randn(tokens, columns)
        packed = pack(trits_of(4, columns), 0.5)
        arguments = (packed.codes, "rows", packed.scale, None, 4, columns)
        with interpreted():
            output = backend.ternary_linear_fused(x, None, 1e-5, *arguments)
        assert torch.equal(output, REFERENCE.ternary_linear_fused(x, None, 1e-5, *arguments))


def test_sparse_and_int8_go_to_their_kernels() -> None:
    rows, columns = 70, 200
    backend = TritonBackend("ampere")
    trits = trits_of(rows, columns)
    trits[:64, 32:160] = 0
    packed = pack(trits, torch.rand(rows) + 0.1)
    activations = activations_of(torch.randint(-127, 128, (1, columns), dtype=torch.int8))
    residual = torch.randn(1, rows)
    tiles, lines = to_block_sparse(packed), to_columns(packed)
    weight = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    tail = (packed.scale, residual, rows, columns)
    with interpreted():
        block = backend.ternary_linear_block_sparse(
            activations, tiles.tiles, tiles.index, tiles.start, *tail
        )
        codes, layout = backend.lay_out_columns(lines.codes, rows)
        sparse = backend.ternary_linear_activation_sparse(activations, codes, layout, *tail)
        head, head_layout = backend.lay_out_int8(weight)
        int8 = backend.int8_linear(activations, head, head_layout, *tail)
    dense = REFERENCE.ternary_linear(activations, packed.codes, "rows", *tail)
    assert torch.equal(block, dense)
    assert torch.equal(sparse, dense)
    assert torch.equal(int8, REFERENCE.int8_linear(activations, weight, "int8", *tail))


def test_no_tokens() -> None:
    backend = TritonBackend("ampere")
    packed = pack(trits_of(5, 200), 0.5)
    with interpreted():
        activations = backend.quantize_activations(torch.empty(0, 200))
        output = backend.ternary_linear(
            activations, packed.codes, "rows", packed.scale, None, 5, 200
        )
    assert activations.q.shape == (0, 256)
    assert output.shape == (0, 5)


def test_weights_that_do_not_fit_are_refused() -> None:
    backend = TritonBackend("ampere")
    packed = pack(trits_of(5, 200), 0.5)
    activations = activations_of(torch.zeros(1, 300, dtype=torch.int8))
    with pytest.raises(KernelInputError, match="384 columns; allowed: 256"):
        backend.ternary_linear(activations, packed.codes, "rows", packed.scale, None, 5, 200)
    with pytest.raises(KernelInputError, match="panels; allowed: rows"):
        backend.ternary_linear(activations, packed.codes, "panels", packed.scale, None, 5, 200)


def test_the_cpu_is_refused_without_the_interpreter() -> None:
    with pytest.raises(BackendUnavailableError, match="device cpu"):
        TritonBackend().quantize_activations(torch.zeros(1, 8))


@triton.jit
def dot4_of_each(left, right, total, output, INSTRUCTION: tl.constexpr):
    position = tl.arange(0, 64)
    result = dot4(
        tl.load(left + position),
        tl.load(right + position),
        tl.load(total + position),
        INSTRUCTION,
    )
    tl.store(output + position, result)


@pytest.mark.parametrize("instruction", [*sorted(set(DOT4_INSTRUCTION.values())), "portable"])
def test_dot4(instruction: str) -> None:
    left, right = (torch.randint(-128, 128, (256,), dtype=torch.int8) for _ in range(2))
    left[:4] = right[:4] = -128
    total = torch.randint(-(2**31), 2**31 - 1, (64,), dtype=torch.int64).to(torch.int32)
    output = torch.empty(64, dtype=torch.int32)
    with interpreted():
        dot4_of_each[(1,)](
            left.view(torch.int32), right.view(torch.int32), total, output, instruction
        )
    exact = (left.long() * right.long()).view(64, 4).sum(dim=1) + total.long()
    assert torch.equal(output, ((exact + 2**31) % 2**32 - 2**31).to(torch.int32))


def test_import_needs_neither_driver_nor_triton_at_first() -> None:
    script = """
import sys, pkgutil, importlib
import torch
before = "triton" in sys.modules
import agentforge_kernels.triton as package
assert before or "triton" not in sys.modules, "imported before it is needed"
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"{package.__name__}.{module.name}")
import triton
assert triton.__file__ != package.__file__, "shadowed"
from triton.runtime import driver
assert driver._active is None, "a driver was asked for"
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "fine\n", done.stderr
