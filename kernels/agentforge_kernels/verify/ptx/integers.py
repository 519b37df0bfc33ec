"""Integer arithmetic, logic and shifts; everything wraps (PTX ISA, "Integer Arithmetic")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agentforge_kernels.verify.ptx.machine import Binder, Machine, kind_of, unsupported
from agentforge_kernels.verify.ptx.program import Instruction
from agentforge_kernels.verify.ptx.registers import Active, Handler
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, Array

Operation = Callable[..., Array]

WIDER = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}


def bind_elementwise(
    instruction: Instruction, machine: Machine, operation: Operation, kinds: tuple[str, ...]
) -> Handler:
    """``d = operation(a, b, ...)``.

    Args:
        instruction: Operands ``d, a, b, ...``.
        machine: Where they live.
        operation: On numpy arrays of the kinds' types.
        kinds: PTX types of ``d, a, b, ...``.

    Raises:
        UnsupportedInstruction: Another number of operands.
    """
    if len(instruction.operands) != len(kinds):
        raise unsupported(instruction, f"expected {len(kinds)} operands")
    sources = zip(instruction.operands[1:], kinds[1:], strict=True)
    readers = [machine.registers.reader(operand, kind) for operand, kind in sources]
    write = machine.registers.writer(instruction.operands[0], kinds[0])
    result_type = NUMPY_TYPES[kinds[0]]

    def run(active: Active) -> None:
        values = operation(*[read(active) for read in readers])
        write(active, values.astype(result_type, copy=False))

    return run


def truncated_divide(a: Array, b: Array) -> Array:
    """Quotient rounded towards zero; all ones for a zero divisor (PTX leaves it open)."""
    divisor = np.where(b == 0, b.dtype.type(1), b)
    floor = a // divisor
    # The floor of an inexact negative quotient is one below the truncated one.
    up = (floor * divisor != a) & ((a < 0) != (divisor < 0))
    return np.where(b == 0, ~np.zeros_like(a), floor + up.astype(a.dtype))


def remainder(a: Array, b: Array) -> Array:
    """Remainder with the sign of the dividend; the dividend for a zero divisor."""
    return np.where(b == 0, a, a - truncated_divide(a, b) * b)


def multiply_high(a: Array, b: Array) -> Array:
    """Upper half of the full product."""
    bits = a.dtype.itemsize * 8
    if bits < 64:
        wide = np.dtype(f"{a.dtype.kind}{a.dtype.itemsize * 2}")
        product: Array = (a.astype(wide) * b.astype(wide)) >> wide.type(bits)
        return product.astype(a.dtype)
    high = _unsigned_multiply_high(a.view(np.uint64), b.view(np.uint64))
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, b.view(np.uint64), np.uint64(0))
        high = high - np.where(b < 0, a.view(np.uint64), np.uint64(0))
    return high.view(a.dtype)


def _unsigned_multiply_high(a: Array, b: Array) -> Array:
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_low, a_high, b_low, b_high = a & mask, a >> half, b & mask, b >> half
    middle = a_high * b_low + ((a_low * b_low) >> half)
    other = a_low * b_high + (middle & mask)
    result: Array = a_high * b_high + (middle >> half) + (other >> half)
    return result


def shift_left(a: Array, count: Array) -> Array:
    """``a << count``; 0 from the width on."""
    bits = a.dtype.itemsize * 8
    amount = np.minimum(count, bits - 1).astype(a.dtype)
    return np.where(count >= bits, a.dtype.type(0), a << amount)


def shift_right(a: Array, count: Array) -> Array:
    """``a >> count``, filled with the sign for signed types; saturates at the width."""
    bits = a.dtype.itemsize * 8
    shifted = a >> np.minimum(count, bits - 1).astype(a.dtype)
    if a.dtype.kind == "i":
        return shifted
    return np.where(count >= bits, a.dtype.type(0), shifted)


def bits_of(a: Array) -> Array:
    """Single bits ``[threads, width]``, the lowest first."""
    octets = np.ascontiguousarray(a)[:, None].view(np.uint8)
    return np.unpackbits(octets, axis=1, bitorder="little")


def count_ones(a: Array) -> Array:
    """Bits that are set."""
    return bits_of(a).sum(axis=1)


def count_leading_zeros(a: Array) -> Array:
    """Zeros above the highest set bit; the width for 0."""
    falling = bits_of(a)[:, ::-1]
    return np.where(a == 0, falling.shape[1], falling.argmax(axis=1))


def dot_four_bytes(a: Array, b: Array, c: Array) -> Array:
    """``c`` plus the sum of products of bytes: ``a`` and ``b`` are ``[threads, 4]``."""
    total: Array = (a.astype(np.int32) * b.astype(np.int32)).sum(axis=1, dtype=c.dtype)
    return total + c


_SIMPLE: dict[str, Operation] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "min": np.minimum,
    "max": np.maximum,
    "div": truncated_divide,
    "rem": remainder,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_UNARY: dict[str, Operation] = {
    "abs": lambda a: np.where(a < 0, -a, a),
    "neg": lambda a: -a,
    "not": np.invert,
}


def bind_integer(instruction: Instruction, machine: Machine) -> Handler:
    """Instructions whose operands all have the instruction's type, and the multiplications.

    Raises:
        UnsupportedInstruction: Saturation, carries, or an opcode that is not integer arithmetic.
    """
    opcode, kind = instruction.opcode, kind_of(instruction)
    if {"sat", "cc"} & set(instruction.modifiers):
        raise unsupported(instruction)
    if opcode in _SIMPLE:
        return bind_elementwise(instruction, machine, _SIMPLE[opcode], (kind,) * 3)
    if opcode in _UNARY:
        return bind_elementwise(instruction, machine, _UNARY[opcode], (kind,) * 2)
    if opcode in ("mul", "mad"):
        return _bind_multiply(instruction, machine, kind)
    if opcode in ("shl", "shr"):
        shift = shift_left if opcode == "shl" else shift_right
        return bind_elementwise(instruction, machine, shift, (kind, kind, "u32"))
    if opcode in ("clz", "popc"):
        count: Operation = count_leading_zeros if opcode == "clz" else count_ones
        return bind_elementwise(instruction, machine, count, ("u32", kind))
    if opcode == "dp4a":
        return _bind_dp4a(instruction, machine)
    raise unsupported(instruction)


def _bind_multiply(instruction: Instruction, machine: Machine, kind: str) -> Handler:
    adds = instruction.opcode == "mad"
    if "wide" in instruction.modifiers:
        wide = WIDER[kind]
        wide_type = NUMPY_TYPES[wide]

        def multiply(a: Array, b: Array) -> Array:
            product: Array = a.astype(wide_type) * b.astype(wide_type)
            return product

        result = wide
    elif "hi" in instruction.modifiers:
        multiply, result = multiply_high, kind
    elif "lo" in instruction.modifiers:
        multiply, result = (lambda a, b: a * b), kind
    else:
        raise unsupported(instruction)
    if not adds:
        return bind_elementwise(instruction, machine, multiply, (result, kind, kind))
    return bind_elementwise(
        instruction, machine, lambda a, b, c: multiply(a, b) + c, (result, kind, kind, result)
    )


def _bind_dp4a(instruction: Instruction, machine: Machine) -> Handler:
    byte = {"s32": np.int8, "u32": np.uint8}
    left, right = (byte[kind] for kind in instruction.modifiers)
    result = "s32" if "s32" in instruction.modifiers else "u32"

    def operation(a: Array, b: Array, c: Array) -> Array:
        return dot_four_bytes(
            np.ascontiguousarray(a).view(left).reshape(-1, 4),
            np.ascontiguousarray(b).view(right).reshape(-1, 4),
            c,
        )

    return bind_elementwise(instruction, machine, operation, (result, "b32", "b32", result))


BINDERS: dict[str, Binder] = dict.fromkeys(
    (*_SIMPLE, *_UNARY, "mul", "mad", "shl", "shr", "clz", "popc", "dp4a"), bind_integer
)
