"""Instructions in which the threads of a warp take part together: shfl, redux, bar.warp."""

from __future__ import annotations

import numpy as np

from agentforge_kernels.verify.ptx.faults import Divergence
from agentforge_kernels.verify.ptx.machine import (
    WARP,
    Binder,
    Machine,
    kind_of,
    unsupported,
    whole_warp_check,
)
from agentforge_kernels.verify.ptx.program import Instruction, Pair
from agentforge_kernels.verify.ptx.registers import Active, Handler
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, Array


def shuffle_sources(mode: str, lane: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Lane each lane reads from, and whether that lane is in range (PTX ISA, "shfl.sync").

    Args:
        mode: ``up``, ``down``, ``bfly`` or ``idx``.
        lane: 0..31.
        b: Distance, mask or index.
        c: Clamp in bits 0-4, segment mask in bits 8-12.
    """
    distance = b.astype(np.int64) & 31
    clamp, segment = c.astype(np.int64) & 31, (c.astype(np.int64) >> 8) & 31
    last = (lane & segment) | (clamp & ~segment)
    if mode == "up":
        source = lane - distance
        inside = source >= last
    else:
        source = {
            "down": lane + distance,
            "bfly": lane ^ distance,
            "idx": (lane & segment) | (distance & ~segment),
        }[mode]
        inside = source <= last
    return np.where(inside, source, lane), inside


def bind_shuffle(instruction: Instruction, machine: Machine) -> Handler:
    """``shfl.sync.mode.b32 d|p, a, b, c, membermask``."""
    mode = instruction.modifiers[1]
    destination, source, b, c, mask = instruction.operands
    check = whole_warp_check(instruction, mask, machine)
    read, read_b, read_c = (machine.registers.reader(operand, "b32") for operand in (source, b, c))
    value, in_range = destination, None
    if isinstance(destination, Pair):
        value, in_range = destination.first, destination.second
    write = machine.registers.writer(value, "b32")
    write_inside = machine.registers.writer(in_range, "pred") if in_range else None

    def shuffle(active: Active) -> None:
        check(active)
        lane = machine.lane[active.index]
        sources, inside = shuffle_sources(mode, lane, read_b(active), read_c(active))
        warp_start = np.arange(active.count) - lane
        write(active, read(active)[warp_start + sources])
        if write_inside is not None:
            write_inside(active, inside)

    return shuffle


REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def bind_reduce(instruction: Instruction, machine: Machine) -> Handler:
    """``redux.sync.op.type d, a, membermask``: one value for all threads of the warp (sm_80+)."""
    kind, operation = kind_of(instruction), instruction.modifiers[1]
    if operation not in REDUCTIONS or kind == "f32":
        raise unsupported(instruction)
    destination, source, mask = instruction.operands
    check = whole_warp_check(instruction, mask, machine)
    read = machine.registers.reader(source, kind)
    write = machine.registers.writer(destination, kind)

    def reduce(active: Active) -> None:
        check(active)
        values = read(active).reshape(-1, WARP)
        total = REDUCTIONS[operation].reduce(values, axis=1, dtype=NUMPY_TYPES[kind])
        write(active, np.repeat(total, WARP))

    return reduce


def bind_barrier_of_warp(instruction: Instruction, machine: Machine) -> Handler:
    """``bar.warp.sync mask``: the threads of a warp run in lock step here, so only presence counts.

    The other forms of ``bar`` stop threads: see ``control``.

    Raises:
        Divergence: (when executed) a thread named by the mask is missing.
    """
    read_mask = machine.registers.reader(instruction.operands[0], "b32")
    lanes = np.arange(WARP, dtype=np.uint32)

    def meet(active: Active) -> None:
        present = np.zeros(machine.threads, np.bool_)
        present[active.threads] = True
        here = present.reshape(-1, WARP)[machine.warp[active.index]]
        wanted = (read_mask(active)[:, None] >> lanes) & np.uint32(1) == 1
        if bool((wanted & ~here).any()):
            raise Divergence(f"{instruction.mnemonic}: a thread named by the mask is missing")

    return meet


BINDERS: dict[str, Binder] = {
    "shfl": bind_shuffle,
    "redux": bind_reduce,
    "bar": bind_barrier_of_warp,
}
