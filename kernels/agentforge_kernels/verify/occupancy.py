"""Occupancy: how many of a multiprocessor's threads a kernel's registers and memory allow.

Sources:

* NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability" (warps,
  blocks, shared memory, registers); the same figures are in libcu++,
  ``cuda/__device/arch_traits.h``. Registers are given out to warps in units of 256 from the quarter
  of the register file their scheduler owns; shared memory in units of 256 bytes on sm_75 and 128
  from sm_80 on, where the driver keeps 1 KB of each block's (CUDA Occupancy Calculator).
* AMD: LLVM, ``AMDGPUBaseInfo.cpp``, ``getTotalNumVGPRs``, ``getVGPRAllocGranule``,
  ``getMaxWavesPerEU``: gfx942 has 512 vector registers a lane of a SIMD, given out in units of 8,
  and 8 waves; gfx1100 in waves of 32 has 1536, 24 and 16. 64 KB of local data share for a compute
  unit (CDNA 3 and RDNA 3 ISA, 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    """What the threads of an SM (NVIDIA) or compute unit (AMD) share.

    Attributes:
        schedulers: Parts with their own registers: a warp lives in one of them.
        warps: Most warps at a time.
        blocks: Most blocks at a time.
        registers: Of a scheduler, counted for one lane.
        register_unit: A lane's registers are given out in multiples of this.
        shared_bytes: Shared memory of all blocks together.
        shared_unit: It is given out in multiples of this.
        reserved_bytes: Shared memory the driver keeps for each block.
        lanes: Threads of a warp.
    """

    schedulers: int
    warps: int
    blocks: int
    registers: int
    register_unit: int
    shared_bytes: int
    shared_unit: int
    reserved_bytes: int
    lanes: int = 32


def _nvidia(warps: int, blocks: int, shared_kb: int, *, turing: bool = False) -> Multiprocessor:
    return Multiprocessor(
        schedulers=4,
        warps=warps,
        blocks=blocks,
        registers=512,
        register_unit=8,
        shared_bytes=shared_kb * 1024,
        shared_unit=256 if turing else 128,
        reserved_bytes=0 if turing else 1024,
    )


MULTIPROCESSORS: dict[str, Multiprocessor] = {
    "sm_75": _nvidia(32, 16, 64, turing=True),
    "sm_80": _nvidia(64, 32, 164),
    "sm_86": _nvidia(48, 16, 100),
    "sm_89": _nvidia(48, 24, 100),
    "sm_90": _nvidia(64, 32, 228),
    "sm_100": _nvidia(64, 32, 228),
    "sm_120": _nvidia(48, 24, 100),
    # AMD's limit on workgroups is reached only by those of a single wave.
    "gfx942": Multiprocessor(4, 32, 32, 512, 8, 64 * 1024, 512, 0, lanes=64),
    "gfx1100": Multiprocessor(2, 32, 32, 1536, 24, 64 * 1024, 512, 0),
}


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Blocks and warps that fit.

    Attributes:
        blocks: Blocks of a multiprocessor at a time.
        warps: Their warps.
        share: Of the most warps it can hold, 0 to 1.
        limit: What runs out first: ``warps``, ``blocks``, ``registers`` or ``shared memory``.
    """

    blocks: int
    warps: int
    share: float
    limit: str


def occupancy(target: str, registers: int, shared_bytes: int, threads: int) -> Occupancy:
    """Occupancy of one kernel on one target.

    Args:
        target: Name from ``targets.TARGETS``.
        registers: Of a thread (vector registers on AMD), above zero.
        shared_bytes: Of a block, declared and asked for at launch, without the driver's own.
        threads: Of a block.

    Raises:
        ValueError: No registers, or a block of no whole warps.
    """
    chip = MULTIPROCESSORS[target]
    if registers < 1:
        raise ValueError(f"registers: {registers}; allowed: 1 and more")
    if threads < 1 or threads % chip.lanes:
        raise ValueError(f"threads: {threads}; allowed: multiples of {chip.lanes}")
    warps = threads // chip.lanes
    by_registers = chip.schedulers * (chip.registers // _round_up(registers, chip.register_unit))
    shared = _round_up(shared_bytes + chip.reserved_bytes, chip.shared_unit)
    limits = {
        "warps": chip.warps // warps,
        "blocks": chip.blocks,
        "registers": by_registers // warps,
        "shared memory": chip.shared_bytes // shared if shared else chip.blocks,
    }
    limit = min(limits, key=lambda name: limits[name])
    blocks = limits[limit]
    return Occupancy(blocks, blocks * warps, blocks * warps / chip.warps, limit)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
