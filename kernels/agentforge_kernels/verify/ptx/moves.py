"""mov, selp, setp: moving, choosing and comparing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agentforge_kernels.verify.ptx.machine import (
    Binder,
    Machine,
    elements_of,
    kind_of,
    unsupported,
)
from agentforge_kernels.verify.ptx.program import Instruction, Pair, Vector
from agentforge_kernels.verify.ptx.registers import Active, Handler
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, UNSIGNED, Array, bfloat16_to_float32


def bind_move(instruction: Instruction, machine: Machine) -> Handler:
    """``mov``: a copy, or packing ``{a, b}`` into a wider register and back (PTX ISA, 9.7.9.3)."""
    kind = kind_of(instruction)
    destination, source = instruction.operands
    if isinstance(source, Vector):
        return _bind_pack(instruction, machine, source, kind)
    if isinstance(destination, Vector):
        return _bind_unpack(instruction, machine, destination, kind)
    read = machine.registers.reader(source, kind)
    write = machine.registers.writer(destination, kind)
    return lambda active: write(active, read(active))


def _part_kind(instruction: Instruction, vector: Vector, kind: str) -> str:
    bits = NUMPY_TYPES[kind].itemsize * 8 // len(vector.elements)
    if f"b{bits}" not in NUMPY_TYPES:
        raise unsupported(instruction)
    return f"b{bits}"


def _bind_pack(instruction: Instruction, machine: Machine, source: Vector, kind: str) -> Handler:
    part = _part_kind(instruction, source, kind)
    readers = [machine.registers.reader(element, part) for element in source.elements]
    write = machine.registers.writer(instruction.operands[0], kind)
    wide = UNSIGNED[NUMPY_TYPES[kind].itemsize]

    def pack(active: Active) -> None:
        parts = np.stack([read(active) for read in readers], axis=1)
        write(active, np.ascontiguousarray(parts).view(wide).reshape(-1).view(NUMPY_TYPES[kind]))

    return pack


def _bind_unpack(
    instruction: Instruction, machine: Machine, destination: Vector, kind: str
) -> Handler:
    part = _part_kind(instruction, destination, kind)
    read = machine.registers.reader(instruction.operands[1], kind)
    writers = [machine.registers.writer(element, part) for element in destination.elements]

    def unpack(active: Active) -> None:
        words = np.ascontiguousarray(read(active))
        parts = words.view(NUMPY_TYPES[part]).reshape(len(active), -1).copy()
        for number, write in enumerate(writers):
            write(active, parts[:, number])

    return unpack


def bind_select(instruction: Instruction, machine: Machine) -> Handler:
    """``selp d, a, b, p``: ``p ? a : b``."""
    kind = kind_of(instruction)
    destination, first, second, predicate = instruction.operands
    read_first = machine.registers.reader(first, kind)
    read_second = machine.registers.reader(second, kind)
    read_predicate = machine.registers.reader(predicate, "pred")
    write = machine.registers.writer(destination, kind)
    return lambda active: write(
        active, np.where(read_predicate(active), read_first(active), read_second(active))
    )


Comparison = Callable[[Array, Array], Array]


def _unordered(compare: Comparison) -> Comparison:
    return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)


COMPARISONS: dict[str, Comparison] = {
    "eq": np.equal,
    # IEEE: NaN differs from everything, but PTX's ordered ``ne`` is false for NaN.
    "ne": lambda a, b: np.not_equal(a, b) & (a == a) & (b == b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
    "equ": _unordered(np.equal),
    "neu": _unordered(np.not_equal),
    "ltu": _unordered(np.less),
    "leu": _unordered(np.less_equal),
    "gtu": _unordered(np.greater),
    "geu": _unordered(np.greater_equal),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
"""Comparison operators of ``setp`` (PTX ISA, 9.3.1)."""

COMBINATIONS: dict[str, Comparison] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def bind_compare(instruction: Instruction, machine: Machine) -> Handler:
    """``setp.cmp{.bool}.type p|q, a, b{, c}``; ``q`` gets the negated comparison."""
    kind = kind_of(instruction)
    modifiers = [name for name in instruction.modifiers if name not in ("ftz", kind)]
    if modifiers[0] not in COMPARISONS or kind.endswith("x2"):
        raise unsupported(instruction)
    compare = COMPARISONS[modifiers[0]]
    combine = COMBINATIONS[modifiers[1]] if len(modifiers) > 1 else None
    read_a = machine.registers.reader(instruction.operands[1], kind)
    read_b = machine.registers.reader(instruction.operands[2], kind)
    read_c = machine.registers.reader(instruction.operands[3], "pred") if combine else None
    target = instruction.operands[0]
    both = (target.first, target.second) if isinstance(target, Pair) else elements_of(target)
    writers = [machine.registers.writer(register, "pred") for register in both]
    ordered_kind = _compared_as(kind)

    def compare_values(active: Active) -> None:
        a, b = read_a(active), read_b(active)
        if kind == "bf16":
            a, b = bfloat16_to_float32(a), bfloat16_to_float32(b)
        result = compare(a.view(ordered_kind), b.view(ordered_kind))
        results = [result, ~result]
        if combine is not None and read_c is not None:
            third = read_c(active)
            results = [combine(value, third) for value in results]
        for write, value in zip(writers, results, strict=False):
            write(active, value)

    return compare_values


def _compared_as(kind: str) -> np.dtype[np.generic]:
    return np.dtype(np.float32) if kind == "bf16" else NUMPY_TYPES[kind]


BINDERS: dict[str, Binder] = {"mov": bind_move, "selp": bind_select, "setp": bind_compare}
