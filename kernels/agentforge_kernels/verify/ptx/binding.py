"""Which instructions the executor knows, and the numpy function of each."""

from __future__ import annotations

from agentforge_kernels.verify.ptx import (
    atomics,
    bits,
    conversions,
    floats,
    integers,
    memory_access,
    moves,
    tensor_core,
    warp,
)
from agentforge_kernels.verify.ptx.faults import PtxFault
from agentforge_kernels.verify.ptx.machine import Binder, Machine, kind_of, unsupported
from agentforge_kernels.verify.ptx.program import Instruction, Program
from agentforge_kernels.verify.ptx.registers import Handler, Reader
from agentforge_kernels.verify.ptx.types import is_float

BINDERS: dict[str, Binder] = {
    **floats.BINDERS,
    **integers.BINDERS,
    **bits.BINDERS,
    **moves.BINDERS,
    **conversions.BINDERS,
    **memory_access.BINDERS,
    **atomics.BINDERS,
    **warp.BINDERS,
    **tensor_core.BINDERS,
}
CONTROL = ("bra", "ret", "exit", "trap", "bar", "barrier")
"""Opcodes that decide where threads stand next (``control``); of ``bar`` all but ``bar.warp``."""
REFUSED = {
    "wgmma": "warp-group matrix multiply: choose smaller tiles or fewer warps for sm_90, for which"
    " Triton emits mma.sync",
    "tcgen05": "tensor memory of sm_100: execute the sm_80 or sm_90 code of this kernel",
    "mbarrier": "barriers in memory, which come with TMA: load through plain pointers",
    "tensormap": "TMA: load through plain pointers",
}
"""Why some instructions are not executed, and what to do about it."""


def require_known(program: Program) -> None:
    """Look at every opcode before anything runs.

    Raises:
        UnsupportedInstruction: Naming the first the executor does not know, and why if that is by
            choice.
    """
    for instruction in program.instructions:
        if instruction.opcode not in BINDERS and instruction.opcode not in CONTROL:
            why = REFUSED.get(instruction.opcode, "")
            raise located(unsupported(instruction, why), program, instruction)


def bind(instruction: Instruction, machine: Machine) -> Handler:
    """The numpy function of an instruction that is no control instruction.

    Raises:
        UnsupportedInstruction: A form of it that the executor does not know.
    """
    opcode = instruction.opcode
    try:
        # Some opcodes, such as add, exist for integers and for floats.
        if opcode in floats.BINDERS and is_float(kind_of(instruction)):
            return floats.BINDERS[opcode](instruction, machine)
        return BINDERS[opcode](instruction, machine)
    except (LookupError, ValueError) as error:
        raise unsupported(instruction, "operands or types do not fit") from error


def bind_guard(instruction: Instruction, machine: Machine) -> Reader | None:
    """Reads the predicate an instruction runs under."""
    if instruction.guard is None:
        return None
    words = machine.registers.words(instruction.guard.register)
    if instruction.guard.negated:
        return lambda active: ~words[active.index]
    return lambda active: words[active.index]


def located(fault: PtxFault, program: Program, instruction: Instruction) -> PtxFault:
    """The same fault, saying where."""
    return type(fault)(f"{fault} ({program.name}, {instruction})")
