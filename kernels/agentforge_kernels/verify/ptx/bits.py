"""Bit fields, permutations and logic by table: bfe, bfi, brev, prmt, lop3, shf."""

from __future__ import annotations

import numpy as np

from agentforge_kernels.verify.ptx.integers import (
    bind_elementwise,
    bits_of,
    shift_left,
    shift_right,
)
from agentforge_kernels.verify.ptx.machine import Binder, Machine, kind_of, unsupported
from agentforge_kernels.verify.ptx.program import Immediate, Instruction
from agentforge_kernels.verify.ptx.registers import Handler
from agentforge_kernels.verify.ptx.types import UNSIGNED, Array


def extract_field(a: Array, position: Array, length: Array) -> Array:
    """Bits ``position .. position + length - 1`` of ``a``, sign-extended for signed types."""
    words = a.view(UNSIGNED[a.dtype.itemsize])
    width = words.dtype.itemsize * 8
    start, count = _octet(position), _octet(length)
    inside = _low_ones(a, np.clip(width - start, 0, count))
    field: Array = shift_right(words, start) & inside
    if a.dtype.kind == "u":
        return field
    # The sign is the field's top bit, or the value's own when the field reaches beyond it.
    sign = shift_right(words, np.clip(start + count - 1, 0, width - 1)) & words.dtype.type(1)
    return np.where((sign == 1) & (count > 0), field | ~inside, field).view(a.dtype)


def _octet(count: Array) -> Array:
    """The low eight bits, all that bfe and bfi read of positions and lengths."""
    return (count & np.uint32(0xFF)).astype(np.int64)


def _low_ones(a: Array, count: Array) -> Array:
    """Words as wide as ``a``'s with the low ``count`` bits set."""
    unsigned = UNSIGNED[a.dtype.itemsize]
    return ~shift_left(np.full(a.shape, np.iinfo(unsigned).max, unsigned), count)


def insert_field(a: Array, b: Array, position: Array, length: Array) -> Array:
    """``b`` with its bits from ``position`` replaced by the low ``length`` bits of ``a``."""
    start = _octet(position)
    mask = shift_left(_low_ones(a, _octet(length)), start)
    result: Array = (shift_left(a, start) & mask) | (b & ~mask)
    return result


def reverse_bits(a: Array) -> Array:
    """Bits in the opposite order."""
    octets = np.packbits(bits_of(a)[:, ::-1], axis=1, bitorder="little")
    return octets.view(a.dtype)[:, 0]


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """``prmt``: a nibble of the selector picks a byte of ``b:a``; its top bit spreads the sign."""
    pool = np.stack([a, b], axis=1).view(np.uint8).reshape(len(a), 8)
    rows = np.arange(len(a))
    chosen = np.empty((len(a), 4), np.uint8)
    for position in range(4):
        nibble = (selector >> np.uint32(4 * position)) & np.uint32(15)
        octet = pool[rows, (nibble & np.uint32(7)).astype(np.int64)]
        sign = np.where(octet & 0x80, np.uint8(0xFF), np.uint8(0))
        chosen[:, position] = np.where(nibble & np.uint32(8), sign, octet)
    return chosen.view(np.uint32).reshape(-1)


def any_logic(a: Array, b: Array, c: Array, table: int) -> Array:
    """``lop3``: bit ``4 a + 2 b + c`` of the table, for every bit position."""
    result = np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


def funnel_shift(low: Array, high: Array, count: Array, right: bool, wrap: bool) -> Array:
    """``shf``: 32 bits out of the 64 bits ``high:low`` shifted; the count wraps or stops at 32."""
    amount = (count & np.uint32(31) if wrap else np.minimum(count, np.uint32(32))).astype(np.uint64)
    both = (high.astype(np.uint64) << np.uint64(32)) | low
    shifted = both >> amount if right else (both << amount) >> np.uint64(32)
    return shifted.astype(np.uint32)


def bind_bits(instruction: Instruction, machine: Machine) -> Handler:
    """Bind one of this module's instructions.

    Raises:
        UnsupportedInstruction: A mode that is not implemented.
    """
    opcode, modifiers = instruction.opcode, instruction.modifiers
    kind = kind_of(instruction)
    if opcode == "bfe":
        return bind_elementwise(instruction, machine, extract_field, (kind, kind, "u32", "u32"))
    if opcode == "bfi":
        kinds = (kind, kind, kind, "u32", "u32")
        return bind_elementwise(instruction, machine, insert_field, kinds)
    if opcode == "brev":
        return bind_elementwise(instruction, machine, reverse_bits, (kind, kind))
    if opcode == "prmt" and modifiers == ("b32",):
        return bind_elementwise(instruction, machine, permute_bytes, ("b32",) * 4)
    if opcode == "shf" and {"wrap", "clamp"} & set(modifiers):
        right, wrap = "r" in modifiers, "wrap" in modifiers
        return bind_elementwise(
            instruction,
            machine,
            lambda low, high, count: funnel_shift(low, high, count, right, wrap),
            ("b32", "b32", "b32", "u32"),
        )
    table = instruction.operands[-1]
    if opcode == "lop3" and modifiers == ("b32",) and isinstance(table, Immediate):
        return bind_elementwise(
            instruction,
            machine,
            lambda a, b, c, _: any_logic(a, b, c, table.bits),
            ("b32",) * 5,
        )
    raise unsupported(instruction)


BINDERS: dict[str, Binder] = dict.fromkeys(("bfe", "bfi", "brev", "prmt", "lop3", "shf"), bind_bits)
