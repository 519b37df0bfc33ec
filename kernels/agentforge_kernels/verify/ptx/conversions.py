"""cvt: between integers, floats and the packed 16-bit pairs (PTX ISA, 9.7.9.22)."""

from __future__ import annotations

import numpy as np

from agentforge_kernels.verify.ptx.floats import flush, round_to
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
    options = [name for name in instruction.modifiers if name not in NUMPY_TYPES]
    if len(kinds) != 2 or set(options) - {"rn", "ftz", "sat", *TO_INTEGER}:
        raise unsupported(instruction)
    destination, source = kinds
    if destination.endswith("x2"):
        return _bind_pack(instruction, machine, destination, source, options)
    if source.endswith("x2"):
        raise unsupported(instruction)
    read = machine.registers.reader(instruction.operands[1], source)
    write = machine.registers.writer(instruction.operands[0], destination)

    def convert(active: Active) -> None:
        with np.errstate(all="ignore"):
            write(active, convert_values(read(active), source, destination, options))

    return convert


def convert_values(values: Array, source: str, destination: str, options: list[str]) -> Array:
    """Values of one PTX type as another."""
    if is_float(source):
        if source == "bf16":
            values = bfloat16_to_float32(values)
        if "ftz" in options and source == "f32":
            values = flush(values)
        rounding = next((TO_INTEGER[name] for name in options if name in TO_INTEGER), None)
        if not is_float(destination):
            return _float_to_integer(values, destination, rounding or np.trunc)
        if rounding is not None:
            values = rounding(values)
        if "sat" in options:
            values = np.clip(np.nan_to_num(values, nan=0.0), 0.0, 1.0)
        return round_to(values, destination)
    if is_float(destination):
        # 64-bit integers do not fit float64; the narrower ones do, exactly.
        exact = values if values.dtype.itemsize == 8 else values.astype(np.float64)
        return (
            exact.astype(NUMPY_TYPES[destination])
            if destination != "bf16"
            else round_to(exact.astype(np.float64), "bf16")
        )
    if "sat" in options:
        limits = np.iinfo(NUMPY_TYPES[destination])
        return _clip_integer(values, int(limits.min), int(limits.max), NUMPY_TYPES[destination])
    return values.astype(NUMPY_TYPES[destination])


def _clip_integer(values: Array, low: int, high: int, kind: np.dtype[np.generic]) -> Array:
    own = np.iinfo(values.dtype)
    return values.clip(max(low, int(own.min)), min(high, int(own.max))).astype(kind)


def _float_to_integer(values: Array, destination: str, rounding: np.ufunc) -> Array:
    """Rounded and clamped to the type's range; NaN is 0 (PTX ISA, 9.7.9.22, "Integer Notes")."""
    kind = NUMPY_TYPES[destination]
    limits = np.iinfo(kind)
    wide = rounding(values.astype(np.float64))
    wide = np.where(np.isnan(wide), 0.0, wide)
    inside = np.clip(wide, float(limits.min), float(limits.max))
    result = np.where(inside >= float(limits.max), 0.0, inside).astype(kind)
    # float(max) of a 64-bit type is max + 1; the conversion of that is undefined in numpy.
    return np.where(inside >= float(limits.max), kind.type(limits.max), result)


def _bind_pack(
    instruction: Instruction, machine: Machine, destination: str, source: str, options: list[str]
) -> Handler:
    if source != "f32" or len(instruction.operands) != 3 or set(options) - {"rn"}:
        raise unsupported(instruction)
    element = destination.removesuffix("x2")
    read_high = machine.registers.reader(instruction.operands[1], source)
    read_low = machine.registers.reader(instruction.operands[2], source)
    write = machine.registers.writer(instruction.operands[0], "b32")

    def convert(active: Active) -> None:
        with np.errstate(all="ignore"):
            halves = [round_to(read(active), element) for read in (read_low, read_high)]
        write(active, np.stack(halves, axis=1).view(np.uint32).reshape(-1))

    return convert


BINDERS: dict[str, Binder] = {"cvt": bind_convert}
