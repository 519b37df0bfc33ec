"""Floating-point arithmetic, rounded to nearest even (PTX ISA, "Floating Point Instructions").

Exact where the hardware is exact: add, sub, mul, fma, div.rn, sqrt.rn, rcp.rn, min, max, neg, abs
in float32, float64 and the 16-bit types. The hardware's approximations (div.full, div.approx,
rcp.approx, sqrt.approx, rsqrt.approx, ex2, lg2) are computed to the last bit or nearly here; on a
device they may differ by the last bits the manual grants (2 ulp for div.full). Payloads of NaNs are
not the hardware's.
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
    is_float,
)

SMALLEST_NORMAL = np.float32(2.0**-126)


def fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` of float32 (or narrower) values, not yet rounded to their type.

    The product of two 24-bit mantissas is exact in float64. The sum is rounded *to odd*: whatever
    was lost makes the last bit 1, so that the later rounding to 24 bits or fewer is the only one
    that counts (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).

    Returns:
        float64.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total: Array = product + addend
    # Knuth's two-sum: the exact error of the addition above.
    back = total - product
    error = (product - (total - back)) + (addend - back)
    if not error.any():
        return total
    lost = np.isfinite(total) & (error != 0)
    bits = total.view(np.int64)
    even = bits & 1 == 0
    away = (error > 0) == (total > 0)
    odd = np.where(away, bits + 1, bits - 1)
    # A total of zero with an error cannot be: sums that cancel are exact.
    return np.where(lost & even, odd, bits).view(np.float64)


def round_to(values: Array, kind: str) -> Array:
    """float64 or float32 values rounded once to PTX type ``kind``.

    float64 to bfloat16 goes through a float32 rounded to odd: only the last rounding counts.
    """
    if kind != "bf16":
        return values.astype(NUMPY_TYPES[kind], copy=False)
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
    return np.where(small, np.copysign(values.dtype.type(0), values), values)


def saturate(values: Array) -> Array:
    """``.sat``: clamped to [0, 1]; NaN becomes 0."""
    return np.where(np.isnan(values), values.dtype.type(0), np.clip(values, 0, 1))


def minimum(a: Array, b: Array) -> Array:
    """The smaller; the other one if one is NaN; -0 is smaller than +0."""
    return np.where(a == b, np.where(np.signbit(a), a, b), np.fmin(a, b))


def maximum(a: Array, b: Array) -> Array:
    """The larger; the other one if one is NaN; +0 is larger than -0."""
    return np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b))


def _either_nan(choose: Callable[..., Array]) -> Callable[..., Array]:
    """``min.NaN`` and ``max.NaN``: NaN if one is."""
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), a + b, choose(a, b))


# Rounded once: float32 and float64 by numpy, float16 by numpy's way over float32 and bfloat16 by
# ours over float64, where the intermediate has more than twice the bits plus two (Figueroa, "When
# is double rounding innocuous?", 1995).
OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "fma": fused_multiply_add,
    "div": np.divide,
    "min": minimum,
    "max": maximum,
    "min.NaN": _either_nan(minimum),
    "max.NaN": _either_nan(maximum),
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1.0 / np.sqrt(a.astype(np.float64)),
    "rcp": np.reciprocal,
    "ex2": lambda a: np.exp2(a.astype(np.float64)),
    "lg2": lambda a: np.log2(a.astype(np.float64)),
}
ROUNDINGS = {"rn", "full", "approx"}


def bind_float(instruction: Instruction, machine: Machine) -> Handler:
    """Bind a float instruction of any type, packed pairs included.

    Raises:
        UnsupportedInstruction: float64 fma, a directed rounding, or another modifier not known.
    """
    kind = kind_of(instruction)
    modifiers = set(instruction.modifiers) - {kind} - ROUNDINGS
    operation = OPERATIONS.get(instruction.opcode + ".NaN" * ("NaN" in modifiers))
    if operation is None or not is_float(kind) or modifiers - {"ftz", "sat", "NaN"}:
        raise unsupported(instruction)
    if kind == "f64" and instruction.opcode == "fma":
        raise unsupported(instruction, "a float64 product is not exact in float64")
    element = kind.removesuffix("x2")
    readers = [machine.registers.reader(operand, kind) for operand in instruction.operands[1:]]
    write = machine.registers.writer(instruction.operands[0], kind)
    flushes, saturates = "ftz" in modifiers and kind == "f32", "sat" in modifiers

    def run(active: Active) -> None:
        values = [_unpacked(read(active), kind) for read in readers]
        if flushes:
            values = [flush(value) for value in values]
        result = operation(*values)
        if saturates:
            result = saturate(result)
        result = round_to(result, element)
        if flushes:
            result = flush(result)
        write(active, result.view(NUMPY_TYPES[kind]).reshape(-1))

    return run


def _unpacked(values: Array, kind: str) -> Array:
    """Register contents as numpy floats; pairs become ``[threads, 2]``."""
    if kind.endswith("x2"):
        part = NUMPY_TYPES[kind.removesuffix("x2")]
        values = np.ascontiguousarray(values)[:, None].view(part)
    return bfloat16_to_float32(values).astype(np.float64) if kind.startswith("bf16") else values


BINDERS: dict[str, Binder] = dict.fromkeys(
    (name for name in OPERATIONS if "." not in name), bind_float
)
