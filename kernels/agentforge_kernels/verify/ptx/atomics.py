"""atom and red: read, combine and store as one step.

Threads of an instruction take their turns in ascending order; a kernel whose result depends on the order
(float sums, compare-and-swap loops) is right only if its own check allows any.
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
    """``atom.space.op.type d, [a], b{, c}`` and ``red.space.op.type [a], b``.

    Raises:
        UnsupportedInstruction: Another operation, a vector, or a 16-bit bfloat type.
    """
    kind, space = kind_of(instruction), space_of(instruction)
    operations = [name for name in instruction.modifiers if name in (*COMBINE, "cas")]
    if len(operations) != 1 or kind.startswith("bf16") or kind.endswith("x2"):
        raise unsupported(instruction)
    operation = operations[0]
    returns = instruction.opcode == "atom"
    operands = instruction.operands[1:] if returns else instruction.operands
    read_address = machine.address_reader(operands[0])
    readers = [machine.registers.reader(operand, kind) for operand in operands[1:]]
    write = machine.registers.writer(instruction.operands[0], kind) if returns else None
    numpy_kind = NUMPY_TYPES[kind]

    def swap(addresses: Array, values: list[Array], threads: Array) -> Array:
        """One turn: at most one thread an address. Returns what was there."""
        if space == "global":
            offsets = machine.global_memory.locate(addresses, numpy_kind.itemsize)
            old = machine.global_memory.load(offsets, numpy_kind)
        else:
            blocks = machine.block[threads]
            offsets = machine.shared.locate(addresses, blocks, numpy_kind.itemsize)
            old = machine.shared.load(offsets, numpy_kind)
        with np.errstate(all="ignore"):
            if operation == "cas":
                new = np.where(old == values[0], values[1], old)
            else:
                new = COMBINE[operation](old, values[0])
        memory = machine.global_memory if space == "global" else machine.shared
        memory.store(offsets, new.astype(numpy_kind))
        return old

    def run(active: Active) -> None:
        addresses = read_address(active)
        values = [read(active) for read in readers]
        places = addresses
        if space == "shared":
            places = addresses + (machine.block[active.index].astype(np.uint64) << np.uint64(32))
        old = np.empty(len(active), numpy_kind)
        for turn in turns(places):
            turn_values = [value[turn] for value in values]
            old[turn] = swap(addresses[turn], turn_values, active.threads[turn])
        if write is not None:
            write(active, old)

    return run


def turns(places: Array) -> list[Array]:
    """Positions grouped so that no place appears twice in a group, order kept within a place."""
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(starts, np.arange(len(places)), 0))
    rank = np.empty(len(places), np.int64)
    rank[order] = np.arange(len(places)) - first
    return [np.nonzero(rank == number)[0] for number in range(int(rank.max(initial=-1)) + 1)]


BINDERS: dict[str, Binder] = {"atom": bind_atomic, "red": bind_atomic}
