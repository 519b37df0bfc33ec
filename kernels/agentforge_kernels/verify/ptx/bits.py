"""Bit fields, permutations and arbitrary logic: bfe, bfi, brev, prmt, lop3, shf (PTX ISA, 9.7.1, 9.7.8)."""

from __future__ import annotations

import numpy as np

from agentforge_kernels.verify.ptx.integers import bind_elementwise, shift_left, shift_right
from agentforge_kernels.verify.ptx.machine import Binder, Machine, kind_of, unsupported
from agentforge_kernels.verify.ptx.program import Immediate, Instruction
from agentforge_kernels.verify.ptx.registers import Handler
from agentforge_kernels.verify.ptx.types import UNSIGNED, Array


def extract_field(a: Array, position: Array, length: Array) -> Array:
    """Bits ``position .. position + length - 1`` of ``a``, sign-extended for signed types."""
    bits = a.dtype.itemsize * 8
    start, count = position & np.uint32(0xFF), length & np.uint32(0xFF)
    unsigned = UNSIGNED[a.dtype.itemsize]
    field = shift_right(a.view(unsigned), start) & ~shift_left(
        np.full(a.shape, np.iinfo(unsigned).max, unsigned), count
    )
    if a.dtype.kind == "u":
        return field
    # The sign is the field's top bit, or the value's own when the field reaches beyond it.
    top = np.minimum(start.astype(np.int64) + count - 1, bits - 1).clip(min=0).astype(np.uint32)
    negative = (shift_right(a.view(unsigned), top) & unsigned.type(1) == 1) & (count > 0)
    filled = field | shift_left(
        np.full(a.shape, np.iinfo(unsigned).max, unsigned),
        np.minimum(count, bits - start.clip(max=bits)),
    )
    return np.where(negative, filled, field).view(a.dtype)


def insert_field(a: Array, b: Array, position: Array, length: Array) -> Array:
    """``b`` with its bits from ``position`` replaced by the low ``length`` bits of ``a``."""
    start, count = position & np.uint32(0xFF), length & np.uint32(0xFF)
    ones = np.full(a.shape, np.iinfo(a.dtype).max, a.dtype)
    mask = shift_left(~shift_left(ones, count), start)
    result: Array = (shift_left(a, start) & mask) | (b & ~mask)
    return result


def reverse_bits(a: Array) -> Array:
    """Bits in the opposite order."""
    octets = np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1)
    reversed_bits = np.unpackbits(octets, axis=1, bitorder="little")[:, ::-1]
    packed = np.packbits(reversed_bits, axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view(a.dtype).reshape(-1)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """``prmt``: each nibble of the selector picks a byte of ``b:a``; its top bit spreads the sign."""
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
    if opcode == "lop3" and modifiers == ("b32",):
        table = instruction.operands[-1]
        if isinstance(table, Immediate):
            bits = table.bits
            return bind_elementwise(
                instruction,
                machine,
                lambda a, b, c, _table: any_logic(a, b, c, bits),
                ("b32", "b32", "b32", "b32", "b32"),
            )
    raise unsupported(instruction)


BINDERS: dict[str, Binder] = dict.fromkeys(("bfe", "bfi", "brev", "prmt", "lop3", "shf"), bind_bits)
