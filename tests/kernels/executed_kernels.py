# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Small kernels for testing the interpreter context and the PTX executor, each with an oracle."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from agentforge_kernels import reference
from agentforge_kernels.triton.dot4 import dot4
from agentforge_kernels.verify.cases import Arguments, KernelCase
from agentforge_kernels.verify.targets import EXECUTED, SM80_AND_NEWER

ROWS, WORDS = 8, 256
"""Of the matvec's small launch; a word holds four int8."""


@triton.jit
def byte_gemv(q, weights, output, row_words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Products of int8 vectors, a warp a row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    word = tl.arange(0, WORDS)[None, :] + tl.zeros((ROWS, 1), tl.int32)
    total = tl.zeros((ROWS, WORDS), tl.int32)
    for step in range(0, row_words, WORDS):
        left = tl.load(q + step + word)
        right = tl.load(weights + row * row_words + step + word)
        total = dot4(left, right, total, "dp4a")
    tl.store(output + tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.sum(total, 1))


@triton.jit
def scaled_root(x, epsilon):
    """A device function."""
    return 1.0 / tl.sqrt(x + epsilon)


@triton.jit
def norm_quantise(x, weight, q, scale, columns, epsilon, BLOCK: tl.constexpr):
    """RMSNorm and absmax int8 of one row a program: two reductions over four warps."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    values = tl.load(x + row * columns + column, mask=inside, other=0.0)
    gain = tl.load(weight + column, mask=inside, other=0.0)
    values = values * scaled_root(tl.sum(values * values, 0) / columns, epsilon) * gain
    largest = tl.maximum(tl.max(tl.abs(values), 0), 1e-5)
    scaled = values * (127.0 / largest)
    # Adding and subtracting 1.5 * 2^23 rounds to the nearest whole number, ties to even.
    rounded = (scaled + 12582912.0) - 12582912.0
    tl.store(q + row * columns + column, rounded.to(tl.int8), mask=inside)
    tl.store(scale + row, largest / 127.0)


@triton.jit
def int8_product(a, b, output, steps, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    """A matrix product through shared memory: cp.async, ldmatrix, mma.sync."""
    i = tl.arange(0, SIZE)
    k = tl.arange(0, DEPTH)
    columns = steps * DEPTH
    total = tl.zeros((SIZE, SIZE), tl.int32)
    for step in range(0, steps):
        left = tl.load(a + i[:, None] * columns + k[None, :] + step * DEPTH)
        right = tl.load(b + i[None, :] * columns + k[:, None] + step * DEPTH)
        total = tl.dot(left, right, total, out_dtype=tl.int32)
    tl.store(output + i[:, None] * SIZE + i[None, :], total)


@triton.jit
def stray_store(x, output, count, BLOCK: tl.constexpr):
    """Forgets its mask: the last block writes beyond the end."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(output + place, tl.load(x + place, mask=place < count, other=0))


@triton.jit
def unknown_assembly(x, output, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    value = tl.inline_asm_elementwise(
        "brev.b32 $0, $1;", "=r,r", [tl.load(x + place)], dtype=tl.int32, is_pure=True, pack=1
    )
    tl.store(output + place, value)


def equal(got: torch.Tensor, want: torch.Tensor) -> None:
    """Same dtype and values, to the bit."""
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def random_int8(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)


def _gemv_arguments(seed: int) -> Arguments:
    return {
        "q": random_int8((WORDS * 4,), seed).view(torch.int32),
        "weights": random_int8((ROWS, WORDS * 4), seed + 1).view(torch.int32),
        "output": torch.zeros(ROWS, dtype=torch.int32),
        "row_words": WORDS,
    }


def _check_gemv(before: Arguments, after: Arguments) -> None:
    q, weights = (before[name].view(torch.int8).int() for name in ("q", "weights"))
    equal(after["output"], weights @ q)


GEMV = KernelCase(
    name="test_byte_gemv",
    kernel=byte_gemv,
    constexprs={"ROWS": 4, "WORDS": 128},
    aligned=frozenset({"q", "weights", "output", "row_words"}),
    grid=(2, 1, 1),
    build=_gemv_arguments,
    check=_check_gemv,
    targets=EXECUTED,
)


def _norm_arguments(seed: int) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(3, 500, generator=generator) * 3,
        "weight": torch.rand(500, generator=generator) + 0.5,
        "q": torch.zeros(3, 500, dtype=torch.int8),
        "scale": torch.zeros(3),
        "columns": 500,
        "epsilon": 1e-5,
    }


def _check_norm(before: Arguments, after: Arguments) -> None:
    q, scale, _ = reference.quantize_activations(before["x"], before["weight"], 1e-5)
    assert (after["q"].int() - q.int()).abs().max() <= 1
    torch.testing.assert_close(after["scale"], scale, rtol=1e-6, atol=0)


NORM = KernelCase(
    name="test_norm_quantise",
    kernel=norm_quantise,
    constexprs={"BLOCK": 512},
    aligned=frozenset({"x", "weight", "q", "scale"}),
    grid=(3, 1, 1),
    build=_norm_arguments,
    check=_check_norm,
    targets=EXECUTED,
)


def product_case(size: int = 32, num_warps: int = 4, num_stages: int = 3) -> KernelCase:
    """``a @ b.T`` of int8 matrices ``[size, 128]``."""

    def build(seed: int) -> Arguments:
        return {
            "a": random_int8((size, 128), seed),
            "b": random_int8((size, 128), seed + 1),
            "output": torch.zeros(size, size, dtype=torch.int32),
            "steps": 2,
        }

    def check(before: Arguments, after: Arguments) -> None:
        equal(after["output"], before["a"].int() @ before["b"].int().T)

    return KernelCase(
        name=f"test_product_{size}",
        kernel=int8_product,
        constexprs={"SIZE": size, "DEPTH": 64},
        aligned=frozenset({"a", "b", "output"}),
        grid=(1, 1, 1),
        build=build,
        check=check,
        targets=SM80_AND_NEWER,
        num_warps=num_warps,
        num_stages=num_stages,
    )


STRAY_COUNT = 200


def _check_copy(before: Arguments, after: Arguments) -> None:
    equal(after["output"], before["x"])


STRAY = KernelCase(
    name="test_stray_store",
    kernel=stray_store,
    constexprs={"BLOCK": 128},
    aligned=frozenset({"x", "output"}),
    grid=(2, 1, 1),
    build=lambda seed: {
        "x": random_int8((STRAY_COUNT,), seed),
        "output": torch.zeros(STRAY_COUNT, dtype=torch.int8),
        "count": STRAY_COUNT,
    },
    check=_check_copy,
    targets=EXECUTED,
)
