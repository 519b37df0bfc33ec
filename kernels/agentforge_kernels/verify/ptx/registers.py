"""Registers: one array of words each, indexed by thread.

A batch holds the threads of many blocks side by side; an instruction works on the *active* ones.
When all are (the common case) reading a register is a view, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentforge_kernels.verify.ptx.faults import UnsupportedInstruction
from agentforge_kernels.verify.ptx.program import Immediate, Operand, Register, Symbol
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, UNSIGNED, Array, low_bits

ThreadIndex: TypeAlias = NDArray[np.int64]

UNSET = {size: int.from_bytes(b"\xcd" * size, "little") for size in UNSIGNED}
"""Content of a register nobody wrote, by size: nothing a correct program's result depends on."""


class Active:
    """The threads that execute an instruction, by their number in the batch, ascending.

    Attributes:
        threads: Their numbers.
        count: How many.
        everyone: True when no thread of the batch is missing.
        index: What to index a register with: a full slice, or ``threads``.
    """

    __slots__ = ("count", "everyone", "index", "threads")

    def __init__(self, threads: ThreadIndex, batch: int) -> None:
        self.threads = threads
        self.count = len(threads)
        self.everyone = self.count == batch
        self.index: slice | ThreadIndex = slice(None) if self.everyone else threads


Handler: TypeAlias = Callable[[Active], None]
Reader: TypeAlias = Callable[[Active], Array]
Writer: TypeAlias = Callable[[Active, Array], None]


class RegisterFile:
    """All registers of a batch of threads.

    Args:
        declared: PTX type by register name.
        special: Values a thread of ``%tid.x`` and its like.
        symbols: Addresses of variables in shared memory.
        batch: Threads.
    """

    def __init__(
        self,
        declared: Mapping[str, str],
        special: Mapping[str, Array],
        symbols: Mapping[str, int],
        batch: int,
    ) -> None:
        self._declared = declared
        self._special = special
        self._symbols = symbols
        self._batch = batch
        self._words: dict[str, Array] = {}

    def words(self, name: str) -> Array:
        """A register's array, made when first asked for.

        Raises:
            UnsupportedInstruction: Neither declared nor a special register the executor knows.
        """
        if name in self._words:
            return self._words[name]
        if name in self._special:
            return self._special[name]
        if name not in self._declared:
            raise UnsupportedInstruction(f"register {name} is not known")
        kind = NUMPY_TYPES[self._declared[name]]
        if kind == np.bool_:
            words: Array = np.zeros(self._batch, np.bool_)
        else:
            words = np.full(self._batch, UNSET[kind.itemsize], UNSIGNED[kind.itemsize])
        self._words[name] = words
        return words

    def _resolved(self, operand: Operand) -> Operand:
        """Symbols as what they stand for: a register without a percent sign, or an address."""
        if isinstance(operand, Symbol) and operand.name in self._declared:
            return Register(operand.name)
        if isinstance(operand, Symbol) and operand.name in self._symbols:
            return Immediate(self._symbols[operand.name])
        return operand

    def reader(self, operand: Operand, kind: str) -> Reader:
        """A function that gives an operand's values as PTX type ``kind`` for the active threads.

        Raises:
            UnsupportedInstruction: No such register, or one that does not fit the type.
        """
        operand, numpy_kind = self._resolved(operand), NUMPY_TYPES[kind]
        if isinstance(operand, Immediate):
            values = np.full(self._batch, _constant(operand, numpy_kind), numpy_kind)
            return lambda active: values[: active.count]
        if not isinstance(operand, Register):
            raise UnsupportedInstruction(f"operand {operand} cannot be read as .{kind}")
        words = self.words(operand.name)
        self._require_fit(operand.name, words, kind)
        if words.dtype.itemsize == numpy_kind.itemsize:
            view = words.view(numpy_kind)
            return lambda active: view[active.index]
        return lambda active: low_bits(words[active.index], numpy_kind)

    def writer(self, operand: Operand, kind: str) -> Writer:
        """A function that stores values of PTX type ``kind`` for the active threads.

        A register wider than the type takes signed values sign-extended, others zero-extended.

        Raises:
            UnsupportedInstruction: No such register, or one that does not fit the type.
        """
        operand, numpy_kind = self._resolved(operand), NUMPY_TYPES[kind]
        if not isinstance(operand, Register) or operand.name in self._special:
            raise UnsupportedInstruction(f"operand {operand} cannot be written")
        if operand.name == "_":
            return lambda active, values: None
        words = self.words(operand.name)
        self._require_fit(operand.name, words, kind)
        # Assigning to a wider view extends; bits of a float count as an unsigned number.
        whole = numpy_kind if numpy_kind.kind == "i" else UNSIGNED[numpy_kind.itemsize]
        same_size = words.dtype.itemsize == numpy_kind.itemsize
        view = words.view(numpy_kind if same_size else f"{whole.kind}{words.dtype.itemsize}")

        def write(active: Active, values: Array) -> None:
            view[active.index] = values if same_size else values.view(whole)

        return write

    @staticmethod
    def _require_fit(name: str, words: Array, kind: str) -> None:
        predicate = words.dtype == np.bool_
        if predicate != (kind == "pred") or words.dtype.itemsize < NUMPY_TYPES[kind].itemsize:
            raise UnsupportedInstruction(f"register {name} does not hold a .{kind}")


def _constant(operand: Immediate, kind: np.dtype[Any]) -> Any:
    """An immediate's bits as a value of numpy type ``kind``."""
    if kind == np.bool_:
        return operand.bits != 0
    bits = 8 * kind.itemsize
    if operand.float_bits not in (0, bits):
        raise UnsupportedInstruction(f"a {operand.float_bits}-bit float as {kind}")
    return np.array(operand.bits & ((1 << bits) - 1), UNSIGNED[kind.itemsize]).view(kind)
