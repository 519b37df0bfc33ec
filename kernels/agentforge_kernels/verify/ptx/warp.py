"""Instructions in which the threads of a warp take part together: shfl, vote, redux, elect, bar.warp."""

from __future__ import annotations

import numpy as np

from agentforge_kernels.verify.ptx.faults import Divergence
from agentforge_kernels.verify.ptx.machine import (
    WARP,
    Binder,
    Machine,
    kind_of,
    require_whole_warps,
    unsupported,
)
from agentforge_kernels.verify.ptx.program import Immediate, Instruction, Operand, Pair
from agentforge_kernels.verify.ptx.registers import Active, Handler
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, Array

FULL_MASK = 0xFFFFFFFF


def _require_full_mask(instruction: Instruction, mask: Operand) -> None:
    if not isinstance(mask, Immediate) or mask.bits & FULL_MASK != FULL_MASK:
        raise unsupported(instruction, "only the mask of all 32 threads is known")


def shuffle_sources(mode: str, lane: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Lane each lane reads from, and whether that lane is in range (PTX ISA, 9.7.9.6).

    Args:
        mode: ``up``, ``down``, ``bfly`` or ``idx``.
        lane: 0..31.
        b: Distance, mask or index.
        c: Clamp in bits 0-4, segment mask in bits 8-12.
    """
    distance = b.astype(np.int64) & 31
    clamp, segment = c.astype(np.int64) & 31, (c.astype(np.int64) >> 8) & 31
    last = (lane & segment) | (clamp & ~segment)
    first = lane & segment
    if mode == "up":
        source = lane - distance
        inside = source >= last
    else:
        source = {
            "down": lane + distance,
            "bfly": lane ^ distance,
            "idx": first | (distance & ~segment),
        }[mode]
        inside = source <= last
    return np.where(inside, source, lane), inside


def bind_shuffle(instruction: Instruction, machine: Machine) -> Handler:
    """``shfl.sync.mode.b32 d|p, a, b, c, membermask``."""
    mode = instruction.modifiers[1]
    destination, source, b, c, mask = instruction.operands
    _require_full_mask(instruction, mask)
    read, read_b, read_c = (machine.registers.reader(operand, "b32") for operand in (source, b, c))
    value_register = destination.first if isinstance(destination, Pair) else destination
    write = machine.registers.writer(value_register, "b32")
    write_inside = (
        machine.registers.writer(destination.second, "pred")
        if isinstance(destination, Pair)
        else None
    )

    def shuffle(active: Active) -> None:
        require_whole_warps(active, instruction)
        lane = machine.lane[active.index]
        sources, inside = shuffle_sources(mode, lane, read_b(active), read_c(active))
        values = read(active).reshape(-1, WARP)
        write(active, np.take_along_axis(values, sources.reshape(-1, WARP), axis=1).reshape(-1))
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
    kind = kind_of(instruction)
    _require_full_mask(instruction, instruction.operands[2])
    if instruction.modifiers[1] not in REDUCTIONS or kind == "f32":
        raise unsupported(instruction)
    operation = REDUCTIONS[instruction.modifiers[1]]
    read = machine.registers.reader(instruction.operands[1], kind)
    write = machine.registers.writer(instruction.operands[0], kind)

    def reduce(active: Active) -> None:
        require_whole_warps(active, instruction)
        values = read(active).reshape(-1, WARP)
        total = operation.reduce(values, axis=1, dtype=NUMPY_TYPES[kind])
        write(active, np.repeat(total, WARP))

    return reduce


def bind_vote(instruction: Instruction, machine: Machine) -> Handler:
    """``vote.sync.{all,any,uni}.pred`` and ``vote.sync.ballot.b32``."""
    mode = instruction.modifiers[1]
    destination, predicate, mask = instruction.operands
    _require_full_mask(instruction, mask)
    if mode not in ("all", "any", "uni", "ballot"):
        raise unsupported(instruction)
    read = machine.registers.reader(predicate, "pred")
    write = machine.registers.writer(destination, "b32" if mode == "ballot" else "pred")
    weights = np.uint32(1) << np.arange(WARP, dtype=np.uint32)

    def vote(active: Active) -> None:
        require_whole_warps(active, instruction)
        votes = read(active).reshape(-1, WARP)
        if mode == "ballot":
            result = (votes * weights).sum(axis=1, dtype=np.uint32)
        elif mode == "uni":
            result = votes.all(axis=1) | ~votes.any(axis=1)
        else:
            result = votes.all(axis=1) if mode == "all" else votes.any(axis=1)
        write(active, np.repeat(result, WARP))

    return vote


def bind_elect(instruction: Instruction, machine: Machine) -> Handler:
    """``elect.sync d|p, membermask``: one thread of the warp, here the first."""
    destination, mask = instruction.operands
    _require_full_mask(instruction, mask)
    if not isinstance(destination, Pair):
        raise unsupported(instruction)
    write = machine.registers.writer(destination.first, "b32")
    write_elected = machine.registers.writer(destination.second, "pred")

    def elect(active: Active) -> None:
        require_whole_warps(active, instruction)
        write(active, np.zeros(len(active), np.uint32))
        write_elected(active, machine.lane[active.index] == 0)

    return elect


def bind_barrier_of_warp(instruction: Instruction, machine: Machine) -> Handler:
    """``bar.warp.sync mask``: the threads of a warp run in lock step here, so only presence counts.

    Raises:
        Divergence: (when executed) a thread named by the mask is missing.
    """
    read_mask = machine.registers.reader(instruction.operands[0], "u32")

    def meet(active: Active) -> None:
        masks = read_mask(active)
        present = np.zeros(machine.threads, np.bool_)
        present[active.threads] = True
        rows = present.reshape(-1, WARP)[machine.warp[active.index]]
        wanted = (masks[:, None] >> np.arange(WARP, dtype=np.uint32)) & np.uint32(1) == 1
        if bool((wanted & ~rows).any()):
            raise Divergence(
                f"{instruction.mnemonic}, line {instruction.line}: a thread is missing"
            )

    return meet


BINDERS: dict[str, Binder] = {
    "shfl": bind_shuffle,
    "redux": bind_reduce,
    "vote": bind_vote,
    "elect": bind_elect,
}
