"""Every level of instruction set against the reference, lower ones forced on a better processor."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import agentforge_kernels
import pytest
import torch
from agentforge_kernels import reference
from agentforge_kernels.format import pack
from agentforge_kernels.native_backend import NativeBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.assembly import STACK, innermost_loops
from tests.kernels.native_cases import activations_of, expected, extension, random_trits, unaligned
from tests.kernels.native_level import NO_LEVEL

NATIVE = Path(agentforge_kernels.__file__).parent / "native"
COMPILER = shutil.which("g++") or shutil.which("c++")
PORTABLE, AVX2, AVX_VNNI, AVX512_VNNI, AMX_INT8 = range(5)
NAMES = [extension.isa_name(level) for level in range(5)]

# The smallest matmul that reaches the matvec and the tile of a level, in a process of its own: an
# instruction the processor does not know ends it.
PROBE = """
import sys, torch
from agentforge_kernels import native
from agentforge_kernels.native_backend import NativeBackend
assert native.extension.force_isa(int(sys.argv[1]), True)
backend = NativeBackend(1)
panels = torch.full((native.extension.panels_bytes(64, 32),), 0x55, dtype=torch.uint8)
for tokens in (1, 6):
    backend.ternary_linear_fused(
        torch.randn(tokens, 32), None, 1e-5, panels, "panels", torch.ones(1), None, 64, 32
    )
"""


@functools.cache
def can_run(level: int) -> bool:
    """Whether this processor runs the level, reported or not (AVX-VNNI has an AVX-512 encoding)."""
    if extension.isa_reported(level):
        return True
    if level != AVX_VNNI or not extension.isa_reported(AVX512_VNNI):
        return False
    command = [sys.executable, "-c", PROBE, str(level)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


# What Linux says in /proc/cpuinfo of a processor (and a hypervisor) that offers a level.
CPU_FLAGS = {
    AVX2: {"avx2", "fma", "f16c"},
    AVX512_VNNI: {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    AMX_INT8: {"amx_tile", "amx_int8", "avx512_vnni"},
}


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux names its flags")
def test_every_level_the_system_names_is_one_we_run() -> None:
    """Levels that cannot run are skipped and excused: so it may not be us who cannot see them."""
    line = next(x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags"))
    offered = set(line.split())
    assert can_run(PORTABLE)
    for level, flags in CPU_FLAGS.items():
        assert can_run(level) == (flags <= offered), NAMES[level]


@contextmanager
def forced(level: int) -> Iterator[None]:
    if not can_run(level):
        pytest.skip(f"{NO_LEVEL} {NAMES[level]}")
    assert extension.force_isa(level, True)
    try:
        yield
    finally:
        extension.force_isa(-1)


every_level = pytest.mark.parametrize("level", range(5), ids=NAMES)


def multiply(
    q: Tensor,
    trits: Tensor,
    threads: int = 1,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and expected output of the dense matmul at the level in use."""
    rows, columns = trits.shape
    scale = torch.tensor([1.0]) if scale is None else scale
    activations = activations_of(q)
    backend = NativeBackend(threads)
    panels, layout = backend.lay_out_dense(pack(trits, scale).codes, columns)
    output = backend.ternary_linear(activations, panels, layout, scale, residual, rows, columns)
    return output, expected(activations, trits, scale, residual)


def random_q(tokens: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (tokens, columns), generator=generator, dtype=torch.int8)


@every_level
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (7, 16), (64, 31), (65, 257), (200, 130), (1100, 1040)]
)
def test_ragged_shapes_equal_the_reference(
    level: int, threads: int, rows: int, columns: int
) -> None:
    trits = random_trits(rows, columns)
    with forced(level):
        for tokens in (1, 2, 3, 5, 6, 7, 8, 9, 16, 17, 25, 40):
            output, wanted = multiply(random_q(tokens, columns, tokens), trits, threads)
            assert torch.equal(output, wanted), tokens


# A group is 16 columns. int16 sums are widened after 8 groups (128 columns) or 16 (256), and a
# tile's block ends after 512 columns; each with a column more and one less.
# 64 columns: AVX2 widens its sums in a matvec; 1,024: a block of a product with many tokens ends.
BOUNDARIES = [63, 64, 65, 112, 127, 128, 129, 255, 256, 257, 511, 512, 513]
BOUNDARIES += [1023, 1024, 1025, 2049, 4096, 16384]


@every_level
@pytest.mark.parametrize("columns", BOUNDARIES)
def test_the_largest_partial_sums_do_not_overflow(level: int, columns: int) -> None:
    weights = torch.ones(6, columns, dtype=torch.int8)
    weights[1] = -1
    weights[2] = 0
    weights[3, ::2] = -1  # opposite signs within a pair of columns
    weights[4, : columns // 2] = -1  # and between halves
    weights[5, columns // 2 :] = 0
    patterns = torch.stack(
        [
            torch.full((columns,), -128),
            torch.full((columns,), 127),
            torch.full((columns,), -127),
            torch.tensor([127, -128]).repeat(columns)[:columns],
            torch.cat(
                [torch.full((columns // 2,), -128), torch.full((columns - columns // 2,), 127)]
            ),
        ]
    ).to(torch.int8)
    with forced(level):
        for q in patterns:
            output, wanted = multiply(q[None], weights)
            assert torch.equal(output, wanted)
        for repeats in (1, 4):  # tiles, and with them many tokens of different sign side by side
            output, wanted = multiply(patterns.repeat(repeats, 1), weights)
            assert torch.equal(output, wanted)


@every_level
def test_one_extreme_field_of_a_byte_at_a_time(level: int) -> None:
    # Columns 16 g + 4 f + b lie at bits 2 f: the sums of each field alone reach their bound.
    columns = 2048
    field = torch.arange(columns) // 4 % 4
    for chosen in range(4):
        q = torch.where(field == chosen, -128, 0).to(torch.int8)
        weights = torch.where(field == chosen, 1, -1).to(torch.int8).repeat(2, 1)
        weights[1] *= -1
        with forced(level):
            for tokens in (1, 6, 16):
                output, wanted = multiply(q.repeat(tokens, 1), weights)
                assert torch.equal(output, wanted)


@every_level
@pytest.mark.parametrize("threads", [1, 2])
def test_long_rows_equal_the_reference(level: int, threads: int) -> None:
    trits = random_trits(70, 16384)
    with forced(level):
        for tokens in (1, 5, 18):
            output, wanted = multiply(random_q(tokens, 16384), trits, threads)
            assert torch.equal(output, wanted)


@every_level
def test_more_rows_than_wait_in_a_block(level: int) -> None:
    trits = random_trits(4096 + 65, 48)
    with forced(level):
        for tokens in (1, 17):
            output, wanted = multiply(random_q(tokens, 48), trits, threads=2)
            assert torch.equal(output, wanted)


@every_level
def test_epilogue_rounds_every_step_by_itself(level: int) -> None:
    # Values for which a fused multiply-add, or scales applied in another order, give other bits.
    generator = torch.Generator().manual_seed(11)
    rows, columns = 150, 999
    trits = random_trits(rows, columns)
    with forced(level):
        for tokens in (1, 4, 16):
            scale = torch.rand(rows, generator=generator) * 0.1
            residual = torch.randn(tokens, rows, generator=generator) * 100
            for per_row in (scale, scale[:1]):
                for added in (residual, None):
                    output, wanted = multiply(random_q(tokens, columns), trits, 1, per_row, added)
                    assert torch.equal(output, wanted)


@settings(max_examples=120, deadline=None)
@given(
    level=st.sampled_from([level for level in range(4) if can_run(level)]),
    rows=st.integers(1, 200),
    columns=st.integers(1, 700),
    tokens=st.integers(1, 34),
    threads=st.integers(1, 2),
    extreme=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(
    level: int, rows: int, columns: int, tokens: int, threads: int, extreme: bool, seed: int
) -> None:
    q = random_q(tokens, columns, seed)
    if extreme:
        q = torch.where(q < 0, -128, 127).to(torch.int8)
    with forced(level):
        output, wanted = multiply(q, random_trits(rows, columns, seed), threads)
    assert torch.equal(output, wanted)


@every_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_quantised_activations_equal_the_reference(level: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    with forced(level):
        for columns in (1, 7, 8, 9, 31, 32, 33, 64, 100, 2560):
            x = (torch.randn(5, columns, generator=generator) * 3).to(dtype)
            got = NativeBackend(1).quantize_activations(unaligned(x))
            q, scale, total = reference.quantize_activations(x)
            assert torch.equal(got.q[:, :columns], q)
            assert not got.q[:, columns:].any()
            assert torch.equal(got.scale, scale)
            assert torch.equal(got.sum, total)


@every_level
def test_every_half_precision_value_is_widened_exactly(level: int) -> None:
    bits = torch.arange(1 << 16).to(torch.int32).to(torch.int16)
    values = bits.view(torch.float16)
    x = values[values.isfinite()].sort().values  # neighbours have like magnitudes: many steps of q
    with forced(level):
        for row in x.split(97):
            got = NativeBackend(1).quantize_activations(row[None])
            q, scale, total = reference.quantize_activations(row[None])
            assert torch.equal(got.q[:, : len(row)], q)
            assert torch.equal(got.scale, scale)
            assert torch.equal(got.sum, total)


def test_levels_agree_on_normalised_activations_to_one_step() -> None:
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(16, 1000, generator=generator)
    weight = torch.rand(1000, generator=generator) + 0.5
    wanted, scale, _ = reference.quantize_activations(x, weight, 1e-5)
    seen = 0
    for level in range(5):
        if not can_run(level):
            continue
        with forced(level):
            got = NativeBackend(1).quantize_activations(x, weight, 1e-5)
        assert (got.q[:, :1000].int() - wanted.int()).abs().max() <= 1
        assert torch.allclose(got.scale, scale, rtol=1e-6, atol=0)
        seen += 1
    assert seen >= 1


# ---- What the compiler makes of the headers ------------------------------------------------------


def compiled(folder: Path, source: str, *flags: str) -> str:
    """Assembly of a source that includes the dense kernels."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    (folder / "kernels.cpp").write_text(source)
    command = [
        COMPILER,
        "-std=c++17",
        "-O3",
        "-ffp-contract=off",
        "-fPIC",
        "-w",
        "-S",
        f"-I{NATIVE}",
    ]
    files = [str(folder / "kernels.cpp"), "-o", str(folder / "kernels.s")]
    done = subprocess.run([*command, *flags, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return (folder / "kernels.s").read_text()


TABLE = '#include "{}"\nconst void* table() {{ return &agentforge::{}::dense_kernels; }}\n'


def test_the_portable_level_needs_no_instruction_set(tmp_path: Path) -> None:
    # With the architecture hidden from our headers (the C library needs it) no intrinsic is left.
    hidden = "".join(f"#include <{name}>\n" for name in ("cmath", "cstddef", "cstdint", "cstring"))
    hidden += "#undef __x86_64__\n"
    assembly = compiled(tmp_path, hidden + TABLE.format("portable.hpp", "portable"))
    assert "portableL6matvec" in assembly
    assert "%ymm" not in assembly


def test_the_portable_matvec_is_vectorised(tmp_path: Path) -> None:
    if not extension.isa_reported(AVX2):
        pytest.skip("looks at x86 assembly")
    assembly = compiled(tmp_path, TABLE.format("portable.hpp", "portable"))
    body = re.search(r"portableL6matvec.*?\.size", assembly, re.DOTALL)
    assert body is not None
    assert body[0].count("pmullw") >= 8  # two columns of four rows in every lane of a vector


@pytest.mark.parametrize("level", ["avx2", "avxvnni"])
def test_256_bit_levels_stay_in_their_registers_without_fused_multiply_add(
    tmp_path: Path, level: str
) -> None:
    if not extension.isa_reported(AVX2):
        pytest.skip("looks at x86 assembly")
    assembly = compiled(tmp_path, TABLE.format(f"{level}.hpp", level))
    assert "%ymm" in assembly
    assert "%zmm" not in assembly
    assert not re.search(r"%[xy]mm(1[6-9]|2\d|3[01])\b", assembly)
    assert not re.search(r"\tv?fn?m(add|sub)", assembly)
    product = "vpdpbusd" if level == "avxvnni" else "vpmaddubsw"
    tiles = re.findall(rf"\n(\w*{level}L4tile\w*):(.*?)\.size", assembly, re.DOTALL)
    assert len(tiles) >= 6
    for name, body in tiles:
        loops = innermost_loops(body.splitlines(), product)
        assert len(loops) >= 4, name  # one for each row field
        for loop in loops:
            assert not [line for line in loop if "%ymm" in line and STACK.search(line)], name
    if level == "avxvnni":
        encodings = set(re.findall(r"(\{\w+\})?\s*vpdpbusd", assembly))
        assert encodings <= {"{vex}", "{evex}"}
        assert "{vex}" in encodings
