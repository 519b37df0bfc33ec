"""The same kernel object interpreted and compiled in one process, in any order."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from agentforge_kernels.verify import aot
from agentforge_kernels.verify.all_cases import CASES as PRODUCT_CASES
from agentforge_kernels.verify.cases import KernelCase
from agentforge_kernels.verify.interpreter import (
    GUARD_BYTES,
    INLINE_ASSEMBLY,
    dot_of_four_bytes,
    interpreted,
    run_interpreted,
)
from agentforge_kernels.verify.ptx.case_runner import run_ptx
from triton.runtime.errors import InterpreterError
from triton.runtime.jit import JITFunction

from tests.kernels.executed_kernels import (
    GEMV,
    NORM,
    STRAY,
    byte_gemv,
    equal,
    product_case,
    random_int8,
    unknown_assembly,
)

CASES = (GEMV, NORM, product_case())


@pytest.fixture
def no_cache(tmp_path: Path) -> Iterator[None]:
    """Compile anew into an empty directory."""
    before = aot.cache_directory()
    aot.share_cache_directory(str(tmp_path))
    yield
    aot.share_cache_directory(str(before))


def ptx_hash(case: KernelCase) -> str:
    return hashlib.sha256(aot.compile_case(case, "sm_80").ptx.encode()).hexdigest()


UNSTABLE = {"__annotations__", "__dict__", "__weakref__", "__abstractmethods__"}


def language_state() -> dict[str, dict[str, Any]]:
    """Everything that can be replaced in Triton's language and runtime."""
    things = {
        "tl": tl,
        "core": tl.core,
        "math": tl.math,
        "tensor": tl.tensor,
        "dtype": tl.dtype,
        "descriptor": tl.core.tensor_descriptor_base,
        "jit": JITFunction,
        "builder": triton.runtime.interpreter.InterpreterBuilder,
    }
    # What an attribute is, not where: putting back an inherited one leaves it on the class itself.
    # __annotations__ come into being when they are looked at.
    return {
        name: {key: getattr(thing, key) for key in dir(thing) if key not in UNSTABLE}
        for name, thing in things.items()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_interpreted_and_compiled_results_agree(case: KernelCase) -> None:
    for seed in (0, 1):
        interpreted_result = run_interpreted(case, seed)
        compiled_result = run_ptx(case, "sm_80", seed)
        for name, value in interpreted_result.items():
            if isinstance(value, torch.Tensor) and not value.is_floating_point():
                difference = (value.long() - compiled_result[name].long()).abs().max()
                assert difference <= (1 if case is NORM else 0)  # a rounding step of q


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_compilation_is_the_same_before_and_after(case: KernelCase, no_cache: None) -> None:
    before = ptx_hash(case)
    run_interpreted(case)
    aot.share_cache_directory(str(aot.cache_directory() / "after"))
    assert ptx_hash(case) == before
    run_interpreted(case)


def test_interpretation_may_come_first_in_a_process(tmp_path: Path) -> None:
    script = "\n".join(
        [
            "import hashlib",
            "from agentforge_kernels.verify.aot import compile_case",
            "from agentforge_kernels.verify.interpreter import run_interpreted",
            "from tests.kernels.executed_kernels import NORM",
            "run_interpreted(NORM)",
            "print(hashlib.sha256(compile_case(NORM, 'sm_80').ptx.encode()).hexdigest())",
        ]
    )
    assert run_script(script, TRITON_CACHE_DIR=str(tmp_path)).split() == [ptx_hash(NORM)]


def run_script(script: str, **environment: str) -> str:
    """Run Python text in a process of its own; its output."""
    finished = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_interpretation_by_triton_itself() -> None:
    """TRITON_INTERPRET=1, the documented way: what to fall back on when a private name moves."""
    script = "\n".join(
        [
            "from triton.runtime.interpreter import InterpretedFunction",
            "from agentforge_kernels.verify.all_cases import CASES",
            "from agentforge_kernels.verify.interpreter import run_interpreted",
            "from tests.kernels.executed_kernels import NORM, product_case",
            "for case in (NORM, product_case()):  # no inline assembly: without any help of ours",
            "    arguments, before = case.build_checked(3), case.build_checked(3)",
            "    case.kernel[case.grid](**arguments, **case.constexprs)",
            "    case.check(before, arguments)",
            "for case in {case.kernel.fn: case for case in CASES}.values():",
            "    assert isinstance(case.kernel, InterpretedFunction)",
            "    run_interpreted(case)",
            "    print(case.kernel.fn.__name__)",
        ]
    )
    output = run_script(script, TRITON_INTERPRET="1")
    assert set(output.split()) == {case.kernel.fn.__name__ for case in PRODUCT_CASES}


def test_a_wrapper_with_a_grid_function() -> None:
    q, weights = random_int8((512,), 1), random_int8((24, 512), 2)
    output = torch.zeros(24, dtype=torch.int32)
    with interpreted():
        byte_gemv[lambda arguments: (24 // arguments["ROWS"],)](
            q.view(torch.int32), weights.view(torch.int32), output, 128, ROWS=8, WORDS=64
        )
    equal(output, weights.int() @ q.int())


def test_blocks_may_be_nested() -> None:
    before = language_state()
    with interpreted():
        run_interpreted(GEMV)
        run_interpreted(NORM)
    assert language_state() == before


@pytest.mark.parametrize("inside", ["block", "kernel", "check"])
def test_everything_is_restored_after_an_exception(inside: str) -> None:
    before = language_state()
    if inside == "block":
        with pytest.raises(TypeError, match="missing 2"), interpreted():
            byte_gemv[None](1, 2, 3, 4)
    elif inside == "kernel":
        with pytest.raises(InterpreterError), interpreted():
            unknown_assembly[(1,)](torch.zeros(8), torch.zeros(8), BLOCK=8)
    else:
        with pytest.raises(AssertionError, match="stored outside of output"):
            run_interpreted(STRAY)
    assert language_state() == before
    assert ptx_hash(NORM) == ptx_hash(NORM)


def test_unknown_inline_assembly_is_refused_by_text() -> None:
    x, output = torch.arange(8, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    with pytest.raises(InterpreterError, match="brev.b32.*INLINE_ASSEMBLY"), interpreted():
        unknown_assembly[(1,)](x, output, BLOCK=8)
    assert output.tolist() == [0] * 8


def test_inline_assembly_is_found_whatever_its_white_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(INLINE_ASSEMBLY, "brev.b32 $0, $1", lambda a: a + 1)
    x, output = torch.arange(8, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    with interpreted():
        unknown_assembly[(1,)](x, output, BLOCK=8)
    assert output.tolist() == list(range(1, 9))


@pytest.mark.parametrize("left", ["int8", "uint8"])
@pytest.mark.parametrize("right", ["int8", "uint8"])
def test_emulated_dot_product_of_four_bytes(left: str, right: str) -> None:
    generator = np.random.default_rng(1)
    a, b, c = generator.integers(-(2**31), 2**31, (3, 4, 5), np.int64).astype(np.int32)
    a[0, 0] = b[0, 0] = -2139062144  # 0x80808080
    c[0, 0], c[0, 1] = 2**31 - 1, -(2**31)
    got = dot_of_four_bytes(np.dtype(left).type, np.dtype(right).type)(a, b, c)

    def bytes_of(word: int, kind: str) -> list[int]:
        octets = (word & 0xFFFFFFFF).to_bytes(4, "little")
        return [octet - 256 if kind == "int8" and octet > 127 else octet for octet in octets]

    for place in np.ndindex(4, 5):
        products = zip(bytes_of(int(a[place]), left), bytes_of(int(b[place]), right), strict=True)
        total = sum(x * y for x, y in products) + int(c[place])
        assert got[place] == (total + 2**31) % 2**32 - 2**31
    # Scalars and vectors broadcast, as Triton's own operators do.
    emulate = dot_of_four_bytes(np.int8, np.int8)
    assert emulate(np.int32(1), np.array([[1], [2]], np.int32), np.int32(0)).tolist() == [[1], [2]]


@triton.jit
def write_at(x, offset):
    tl.store(x + offset, 7)


@pytest.mark.parametrize("place", [-GUARD_BYTES, -1, "end", "last"])
def test_guards_see_a_byte_before_and_after(place: int | str) -> None:
    """A check that writes one byte through a pointer, as a kernel gone astray would."""
    sizes = {"end": 100, "last": 100 + GUARD_BYTES - 1}
    offset = sizes[place] if isinstance(place, str) else place
    case = KernelCase(
        name="write_at",
        kernel=write_at,
        constexprs={},
        aligned=frozenset(),
        grid=(1, 1, 1),
        build=lambda _seed: {"x": torch.zeros(100, dtype=torch.uint8), "offset": offset},
        check=lambda before, after: None,
        targets=("sm_75",),
    )
    with pytest.raises(AssertionError, match="write_at: stored outside of x"):
        run_interpreted(case)
