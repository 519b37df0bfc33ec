"""What a kernel brings to be verified: one small launch with an oracle, used by all three looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor

from agentforge_kernels.verify.targets import TARGETS

Argument: TypeAlias = Tensor | int | float | None
Arguments: TypeAlias = dict[str, Argument]
"""Run-time arguments by name, in the kernel's order, constexprs left out."""

Role = Literal["gemv", "masked_gemv", "gemm", "other"]


@dataclass(frozen=True, slots=True)
class Work:
    """How much one program does in one trip of its innermost loop, all threads together.

    A kernel without a loop counts the whole program as one trip.

    Attributes:
        items_per_trip: Weights (or elements) consumed in a trip of the hot loop.
        bytes_per_item: Bytes read from device memory an item: 0.25 for two-bit weights.
        item: What an item is, for the report.
        loaded_bytes_per_item: Bytes the threads of a matvec load an item, in registers: its weights
            and its share of the activations, which several rows of a thread may share. ``gates``
            holds the machine code against it; without it a matvec misses its gates.
    """

    items_per_trip: int
    bytes_per_item: float = 0.25
    item: str = "weight"
    loaded_bytes_per_item: float | None = None


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One kernel with one shipped configuration, and a small launch of it.

    Attributes:
        name: Unique; the key of the static limits (``gemv_4x128``).
        kernel: The ``@triton.jit`` function.
        constexprs: Compile-time arguments, the same for all targets.
        aligned: Run-time arguments that the launcher guarantees to be multiples of 16 (pointers: of
            16 bytes); compiled with that promise, exactly as the just-in-time path would.
        grid: Programs of the small launch.
        build: From a seed, the small launch's arguments, outputs included; contiguous CPU tensors.
        check: Given the arguments before and after the launch, raises ``AssertionError`` unless the
            results are what ``agentforge_kernels.reference`` says.
        targets: Names from ``targets.TARGETS`` this configuration ships for.
        work: For instructions a weight and the roofline; ``None`` leaves these out of the report.
        role: Decides which absolute gates hold (``gates.absolute_failures``).
        num_warps: Triton option.
        num_stages: Triton option.
        family_constexprs: Compile-time arguments that differ by ``Target.family``.
        target_constexprs: Compile-time arguments that differ by target name; win over the family's.

    Raises:
        ValueError: Arguments, constexprs and the kernel's signature do not fit each other, or an
            unknown target.
    """

    name: str
    kernel: Any
    constexprs: Mapping[str, object]
    aligned: frozenset[str]
    grid: tuple[int, int, int]
    build: Callable[[int], Arguments]
    check: Callable[[Arguments, Arguments], None]
    targets: tuple[str, ...]
    work: Work | None = None
    role: Role = "other"
    num_warps: int = 4
    num_stages: int = 1
    family_constexprs: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    target_constexprs: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.targets) - set(TARGETS)):
            raise ValueError(f"{self.name}: unknown targets {unknown}; known: {sorted(TARGETS)}")
        names = set(self.kernel.arg_names)
        for target in self.targets:
            if stray := sorted(set(self.constexprs_for(target)) - names):
                raise ValueError(f"{self.name}: {stray} are not arguments of the kernel")
        if stray := sorted(self.aligned - names):
            raise ValueError(f"{self.name}: aligned {stray} are not arguments of the kernel")

    def constexprs_for(self, target: str) -> dict[str, object]:
        """Compile-time arguments for one target."""
        family = TARGETS[target].family
        return {
            **self.constexprs,
            **self.family_constexprs.get(family, {}),
            **self.target_constexprs.get(target, {}),
        }

    def build_checked(self, seed: int) -> Arguments:
        """The small launch's arguments, held against the signature and the alignment promise.

        Raises:
            ValueError: Names or order differ from the kernel's, or an argument in ``aligned`` is no
                multiple of 16, so that the compiled code would rightly misbehave.
        """
        arguments = self.build(seed)
        constexprs = self.constexprs_for(self.targets[0])
        expected = [name for name in self.kernel.arg_names if name not in constexprs]
        if list(arguments) != expected:
            raise ValueError(f"{self.name}: arguments {list(arguments)}, the kernel has {expected}")
        for name, value in arguments.items():
            if isinstance(value, int) and name in self.aligned and value % 16:
                raise ValueError(f"{self.name}: {name}={value} is promised to be a multiple of 16")
        return arguments

    def options(self) -> dict[str, object]:
        """Triton's compile options; multiply-add is never contracted, so results stay bit-equal."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": False,
        }


def copy_arguments(arguments: Arguments) -> Arguments:
    """A deep copy: tensors cloned, scalars as they are."""
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
