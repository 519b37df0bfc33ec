"""atom and red on device memory: read, combine and store as one step.

Threads of an instruction take their turns in ascending order; a kernel whose result depends on the
order (float sums, compare-and-swap loops) is right only if its own check allows any.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agentforge_kernels.verify.ptx.machine import Binder, Machine, kind_of, space_of, unsupported
from agentforge_kernels.verify.ptx.program import Instruction
from agentforge_kernels.verify.ptx.registers import Active, Handler
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, Array

COMBINE: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
}


def bind_atomic(instruction: Instruction, machine: Machine) -> Handler:
    """``atom.global.op.type d, [a], b{, c}`` and ``red.global.op.type [a], b``.

    Raises:
        UnsupportedInstruction: Shared memory, another operation, a vector, or a packed or bfloat
            type.
    """
    kind = kind_of(instruction)
    operations = [name for name in instruction.modifiers if name in (*COMBINE, "cas")]
    if (
        space_of(instruction) != "global"
        or len(operations) != 1
        or kind.startswith("bf16")
        or kind.endswith("x2")
        or {"v2", "v4", "v8"} & set(instruction.modifiers)
    ):
        raise unsupported(instruction)
    operation = operations[0]
    returns = instruction.opcode == "atom"
    operands = instruction.operands[1:] if returns else instruction.operands
    read_address = machine.address_reader(operands[0])
    readers = [machine.registers.reader(operand, kind) for operand in operands[1:]]
    write = machine.registers.writer(instruction.operands[0], kind) if returns else None
    numpy_kind = NUMPY_TYPES[kind]

    def combine(old: Array, values: list[Array]) -> Array:
        if operation == "cas":
            return np.where(old == values[0], values[1], old)
        return COMBINE[operation](old, values[0]).astype(numpy_kind)

    def run(active: Active) -> None:
        addresses = read_address(active)
        values = [read(active) for read in readers]
        old = np.empty(active.count, numpy_kind)
        for turn in turns(addresses):
            old[turn] = machine.global_memory.load(addresses[turn], numpy_kind)[:, 0]
            new = combine(old[turn], [value[turn] for value in values])
            machine.global_memory.store(addresses[turn], new[:, None])
        if write is not None:
            write(active, old)

    return run


def turns(addresses: Array) -> list[Array]:
    """Positions grouped so that no address appears twice in a group, order kept within one."""
    order = np.argsort(addresses, kind="stable")
    ordered = addresses[order]
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(starts, np.arange(len(addresses)), 0))
    rank = np.empty(len(addresses), np.int64)
    rank[order] = np.arange(len(addresses)) - first
    return [np.nonzero(rank == number)[0] for number in range(int(rank.max()) + 1)]


BINDERS: dict[str, Binder] = {"atom": bind_atomic, "red": bind_atomic}
