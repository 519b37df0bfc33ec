"""A parsed PTX kernel: instructions, operands, registers, parameters, shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Register:
    """``%r12``, or a special register such as ``%tid.x``."""

    name: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """A number: an integer, or a float written as ``0f3F800000`` or ``0d...``.

    Attributes:
        bits: The value; for floats the pattern of bits.
        float_bits: 32 or 64 for a float, 0 for an integer.
    """

    bits: int
    float_bits: int = 0


@dataclass(frozen=True, slots=True)
class Symbol:
    """A label, a parameter, or a variable in shared memory."""

    name: str


@dataclass(frozen=True, slots=True)
class Address:
    """``[base + offset]``; the offset is in bytes."""

    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True, slots=True)
class Vector:
    """``{a, b, c, d}``."""

    elements: tuple[Register | Immediate | Symbol, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """``d|p``: a result and the predicate that goes with it."""

    first: Register
    second: Register


Operand: TypeAlias = Register | Immediate | Symbol | Address | Vector | Pair


@dataclass(frozen=True, slots=True)
class Guard:
    """``@%p1`` or ``@!%p1``."""

    register: str
    negated: bool


@dataclass(frozen=True, slots=True)
class Instruction:
    """One statement.

    Attributes:
        opcode: First part of the mnemonic: ``ld``.
        modifiers: The other parts: ``("global", "v4", "b32")``.
        operands: Destination first.
        guard: The predicate it runs under.
        line: Line in the PTX text, from 1.
        text: As written, white space collapsed.
    """

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Guard | None
    line: int
    text: str

    @property
    def mnemonic(self) -> str:
        """``ld.global.v4.b32``."""
        return ".".join((self.opcode, *self.modifiers))

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A kernel parameter and its type (``b64``, ``u32``, ``f32``)."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Program:
    """A kernel.

    Attributes:
        name: Entry name.
        parameters: In order.
        threads: Threads of a block (``.reqntid``).
        registers: Declared type by full register name.
        shared: Bytes of each variable in shared memory, in order; 0 for the unsized one, whose size
            the launch gives.
        instructions: In order.
        labels: Index of the instruction behind each label.
    """

    name: str
    parameters: tuple[Parameter, ...]
    threads: int
    registers: dict[str, str]
    shared: dict[str, int]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
