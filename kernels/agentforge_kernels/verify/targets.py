"""The GPUs a kernel is compiled for, by the names Triton and the vendors use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["cuda", "cdna", "rdna"]


@dataclass(frozen=True, slots=True)
class Target:
    """One architecture.

    Attributes:
        name: ``sm_75`` ... ``sm_120``, ``gfx942``, ``gfx1100``.
        family: Instruction set: NVIDIA, or AMD's data-centre (wave of 64) or graphics line (of 32).
        warp_size: Threads that share a program counter.
    """

    name: str
    family: Family
    warp_size: int

    @property
    def capability(self) -> int:
        """CUDA compute capability times ten.

        Raises:
            ValueError: Not an NVIDIA target.
        """
        if self.family != "cuda":
            raise ValueError(f"{self.name} has no compute capability")
        return int(self.name.removeprefix("sm_"))


def _cuda(capability: int) -> Target:
    return Target(f"sm_{capability}", "cuda", 32)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *(_cuda(capability) for capability in (75, 80, 86, 89, 90, 100, 120)),
        Target("gfx942", "cdna", 64),
        Target("gfx1100", "rdna", 32),
    )
}
ALL = tuple(TARGETS)
CUDA = tuple(name for name, target in TARGETS.items() if target.family == "cuda")
SM80_AND_NEWER = tuple(name for name in CUDA if TARGETS[name].capability >= 80)
AMD = tuple(name for name, target in TARGETS.items() if target.family != "cuda")
EXECUTED = ("sm_75", "sm_80", "sm_90")
"""Targets whose PTX the tests execute: Turing, without asynchronous copies, Ampere, and Hopper."""
