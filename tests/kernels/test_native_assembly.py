"""The hot loops as the compiler made them: accumulators stay in registers.

GCC 12 copies arrays of accumulators to the stack on every step unless told otherwise, which made
the matvec 1.7 times slower; nothing but the assembly shows it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import agentforge_kernels
import pytest

from tests.kernels.assembly import STACK, innermost_loops

NATIVE = Path(agentforge_kernels.__file__).parent / "native"
COMPILER = shutil.which("g++") or shutil.which("c++")
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fopenmp", "-fPIC", "-w", "-S"]


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Assembly lines of every function of the kernels, by mangled name."""
    if COMPILER is None:
        pytest.skip("no C++ compiler to look at the assembly of")
    folder = tmp_path_factory.mktemp("assembly")
    # float_*.hpp are parts of plan_floats.hpp, included once for each level.
    headers = sorted(
        file.name
        for file in NATIVE.glob("*.hpp")
        if "bindings" not in file.name and "#pragma once\n" in file.read_text()
    )
    source = folder / "kernels.cpp"
    uses = "".join(
        f"const void* {kind}(int level) {{ return &agentforge::{kind}_kernels_of(level); }}\n"
        for kind in ("dense", "sparse", "int8")
    )
    source.write_text("".join(f'#include "{header}"\n' for header in headers) + uses)
    assembly = folder / "kernels.s"
    command = [COMPILER, *FLAGS, f"-I{NATIVE}", str(source), "-o", str(assembly)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, list[str]] = {}
    name = ""
    for line in assembly.read_text().splitlines():
        if re.match(r"^_Z\w+:", line):
            name = line.rstrip(":")
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def hot_loop(functions: dict[str, list[str]], pattern: str, products: int) -> list[str]:
    """The one innermost loop of the function of this name; it must have so many products."""
    names = [name for name in functions if re.search(pattern, name)]
    assert len(names) == 1, f"{pattern}: {names}"
    (loop,) = innermost_loops(functions[names[0]], "vpdpbusd")
    assert sum("vpdpbusd" in line for line in loop) == products
    return loop


@pytest.mark.parametrize(
    ("pattern", "products"),
    [(r"avx512L12dense_matvec", 16)]
    + [(rf"avx512L10dense_tileILi{tokens}E", 16 * tokens) for tokens in range(1, 7)],
)
def test_dense_loops_touch_no_stack(
    functions: dict[str, list[str]], pattern: str, products: int
) -> None:
    assert not [line for line in hot_loop(functions, pattern, products) if STACK.search(line)]


# Function, the instruction that multiplies, how many of it an innermost loop has, how many loops.
SPARSE_AND_INT8_LOOPS = [
    (r"avx512L12block_matvec", "vpdpbusd", 16, 1),
    (r"avx512L13column_matvec", "vpdpbusd", 16, 1),
    (r"avx512L11int8_matvec", "vpdpbusd", 16, 1),
    *((rf"avx512L9int8_tileILi{tokens}E", "vpdpbusd", 16 * tokens, 1) for tokens in range(1, 7)),
    (r"avxvnniL12block_matvec", "vpdpbusd", 8, 1),
    (r"avxvnniL13column_matvec", "vpdpbusd", 8, 2),
    (r"avxvnniL11int8_matvec", "vpdpbusd", 8, 1),
    *((rf"avxvnniL9int8_tileILi{tokens}E", "vpdpbusd", 2 * tokens, 1) for tokens in range(1, 7)),
    (r"avx2L12block_matvec", "vpmaddubsw", 8, 1),
    (r"avx2L13column_matvec", "vpmaddubsw", 8, 2),
    (r"avx2L11int8_matvec", "vpmaddwd", 16, 1),
    *((rf"avx2L9int8_tileILi{tokens}E", "vpmaddwd", 4 * tokens, 1) for tokens in range(1, 5)),
]


@pytest.mark.parametrize(("pattern", "product", "products", "count"), SPARSE_AND_INT8_LOOPS)
def test_sparse_and_int8_loops_touch_no_stack(
    functions: dict[str, list[str]], pattern: str, product: str, products: int, count: int
) -> None:
    names = [name for name in functions if re.search(pattern, name)]
    assert len(names) == 1, f"{pattern}: {names}"
    loops = innermost_loops(functions[names[0]], product)
    assert [sum(product in line for line in loop) for loop in loops] == [products] * count
    assert not [line for loop in loops for line in loop if STACK.search(line)]


def test_no_vector_register_is_spilled_in_any_512_bit_loop(
    functions: dict[str, list[str]],
) -> None:
    loops = 0
    for name, lines in functions.items():
        if "avx512" not in name:
            continue
        for loop in innermost_loops(lines, "vpdpbusd"):
            loops += 1
            spills = [line for line in loop if "%zmm" in line and STACK.search(line)]
            assert not spills, f"{name}: {spills[:3]}"
    assert loops >= 7


def test_nothing_is_contracted_into_a_fused_multiply_add(functions: dict[str, list[str]]) -> None:
    fused = [
        name
        for name, lines in functions.items()
        if any(re.search(r"\tv?fn?m(add|sub)", line) for line in lines)
    ]
    assert not fused
