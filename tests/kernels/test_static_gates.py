"""The absolute gates: each fails by itself, and compiled kernels of each bad kind miss theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from agentforge_kernels.verify import aot, gates
from agentforge_kernels.verify.cases import Role
from agentforge_kernels.verify.machine_code import Kind, Tally
from agentforge_kernels.verify.occupancy import Occupancy
from agentforge_kernels.verify.report import StaticReport, report_cases

from tests.kernels import probe_kernels as probes


@pytest.fixture(scope="module")
def good() -> StaticReport:
    """A compiled matvec on sm_75 that meets every gate."""
    report = probes.report_of(probes.gemv_case(), "sm_75")
    assert gates.absolute_failures(report) == []
    return report


def changed(tallied: Tally, **kinds: int) -> Tally:
    return dataclasses.replace(tallied, kinds={**tallied.kinds, **kinds})  # type: ignore[dict-item]


LOOP: dict[str, Callable[[Tally], Tally]] = {
    "narrower than 128": lambda loop: dataclasses.replace(loop, loads={16: 4, 4: 1}),
    "bytes loaded in the hot loop": lambda loop: dataclasses.replace(loop, loads={16: 4}),
    "no loads": lambda loop: dataclasses.replace(loop, loads={}),
    "barriers": lambda loop: changed(loop, barrier=1),
    "shared memory in the hot loop": lambda loop: changed(loop, shared=2),
    "four-byte dot products": lambda loop: changed(loop, dot4=15),
    "instructions a weight": lambda loop: dataclasses.replace(loop, instructions=65),
    # For 64 weights: 1.72 a weight; from 1.63 on the integer pipe of a GTX 1660 takes half as long
    # as memory.
    "integer pipe": lambda loop: dataclasses.replace(loop, instructions=110),
}
WHOLE: dict[str, dict[str, Any]] = {
    "spilled": {"spill_bytes": 8},
    "65 registers": {"registers": 65},
    "bytes of shared memory": {"shared_bytes": 48 * 1024 + 1},
    "occupancy 38%": {"occupancy": Occupancy(3, 12, 0.375, "registers")},
    "no block fits": {"occupancy": Occupancy(0, 0, 0.0, "shared memory")},
    "no loop": {"loop": None},
    "does not say how many weights": {"items_per_thread": None},
    "does not say how many bytes": {"loaded_bytes_per_item": None},
    "four-byte dot products": {"items_per_thread": 48.0},
}


@pytest.mark.parametrize("complaint", LOOP)
def test_each_gate_on_the_loop_fails_by_itself(good: StaticReport, complaint: str) -> None:
    assert good.loop is not None
    bad = dataclasses.replace(good, loop=LOOP[complaint](good.loop))
    assert any(complaint in failure for failure in gates.absolute_failures(bad))


@pytest.mark.parametrize("complaint", WHOLE)
def test_each_gate_on_the_kernel_fails_by_itself(good: StaticReport, complaint: str) -> None:
    bad = dataclasses.replace(good, **WHOLE[complaint])
    failures = gates.absolute_failures(bad)
    assert any(complaint in failure for failure in failures)
    assert all(failure.startswith("good_gemv on sm_75: ") for failure in failures)


@pytest.mark.parametrize(
    ("target", "role", "registers"),
    [
        ("sm_90", "gemv", 64),
        ("sm_90", "other", 128),
        ("gfx942", "gemv", 128),
        ("gfx1100", "gemm", 256),
    ],
)
def test_register_caps_by_family_and_role(
    good: StaticReport, target: str, role: Role, registers: int
) -> None:
    allowed = dataclasses.replace(good, target=target, role=role, registers=registers)
    more = dataclasses.replace(allowed, registers=registers + 1)
    assert not any("registers; allowed" in text for text in gates.absolute_failures(allowed))
    assert any("registers; allowed" in text for text in gates.absolute_failures(more))


def test_a_masked_kernel_may_take_a_tenth_more(good: StaticReport) -> None:
    assert good.loop is not None
    loop = dataclasses.replace(good.loop, instructions=70)  # of 64 weights: 1.094
    masked = dataclasses.replace(good, role="masked_gemv", loop=loop)
    assert gates.absolute_failures(masked) == []
    assert gates.absolute_failures(dataclasses.replace(masked, role="gemv"))
    more = dataclasses.replace(masked, loop=dataclasses.replace(loop, instructions=71))
    assert gates.absolute_failures(more)


def test_an_unrolled_loop_is_counted_for_all_its_trips(good: StaticReport) -> None:
    assert good.loop is not None
    twice = dataclasses.replace(
        changed(good.loop, dot4=32), instructions=2 * good.loop.instructions, loads={16: 10}
    )
    unrolled = dataclasses.replace(good, loop=twice, unrolled=2)
    assert unrolled.instructions_per_item == good.instructions_per_item
    assert gates.absolute_failures(unrolled) == []


def test_products_taken_twice_do_not_pass_for_an_unrolled_loop(good: StaticReport) -> None:
    case = probes.gemv_case("doubled", probes.doubled_products_gemv, targets=("sm_75", "gfx942"))
    for target in case.targets:
        report = probes.report_of(case, target)
        assert report.loop is not None
        assert report.loop.count("dot4") >= 32
        (failure,) = (text for text in gates.absolute_failures(report) if "bytes loaded" in text)
        assert "doubled on" in failure


GEMM: dict[str, tuple[str, dict[Kind, int], dict[Kind, int]]] = {
    "no int8 matrix instructions": ("sm_80", {}, {}),
    "float32 multiply-adds in the hot loop; allowed": (
        "sm_80",
        {"int8_matrix": 4, "float_multiply_add": 1},
        {},
    ),
    "warp-group": ("sm_90", {"int8_matrix": 4}, {"warpgroup_matrix": 1}),
    "expected the exact fp32 product": ("sm_75", {"int8_matrix": 4}, {}),
    "floating-point matrix": ("sm_75", {"float_multiply_add": 4}, {"float_matrix": 1}),
}


@pytest.mark.parametrize("complaint", GEMM)
def test_each_gate_on_a_matrix_product_fails_by_itself(good: StaticReport, complaint: str) -> None:
    target, in_loop, in_code = GEMM[complaint]
    assert good.loop is not None
    bad = dataclasses.replace(
        good,
        role="gemm",
        target=target,
        loop=dataclasses.replace(good.loop, kinds=in_loop),
        code=dataclasses.replace(good.code, kinds=in_code),
    )
    (failure,) = gates.absolute_failures(bad)
    assert complaint in failure


def failures_of(case: Any, target: str) -> str:
    return "\n".join(gates.absolute_failures(probes.report_of(case, target)))


def test_compiled_kernels_of_each_bad_kind_miss_their_gates() -> None:
    through_shared = probes.gemv_case("through_shared", probes.shared_memory_gemv)
    text = failures_of(through_shared, "sm_75")
    assert "barriers in the hot loop" in text
    assert "accesses to shared memory" in text
    assert "narrower than 128 bits" in text
    assert "instructions a weight" in text

    text = failures_of(probes.byte_case(), "sm_75")
    assert "of 8 bits" in text
    assert "0 four-byte dot products" in text

    half = probes.gemm_case(probes.float_gemm, torch.float16, ("sm_75", "sm_80", "gfx942"))
    text = failures_of(half, "sm_75")
    assert "bytes of spilled registers" in text
    assert "255 registers" in text
    for target in ("sm_80", "gfx942"):
        text = failures_of(half, target)
        assert "no int8 matrix instructions" in text
        assert "floating-point matrix instructions" in text

    large = probes.gemm_case(probes.int8_gemm, torch.int8, ("sm_90",), size=128)
    assert "warp-group matrix instructions" in failures_of(large, "sm_90")


def test_compiled_int8_products_have_matrix_instructions_everywhere_but_on_turing() -> None:
    case = probes.gemm_case(
        probes.int8_gemm, torch.int8, ("sm_75", "sm_80", "sm_90", "gfx942", "gfx1100")
    )
    for target in case.targets[1:]:
        assert failures_of(case, target) == ""
    found = report_cases([case], "sm_75")
    assert found.reports == []
    (failure,) = found.failures
    for part in ("probe_gemm_32", "int8_gemm", "'SIZE': 32", "sm_75", aot.TRITON_VERSION):
        assert part in failure
