"""What an instruction may touch, and questions every instruction asks about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from agentforge_kernels.verify.ptx.asynchronous_copies import PendingCopies
from agentforge_kernels.verify.ptx.faults import Divergence, UnsupportedInstruction
from agentforge_kernels.verify.ptx.global_memory import GlobalMemory
from agentforge_kernels.verify.ptx.program import (
    Address,
    Immediate,
    Instruction,
    Operand,
    Register,
    Symbol,
    Vector,
)
from agentforge_kernels.verify.ptx.registers import Active, Handler, Reader, RegisterFile
from agentforge_kernels.verify.ptx.shared_memory import SharedMemory
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, Array

WARP = 32
FULL_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Machine:
    """State of a batch of blocks.

    Attributes:
        registers: Of all threads.
        global_memory: Of the launch.
        shared: Of all blocks of the batch.
        copies: Asynchronous copies under way.
        parameters: Bits of each parameter by name, as in a 64-bit word.
        threads: Threads in the batch.
        block: Block of each thread, counted within the batch.
        warp: Warp of each thread, counted within the batch.
        lane: Position of each thread in its warp.
    """

    registers: RegisterFile
    global_memory: GlobalMemory
    shared: SharedMemory
    copies: PendingCopies
    parameters: dict[str, int]
    threads: int
    block: Array
    warp: Array
    lane: Array

    def address_reader(self, operand: Operand) -> Reader:
        """Addresses (int64) of an ``[base + offset]`` operand."""
        if not isinstance(operand, Address):
            raise UnsupportedInstruction(f"{operand} is no address")
        base: Register | Symbol | Immediate = operand.base
        wide = isinstance(base, Register) and self.registers.words(base.name).dtype.itemsize == 8
        read = self.registers.reader(base, "u64" if wide else "u32")
        offset = np.int64(operand.offset)
        return lambda active: read(active).astype(np.int64) + offset


Binder: TypeAlias = Callable[[Instruction, Machine], Handler]
"""Turns an instruction into the numpy function that executes it."""


def kind_of(instruction: Instruction) -> str:
    """The type an instruction works on: the last modifier that names one."""
    for modifier in reversed(instruction.modifiers):
        if modifier in NUMPY_TYPES:
            return modifier
    raise unsupported(instruction, "it names no type")


def space_of(instruction: Instruction) -> str:
    """``global`` or ``shared``, whichever the instruction names."""
    for modifier in instruction.modifiers:
        if modifier in ("global", "shared", "shared::cta"):
            return modifier.removesuffix("::cta")
    raise unsupported(instruction, "generic and cluster addresses are not known")


def elements_of(operand: Operand) -> tuple[Register | Immediate | Symbol, ...]:
    """The parts of a vector operand; a plain operand is its own only part."""
    if isinstance(operand, Vector):
        return operand.elements
    if isinstance(operand, (Register, Immediate, Symbol)):
        return (operand,)
    raise UnsupportedInstruction(f"{operand} is no register")


def unsupported(instruction: Instruction, why: str = "") -> UnsupportedInstruction:
    """The error for an instruction, or a form of one, that the executor does not know."""
    return UnsupportedInstruction(f"{instruction.mnemonic} is not known{': ' * bool(why)}{why}")


def require_whole_warps(active: Active, instruction: Instruction) -> None:
    """Raise ``Divergence`` unless active threads come in complete warps."""
    if active.everyone:
        return
    threads = active.threads
    # Ascending numbers make a whole warp where a row's ends are its first and last lane.
    if len(threads) % WARP == 0:
        ends = threads.reshape(-1, WARP)[:, [0, -1]]
        if bool(((ends[:, 0] % WARP == 0) & (ends[:, 1] == ends[:, 0] + WARP - 1)).all()):
            return
    raise Divergence(f"{instruction.mnemonic} reached by part of a warp only")


def whole_warp_check(instruction: Instruction, mask: Operand, machine: Machine) -> Handler:
    """A check to run with a ``.sync`` instruction: all threads of the warp, named by its mask.

    Raises:
        Divergence: (from the check) part of a warp is here.
        UnsupportedInstruction: (from the check) a mask of some of the threads.
    """
    read_mask = machine.registers.reader(mask, "b32")

    def check(active: Active) -> None:
        require_whole_warps(active, instruction)
        if bool((read_mask(active) != FULL_MASK).any()):
            raise unsupported(instruction, "only the mask of all 32 threads is known")

    return check
