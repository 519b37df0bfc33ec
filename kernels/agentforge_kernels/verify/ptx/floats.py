"""Floating-point arithmetic (PTX ISA, 9.7.3 to 9.7.5), rounded to nearest even.

Exact where the hardware is exact: add, sub, mul, fma, div.rn, sqrt.rn, rcp.rn, min, max, neg, abs in
float32 and the 16-bit types. The hardware's approximations (div.full, div.approx, rcp.approx,
sqrt.approx, rsqrt.approx, ex2, lg2, sin, cos, tanh) are computed exactly rounded here; on a device they may
differ by the last bits the manual grants (2 ulp for div.full).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agentforge_kernels.verify.ptx.machine import Binder, Machine, kind_of, unsupported
from agentforge_kernels.verify.ptx.program import Instruction
from agentforge_kernels.verify.ptx.registers import Active, Handler
from agentforge_kernels.verify.ptx.types import (
    NUMPY_TYPES,
    Array,
    bfloat16_to_float32,
    float32_to_bfloat16,
)

SMALLEST_NORMAL = np.float32(2.0**-126)


def fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` of float32 (or narrower) values, not yet rounded to their type.

    The product of two 24-bit mantissas is exact in float64. The sum is rounded *to odd*: whatever was
    lost makes the last bit 1, so that the later rounding to 24 bits or fewer is the only one that
    counts (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).

    Returns:
        float64.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total: Array = product + addend
    # Knuth's two-sum: the exact error of the addition above.
    back = total - product
    error = (product - (total - back)) + (addend - back)
    lost = np.isfinite(total) & (error != 0)
    bits = total.view(np.int64)
    even = bits & 1 == 0
    away = (error > 0) == (total > 0)
    odd = np.where(away, bits + 1, bits - 1)
    # A total of zero with an error cannot be: sums that cancel are exact.
    return np.where(lost & even, odd, bits).view(np.float64)


def round_to(values: Array, kind: str) -> Array:
    """float64 or float32 values rounded once to PTX type ``kind``.

    float64 to bfloat16 goes through a float32 rounded to odd, so that only the last rounding counts.
    """
    if kind != "bf16":
        return values.astype(NUMPY_TYPES[kind])
    if values.dtype == np.float64:
        values = _float32_rounded_to_odd(values)
    return float32_to_bfloat16(values)


def _float32_rounded_to_odd(values: Array) -> Array:
    nearest = values.astype(np.float32)
    bits = nearest.view(np.int32)
    lost = np.isfinite(nearest) & (nearest.astype(np.float64) != values) & (bits & 1 == 0)
    larger = np.abs(values) > np.abs(nearest.astype(np.float64))
    return np.where(lost, np.where(larger, bits + 1, bits - 1), bits).view(np.float32)


def flush(values: Array) -> Array:
    """``.ftz``: subnormal float32 becomes zero of its sign."""
    small = np.abs(values) < SMALLEST_NORMAL
    return np.where(small, np.copysign(np.float32(0), values), values).astype(np.float32)


def minimum(a: Array, b: Array) -> Array:
    """The smaller; the other one if one is NaN; -0 is smaller than +0."""
    return np.where((a == b) & np.signbit(b), b, np.fmin(a, b))


def maximum(a: Array, b: Array) -> Array:
    """The larger; the other one if one is NaN; +0 is larger than -0."""
    return np.where((a == b) & np.signbit(a), b, np.fmax(a, b))


def _in_double(function: Callable[..., Array]) -> Callable[..., Array]:
    """The function computed in float64: exactly rounded for one operation on narrower types.

    float64 has more than twice the bits of float32 plus two, so that rounding twice is rounding once
    for +, -, *, / and the square root (Figueroa, "When is double rounding innocuous?", 1995).
    """
    return lambda *values: function(*[value.astype(np.float64) for value in values])


OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": _in_double(np.add),
    "sub": _in_double(np.subtract),
    "mul": _in_double(np.multiply),
    "fma": fused_multiply_add,
    "mad": fused_multiply_add,
    "div": _in_double(np.divide),
    "min": minimum,
    "max": maximum,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": _in_double(np.sqrt),
    "rsqrt": _in_double(lambda a: 1.0 / np.sqrt(a)),
    "rcp": _in_double(lambda a: 1.0 / a),
    "ex2": _in_double(np.exp2),
    "lg2": _in_double(np.log2),
    "sin": _in_double(np.sin),
    "cos": _in_double(np.cos),
    "tanh": _in_double(np.tanh),
}
ROUNDINGS = {"rn", "full", "approx"}


def bind_float(instruction: Instruction, machine: Machine) -> Handler:
    """Bind a float instruction of any type, packed pairs included.

    Raises:
        UnsupportedInstruction: float64 fma, a directed rounding, or another modifier not known.
    """
    kind = kind_of(instruction)
    modifiers = set(instruction.modifiers) - {kind} - ROUNDINGS
    if modifiers - {"ftz", "sat", "NaN"}:
        raise unsupported(instruction)
    if kind == "f64" and instruction.opcode in ("fma", "mad"):
        raise unsupported(instruction, "a float64 product is not exact in float64")
    operation = OPERATIONS[instruction.opcode]
    if "NaN" in modifiers:
        operation = {"min": np.minimum, "max": np.maximum}[instruction.opcode]
    element = kind.removesuffix("x2")
    readers = [machine.registers.reader(operand, kind) for operand in instruction.operands[1:]]
    write = machine.registers.writer(instruction.operands[0], kind)
    flushes, saturates = "ftz" in modifiers and kind == "f32", "sat" in modifiers

    def run(active: Active) -> None:
        values = [_widen(read(active), kind) for read in readers]
        with np.errstate(all="ignore"):
            if flushes:
                values = [flush(value) for value in values]
            result = operation(*values)
            if saturates:
                result = np.clip(np.nan_to_num(result, nan=0.0), 0.0, 1.0)
            result = round_to(result, element)
            if flushes:
                result = flush(result)
        write(active, np.ascontiguousarray(result).view(NUMPY_TYPES[kind]).reshape(-1))

    return run


def _widen(values: Array, kind: str) -> Array:
    """Register contents as numpy floats; pairs become ``[threads, 2]``."""
    if kind.endswith("x2"):
        part = NUMPY_TYPES[kind.removesuffix("x2")]
        values = np.ascontiguousarray(values).view(part).reshape(-1, 2)
    return bfloat16_to_float32(values) if kind.startswith("bf16") else values


BINDERS: dict[str, Binder] = dict.fromkeys(OPERATIONS, bind_float)
