"""What an instruction may touch: registers, memories, and where each thread stands."""

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
    Register,
    Symbol,
    Vector,
)
from agentforge_kernels.verify.ptx.registers import Active, Handler, Reader, RegisterFile
from agentforge_kernels.verify.ptx.shared_memory import SharedMemory
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, Array

WARP = 32


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

    def address_reader(self, operand: object) -> Reader:
        """Addresses (uint64) of an ``[base + offset]`` operand."""
        if not isinstance(operand, Address):
            raise UnsupportedInstruction(f"{operand} is no address")
        base: Register | Symbol | Immediate = operand.base
        narrow = True
        if isinstance(base, Register):
            narrow = self.registers.words(base.name).dtype.itemsize == 4
        read = self.registers.reader(base, "u32" if narrow else "u64")
        offset = np.int64(operand.offset)
        return lambda active: (read(active).astype(np.int64) + offset).astype(np.uint64)


Binder: TypeAlias = Callable[[Instruction, Machine], Handler]


def kind_of(instruction: Instruction) -> str:
    """The type an instruction works on: the last modifier that names one."""
    for modifier in reversed(instruction.modifiers):
        if modifier in NUMPY_TYPES:
            return modifier
    raise unsupported(instruction, "it names no type")


def space_of(instruction: Instruction) -> str:
    """``global`` or ``shared``, whichever the instruction names."""
    for modifier in instruction.modifiers:
        if modifier.split("::")[0] in ("global", "shared"):
            return modifier.split("::")[0]
    raise unsupported(instruction, "generic addresses are not known")


def elements_of(operand: object) -> tuple[Register | Immediate | Symbol, ...]:
    """The parts of a vector operand; a plain operand is its own only part."""
    if isinstance(operand, Vector):
        return operand.elements
    if isinstance(operand, (Register, Immediate, Symbol)):
        return (operand,)
    raise UnsupportedInstruction(f"{operand} is no register")


def unsupported(instruction: Instruction, why: str = "") -> UnsupportedInstruction:
    """The error for an instruction that the executor does not know."""
    reason = f" ({why})" if why else ""
    return UnsupportedInstruction(
        f"PTX instruction {instruction.mnemonic}{reason}, line {instruction.line}: {instruction.text}"
    )


def require_whole_warps(active: Active, instruction: Instruction) -> None:
    """Raise ``Divergence`` unless active threads come in complete warps."""
    if active.everyone:
        return
    threads = active.threads
    whole = len(threads) % WARP == 0
    if whole:
        rows = threads.reshape(-1, WARP)
        whole = bool(
            (rows[:, 0] % WARP == 0).all() and (rows[:, -1] - rows[:, 0] == WARP - 1).all()
        )
    if not whole:
        raise Divergence(
            f"{instruction.mnemonic}, line {instruction.line}: reached by part of a warp only"
        )
