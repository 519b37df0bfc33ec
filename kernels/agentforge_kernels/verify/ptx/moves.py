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
from agentforge_kernels.verify.ptx.program import Instruction, Operand, Pair, Vector
from agentforge_kernels.verify.ptx.registers import Active, Handler
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, Array, bfloat16_to_float32, is_float


def bind_move(instruction: Instruction, machine: Machine) -> Handler:
    """``mov``: a copy, or packing ``{a, b}`` into a wider register, or the reverse."""
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
    part = f"b{NUMPY_TYPES[kind].itemsize * 8 // len(vector.elements)}"
    if part not in NUMPY_TYPES:
        raise unsupported(instruction)
    return part


def _bind_pack(instruction: Instruction, machine: Machine, source: Vector, kind: str) -> Handler:
    part = _part_kind(instruction, source, kind)
    readers = [machine.registers.reader(element, part) for element in source.elements]
    write = machine.registers.writer(instruction.operands[0], kind)

    def pack(active: Active) -> None:
        parts = np.stack([read(active) for read in readers], axis=1)
        write(active, parts.view(NUMPY_TYPES[kind])[:, 0])

    return pack


def _bind_unpack(
    instruction: Instruction, machine: Machine, destination: Vector, kind: str
) -> Handler:
    part = _part_kind(instruction, destination, kind)
    read = machine.registers.reader(instruction.operands[1], kind)
    writers = [machine.registers.writer(element, part) for element in destination.elements]

    def unpack(active: Active) -> None:
        parts = np.array(read(active))[:, None].view(NUMPY_TYPES[part])
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

COMPARISONS: dict[str, Comparison] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def _either_nan(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


def _unordered(compare: Comparison) -> Comparison:
    return lambda a, b: compare(a, b) | _either_nan(a, b)


FLOAT_COMPARISONS: dict[str, Comparison] = {
    **{name: COMPARISONS[name] for name in ("eq", "lt", "le", "gt", "ge")},
    # NaN differs from everything in IEEE 754, but PTX's ordered ``ne`` is false for it.
    "ne": lambda a, b: np.not_equal(a, b) & ~_either_nan(a, b),
    **{f"{name}u": _unordered(COMPARISONS[name]) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "num": lambda a, b: ~_either_nan(a, b),
    "nan": _either_nan,
}
"""Comparison operators of ``setp`` on floats (PTX ISA, "Floating Point Comparisons")."""

COMBINATIONS: dict[str, Comparison] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def bind_compare(instruction: Instruction, machine: Machine) -> Handler:
    """``setp.cmp{.bool}.type p|q, a, b{, c}``; ``q`` gets the negated comparison."""
    kind = kind_of(instruction)
    comparison, *combination = (name for name in instruction.modifiers if name not in ("ftz", kind))
    known = FLOAT_COMPARISONS if is_float(kind) else COMPARISONS
    if comparison not in known or kind.endswith("x2"):
        raise unsupported(instruction)
    compare = known[comparison]
    combine = COMBINATIONS[combination[0]] if combination else None
    destination, *sources = instruction.operands
    read_a, read_b = (machine.registers.reader(operand, kind) for operand in sources[:2])
    read_c = machine.registers.reader(sources[2], "pred") if combine else None
    writers = [machine.registers.writer(register, "pred") for register in _both(destination)]

    def compare_values(active: Active) -> None:
        a, b = read_a(active), read_b(active)
        if kind == "bf16":
            a, b = bfloat16_to_float32(a), bfloat16_to_float32(b)
        result = compare(a, b)
        results = [result, ~result]
        if combine is not None and read_c is not None:
            third = read_c(active)
            results = [combine(value, third) for value in results]
        for write, value in zip(writers, results, strict=False):
            write(active, value)

    return compare_values


def _both(destination: Operand) -> tuple[Operand, ...]:
    if isinstance(destination, Pair):
        return destination.first, destination.second
    return elements_of(destination)


BINDERS: dict[str, Binder] = {"mov": bind_move, "selp": bind_select, "setp": bind_compare}
