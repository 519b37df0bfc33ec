"""Absolute gates: what the machine code of a kernel of each kind must reach on every Triton."""

from __future__ import annotations

from collections.abc import Mapping

from agentforge_kernels.verify.cases import Role
from agentforge_kernels.verify.report import StaticReport
from agentforge_kernels.verify.targets import TARGETS, Family

REGISTER_LIMITS: dict[Family, dict[Role, int]] = {
    "cuda": {"gemv": 64, "masked_gemv": 64, "gemm": 128, "other": 128},
    "cdna": {"gemv": 128, "masked_gemv": 128, "gemm": 256, "other": 256},
    "rdna": {"gemv": 128, "masked_gemv": 128, "gemm": 256, "other": 256},
}
"""Registers a thread: a matvec needs half of the threads a multiprocessor can hold in flight, the
others a quarter. That is 512 / 8 for a matvec on sm_80 with its 16 warps a scheduler, 512 / 4 on
gfx942 with its 8 waves; gfx1100 could have 192, but no code needs them."""
SHARED_LIMIT = 48 * 1024
"""Bytes a program may have on every GPU without asking the driver for more."""
GEMV_OCCUPANCY = 0.5
"""Below, too few loads are in flight to fill the memory's bandwidth."""
TURING_INSTRUCTIONS = {"gemv": 1.0, "masked_gemv": 1.1}
"""Instructions a weight on sm_75, whose integer pipe is the slowest for its memory."""
INTEGER_SHARE = 0.5
"""Integer-pipe time may be this share of memory time on the GTX 1660, in the model."""


def absolute_failures(report: StaticReport) -> list[str]:
    """The gates a report misses, whatever the Triton version.

    A gate whose input is missing (no work stated, no loop found) is missed.
    """
    failures = _common_failures(report)
    if report.role in ("gemv", "masked_gemv"):
        failures += _gemv_failures(report)
    elif report.role == "gemm":
        failures += _gemm_failures(report)
    return [f"{report.case} on {report.target}: {failure}" for failure in failures]


def _common_failures(report: StaticReport) -> list[str]:
    failures = []
    if report.spill_bytes or report.code.count("spill"):
        failures.append(
            f"{report.spill_bytes} bytes of spilled registers and "
            f"{report.code.count('spill')} accesses to "
            f"them; allowed: none"
        )
    cap = REGISTER_LIMITS[TARGETS[report.target].family][report.role]
    if report.registers > cap:
        failures.append(f"{report.registers} registers; allowed for {report.role}: {cap}")
    if report.shared_bytes > SHARED_LIMIT:
        failures.append(f"{report.shared_bytes} bytes of shared memory; allowed: {SHARED_LIMIT}")
    if report.occupancy.blocks < 1:
        failures.append(f"no block fits a multiprocessor: {report.occupancy.limit} run out")
    if wide := report.code.count("warpgroup_matrix"):
        failures.append(
            f"{wide} warp-group matrix instructions, which the PTX executor cannot execute; "
            f"allowed: none"
        )
    return failures


def _gemv_failures(report: StaticReport) -> list[str]:
    failures = []
    if report.occupancy.share < GEMV_OCCUPANCY:
        failures.append(
            f"occupancy {report.occupancy.share:.0%} ({report.occupancy.limit}); allowed: "
            f"{GEMV_OCCUPANCY:.0%} and more"
        )
    if report.loop is None:
        return [*failures, "no loop found: nothing to hold the hot loop's gates against"]
    loop = report.loop
    if not loop.loads:
        failures.append(
            "no loads from device memory in the hot loop; expected weights and activations"
        )
    if loop.narrow_loads:
        failures.append(f"loads narrower than 128 bits in the hot loop: {_widths(loop.loads)}")
    if barriers := loop.count("barrier"):
        failures.append(f"{barriers} barriers in the hot loop; allowed: none")
    if shared := loop.count("shared"):
        failures.append(f"{shared} accesses to shared memory in the hot loop; allowed: none")
    if report.items_per_thread is None or report.item != "weight":
        return [*failures, "the case does not say how many weights a trip takes"]
    expected = report.items_per_thread / 4 * report.unrolled
    if loop.count("dot4") != expected:
        failures.append(
            f"{loop.count('dot4')} four-byte dot products in the hot loop; expected: {expected}"
        )
    if report.loaded_bytes_per_item is None:
        failures.append("the case does not say how many bytes a trip loads")
    else:
        # Twice the products make a loop look unrolled twice; then it must load twice as much, too.
        trips = report.items_per_thread * report.unrolled
        expected_bytes = round(trips * report.loaded_bytes_per_item)
        if loop.load_bytes != expected_bytes:
            failures.append(
                f"{loop.load_bytes} bytes loaded in the hot loop; expected for {trips:g} weights: "
                f"{expected_bytes}"
            )
    if report.target == "sm_75":
        failures += _turing_gemv_failures(report)
    return failures


def _turing_gemv_failures(report: StaticReport) -> list[str]:
    failures = []
    allowed = TURING_INSTRUCTIONS[report.role]
    seen = report.instructions_per_item
    if seen is None or seen > allowed:
        failures.append(f"{seen} instructions a weight; allowed: {allowed}")
    times = report.modelled_times()
    if not times:
        failures.append("no modelled time: nothing to hold the integer pipe against")
    for time in times:
        if time.integer_us >= INTEGER_SHARE * time.memory_us:
            failures.append(
                f"{time.rows} x {time.columns} on a {time.device}, modelled: integer pipe "
                f"{time.integer_us:.2f} us, memory {time.memory_us:.2f} us; allowed: less than half"
            )
    return failures


def _gemm_failures(report: StaticReport) -> list[str]:
    failures = []
    if report.loop is None:
        return ["no loop found: nothing to hold the hot loop's gates against"]
    loop = report.loop
    if report.target == "sm_75":
        # Triton has no matrix instructions there. Half precision would be no faster than fp32 and
        # round sums beyond 2,048: the product must be exact in fp32.
        if not loop.count("float_multiply_add"):
            failures.append(
                "no float32 multiply-adds in the hot loop; expected the exact fp32 product"
            )
    elif not loop.count("int8_matrix"):
        failures.append("no int8 matrix instructions in the hot loop")
    elif loop.count("float_multiply_add"):
        failures.append(
            f"{loop.count('float_multiply_add')} float32 multiply-adds in the hot loop; "
            f"allowed: none"
        )
    if wrong := report.code.count("float_matrix"):
        failures.append(f"{wrong} floating-point matrix instructions; allowed: none")
    return failures


def _widths(loads: Mapping[int, int]) -> str:
    return ", ".join(f"{count} of {8 * width} bits" for width, count in loads.items())
