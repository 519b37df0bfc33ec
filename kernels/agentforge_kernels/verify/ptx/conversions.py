"""cvt: between integers, floats and packed 16-bit pairs (PTX ISA, "Data Movement: cvt")."""

from __future__ import annotations

from typing import Any

import numpy as np

from agentforge_kernels.verify.ptx.floats import flush, round_to, saturate
from agentforge_kernels.verify.ptx.machine import Binder, Machine, unsupported
from agentforge_kernels.verify.ptx.program import Instruction
from agentforge_kernels.verify.ptx.registers import Active, Handler
from agentforge_kernels.verify.ptx.types import (
    NUMPY_TYPES,
    Array,
    bfloat16_to_float32,
    is_float,
)

TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def bind_convert(instruction: Instruction, machine: Machine) -> Handler:
    """``cvt{.rounding}{.ftz}{.sat}.dtype.atype d, a``; pairs: ``cvt.rn.f16x2.f32 d, high, low``.

    Raises:
        UnsupportedInstruction: A rounding or a type that is not implemented.
    """
    kinds = [name for name in instruction.modifiers if name in NUMPY_TYPES]
    options = {name for name in instruction.modifiers if name not in NUMPY_TYPES}
    if len(kinds) != 2 or options - {"rn", "ftz", "sat", *TO_INTEGER}:
        raise unsupported(instruction)
    destination, source = kinds
    if destination.endswith("x2"):
        return _bind_pack(instruction, machine, destination, source, options)
    if source.endswith("x2") or (source in ("s64", "u64") and destination in ("f16", "bf16")):
        raise unsupported(instruction)
    read = machine.registers.reader(instruction.operands[1], source)
    write = machine.registers.writer(instruction.operands[0], destination)

    def convert(active: Active) -> None:
        write(active, converted(read(active), source, destination, options))

    return convert


def converted(values: Array, source: str, destination: str, options: set[str]) -> Array:
    """Values of one PTX type as another."""
    if not is_float(source):
        if is_float(destination):
            # Narrower integers fit float64 exactly; numpy rounds 64-bit ones itself, once.
            exact = values if values.dtype.itemsize == 8 else values.astype(np.float64)
            return round_to(exact, destination)
        kind = NUMPY_TYPES[destination]
        return (_clamped(values, kind) if "sat" in options else values).astype(kind)
    if source == "bf16":
        values = bfloat16_to_float32(values)
    if "ftz" in options and source == "f32":
        values = flush(values)
    rounding = next((TO_INTEGER[name] for name in options if name in TO_INTEGER), None)
    if rounding is not None:
        values = rounding(values)
    if not is_float(destination):
        return _to_integer(values, source, destination)
    return round_to(saturate(values) if "sat" in options else values, destination)


def _clamped(values: Array, kind: np.dtype[Any]) -> Array:
    """Integers within the range of another integer type."""
    own, other = np.iinfo(values.dtype), np.iinfo(kind)
    return values.clip(max(int(other.min), int(own.min)), min(int(other.max), int(own.max)))


def _to_integer(values: Array, source: str, destination: str) -> Array:
    """Whole numbers clamped to the type's range.

    NaN is 0, or only the top bit with a 64-bit type on either side (PTX ISA, cvt, "Integer Notes").
    """
    kind = NUMPY_TYPES[destination]
    limits = np.iinfo(kind)
    wide = values.astype(np.float64)
    # float(max) of a 64-bit type is max + 1: compare with it, do not convert it.
    above, below = wide >= float(limits.max), wide <= float(limits.min)
    inside = np.where(above | below | np.isnan(wide), 0.0, wide).astype(kind)
    result = np.where(above, kind.type(limits.max), inside)
    result = np.where(below, kind.type(limits.min), result)
    top_bit = source == "f64" or kind.itemsize == 8
    not_a_number = np.array([int(top_bit) << 8 * kind.itemsize - 1], np.uint64)
    return np.where(np.isnan(wide), not_a_number.astype(kind), result)


def _bind_pack(
    instruction: Instruction, machine: Machine, destination: str, source: str, options: set[str]
) -> Handler:
    if source != "f32" or len(instruction.operands) != 3 or options != {"rn"}:
        raise unsupported(instruction)
    element = destination.removesuffix("x2")
    high, low = (machine.registers.reader(part, source) for part in instruction.operands[1:])
    write = machine.registers.writer(instruction.operands[0], "b32")

    def convert(active: Active) -> None:
        pair = round_to(np.stack([low(active), high(active)], axis=1), element)
        write(active, pair.view(np.uint32)[:, 0])

    return convert


BINDERS: dict[str, Binder] = {"cvt": bind_convert}
