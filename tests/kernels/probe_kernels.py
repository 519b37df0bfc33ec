# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Kernels to test the static verification with: one meets every gate, the others do not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from agentforge_kernels.triton.dot4 import dot4
from agentforge_kernels.verify.cases import Arguments, KernelCase, Role, Work
from agentforge_kernels.verify.report import StaticReport, report_cases
from agentforge_kernels.verify.targets import ALL

ROWS, WORDS = 8, 256
"""Of the small launch; a word holds 16 weights."""


@triton.jit
def good_gemv(
    q, codes, output, row_words, ROWS: tl.constexpr, WORDS: tl.constexpr, INSTRUCTION: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    word = tl.arange(0, WORDS)[None, :]
    first = (word // 8) * 32 + word % 8 + tl.zeros((ROWS, 1), tl.int32)
    total = tl.zeros((ROWS, WORDS), tl.int32)
    for step in range(0, row_words, WORDS):
        packed = tl.load(codes + row * row_words + step + word)
        for plane in tl.static_range(4):
            activations = tl.load(q + first + step * 4 + 8 * plane)
            total = dot4(activations, (packed >> (2 * plane)) & 0x03030303, total, INSTRUCTION)
    tl.store(output + tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.sum(total, 1))


@triton.jit
def doubled_products_gemv(
    q, codes, output, row_words, ROWS: tl.constexpr, WORDS: tl.constexpr, INSTRUCTION: tl.constexpr
):
    # Every product is taken twice, the second time with activations that no compiler can foresee.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    word = tl.arange(0, WORDS)[None, :]
    first = (word // 8) * 32 + word % 8 + tl.zeros((ROWS, 1), tl.int32)
    total = tl.zeros((ROWS, WORDS), tl.int32)
    for step in range(0, row_words, WORDS):
        packed = tl.load(codes + row * row_words + step + word)
        for plane in tl.static_range(4):
            activations = tl.load(q + first + step * 4 + 8 * plane)
            fields = (packed >> (2 * plane)) & 0x03030303
            total = dot4(activations, fields, total, INSTRUCTION)
            total = dot4(activations ^ row_words, fields, total, INSTRUCTION)
    tl.store(output + tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.sum(total, 1))


@triton.jit
def shared_memory_gemv(
    q, codes, output, row_words, ROWS: tl.constexpr, WORDS: tl.constexpr, INSTRUCTION: tl.constexpr
):
    # One-dimensional activation pointers: their layout differs from that of the codes.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    word = tl.arange(0, WORDS)
    first = (word // 8) * 32 + word % 8
    total = tl.zeros((ROWS, WORDS), tl.int32)
    for step in range(0, row_words, WORDS):
        packed = tl.load(codes + row * row_words + step + word[None, :])
        for plane in tl.static_range(4):
            activations = tl.load(q + first + step * 4 + 8 * plane)
            both = tl.broadcast_to(activations[None, :], (ROWS, WORDS))
            total = dot4(both, (packed >> (2 * plane)) & 0x03030303, total, INSTRUCTION)
    tl.store(output + tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.sum(total, 1))


@triton.jit
def byte_gemv(q, codes, output, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :] + tl.zeros((ROWS, 1), tl.int32)
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for step in range(0, columns, COLUMNS):
        # An odd stride: nothing is known to be aligned, so every byte is loaded by itself.
        code = tl.load(codes + row * columns + step + column).to(tl.int32)
        total += tl.load(q + step + column).to(tl.int32) * code
    tl.store(output + tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.sum(total, 1))


@triton.jit
def float_gemm(a, b, output, steps, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    # Half precision operands: matrix instructions of the wrong kind, or none, and many registers.
    i = tl.arange(0, SIZE)
    k = tl.arange(0, DEPTH)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for step in range(0, steps):
        left = tl.load(a + i[:, None] * DEPTH + k[None, :] + step * DEPTH)
        right = tl.load(b + k[:, None] * SIZE + i[None, :] + step * DEPTH)
        total = tl.dot(left, right, total)
    tl.store(output + i[:, None] * SIZE + i[None, :], total)


@triton.jit
def int8_gemm(a, b, output, steps, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    i = tl.arange(0, SIZE)
    k = tl.arange(0, DEPTH)
    total = tl.zeros((SIZE, SIZE), tl.int32)
    for step in range(0, steps):
        left = tl.load(a + i[:, None] * DEPTH + k[None, :] + step * DEPTH)
        right = tl.load(b + k[:, None] * SIZE + i[None, :] + step * DEPTH)
        total = tl.dot(left, right, total, out_dtype=tl.int32)
    tl.store(output + i[:, None] * SIZE + i[None, :], total)


INSTRUCTIONS: Mapping[str, Mapping[str, object]] = {
    "cuda": {"INSTRUCTION": "dp4a", "ROWS": 4},
    # A wave of CDNA has 64 threads: twice the rows for loads of the same width.
    "cdna": {"INSTRUCTION": "cdna", "ROWS": 8},
    "rdna": {"INSTRUCTION": "rdna3", "ROWS": 4},
}


def _nothing(_before: Arguments, _after: Arguments) -> None:
    raise AssertionError("a probe kernel is compiled, never launched")


def _gemv_arguments(_seed: int) -> Arguments:
    return {
        "q": torch.zeros(WORDS * 4, dtype=torch.int32),
        "codes": torch.zeros((ROWS, WORDS), dtype=torch.int32),
        "output": torch.zeros(ROWS, dtype=torch.int32),
        "row_words": WORDS,
    }


def gemv_case(
    name: str = "good_gemv",
    kernel: object = good_gemv,
    role: Role = "gemv",
    targets: tuple[str, ...] = ALL,
    weights: int = 4 * 128 * 16,
) -> KernelCase:
    """A word-wise matvec; on CDNA a trip takes twice ``weights``."""
    return KernelCase(
        name=name,
        kernel=kernel,
        constexprs={"WORDS": 128},
        aligned=frozenset({"q", "codes", "output", "row_words"}),
        grid=(2, 1, 1),
        build=_gemv_arguments,
        check=_nothing,
        targets=targets,
        work=Work(weights, loaded_bytes_per_item=1.25),
        role=role,
        family_constexprs=INSTRUCTIONS,
    )


def byte_case(targets: tuple[str, ...] = ("sm_75",)) -> KernelCase:
    """A matvec on single bytes, compiled without any promise of alignment."""
    return KernelCase(
        name="byte_gemv",
        kernel=byte_gemv,
        constexprs={"ROWS": 8, "COLUMNS": 128},
        aligned=frozenset(),
        grid=(1, 1, 1),
        build=lambda _seed: {
            "q": torch.zeros(129, dtype=torch.int8),
            "codes": torch.zeros((8, 129), dtype=torch.uint8),
            "output": torch.zeros(8, dtype=torch.int32),
            "columns": 129,
        },
        check=_nothing,
        targets=targets,
        work=Work(8 * 128, 1.0, loaded_bytes_per_item=2.0),
        role="gemv",
    )


def gemm_case(
    kernel: object,
    dtype: torch.dtype,
    targets: tuple[str, ...],
    size: int = 32,
    num_warps: int = 4,
) -> KernelCase:
    """A square matrix product, float16 or int8."""
    accumulator = torch.int32 if dtype == torch.int8 else torch.float32
    return KernelCase(
        name=f"probe_gemm_{size}",
        kernel=kernel,
        constexprs={"SIZE": size, "DEPTH": 64},
        aligned=frozenset({"a", "b", "output"}),
        grid=(1, 1, 1),
        build=lambda _seed: {
            "a": torch.zeros((size, 64), dtype=dtype),
            "b": torch.zeros((64, size), dtype=dtype),
            "output": torch.zeros((size, size), dtype=accumulator),
            "steps": 2,
        },
        check=_nothing,
        targets=targets,
        work=Work(size * 64),
        role="gemm",
        num_warps=num_warps,
    )


def report_of(case: KernelCase, target: str) -> StaticReport:
    """The report of a case that must compile."""
    found = report_cases([case], target)
    assert found.failures == []
    (report,) = found.reports
    return report
