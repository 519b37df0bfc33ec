"""Registers: one array of words each, indexed by thread.

A batch holds the threads of many blocks side by side; an instruction works on the *active* ones. When
all are (the common case) reading a register is a view, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentforge_kernels.verify.ptx.faults import UnsupportedInstruction
from agentforge_kernels.verify.ptx.program import Immediate, Operand, Register, Symbol
from agentforge_kernels.verify.ptx.types import (
    NUMPY_TYPES,
    UNSIGNED,
    Array,
    float32_to_bfloat16,
    is_float,
    reinterpret,
)

ThreadIndex: TypeAlias = NDArray[np.int64]

UNSET_WORD = 0xCDCDCDCDCDCDCDCD
"""Content of a register nobody wrote: nothing a correct program's result depends on."""


class Active:
    """The threads that execute an instruction, by their number in the batch, ascending.

    Attributes:
        threads: Their numbers.
        everyone: True when no thread of the batch is missing.
        index: What to index a register with: a full slice, or ``threads``.
    """

    __slots__ = ("everyone", "index", "threads")

    def __init__(self, threads: ThreadIndex, batch: int) -> None:
        self.threads = threads
        self.everyone = len(threads) == batch
        self.index: slice | ThreadIndex = slice(None) if self.everyone else threads

    def __len__(self) -> int:
        return len(self.threads)


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
        if name not in self._declared:
            if name in self._special:
                return self._special[name]
            raise UnsupportedInstruction(f"register {name} is not known")
        kind = NUMPY_TYPES[self._declared[name]]
        if kind == np.bool_:
            words: Array = np.zeros(self._batch, np.bool_)
        else:
            unsigned = UNSIGNED[kind.itemsize]
            words = np.full(self._batch, UNSET_WORD & int(np.iinfo(unsigned).max), unsigned)
        self._words[name] = words
        return words

    def reader(self, operand: Operand, kind: str) -> Reader:
        """A function that gives an operand's values as PTX type ``kind`` for the active threads."""
        numpy_kind = NUMPY_TYPES[kind]
        if isinstance(operand, Symbol):
            if operand.name in self._declared:
                operand = Register(operand.name)
            elif operand.name in self._symbols:
                operand = Immediate(self._symbols[operand.name])
        if isinstance(operand, Register):
            words = self.words(operand.name)
            if words.dtype.itemsize == numpy_kind.itemsize or numpy_kind == np.bool_:
                view = words if numpy_kind == np.bool_ else words.view(numpy_kind)
                return lambda active: view[active.index]
            return lambda active: reinterpret(words[active.index], numpy_kind)
        if isinstance(operand, Immediate):
            constant = _constant(operand, kind, numpy_kind)
            values = np.full(self._batch, constant)
            return lambda active: values[: len(active)]
        raise UnsupportedInstruction(f"operand {operand} cannot be read as .{kind}")

    def writer(self, operand: Operand, kind: str) -> Writer:
        """A function that stores values of PTX type ``kind`` for the active threads.

        A register wider than the type takes the value sign-extended (signed types) or zero-extended.
        """
        if isinstance(operand, Symbol) and operand.name in self._declared:
            operand = Register(operand.name)
        if not isinstance(operand, Register):
            raise UnsupportedInstruction(f"operand {operand} cannot be written")
        if operand.name == "_":
            return lambda active, values: None
        if operand.name in self._special:
            raise UnsupportedInstruction(f"{operand.name} cannot be written")
        words = self.words(operand.name)
        if words.dtype == np.bool_:

            def write_predicate(active: Active, values: Array) -> None:
                words[active.index] = values

            return write_predicate
        numpy_kind = NUMPY_TYPES[kind]
        if words.dtype.itemsize == numpy_kind.itemsize:
            view = words.view(numpy_kind)

            def write(active: Active, values: Array) -> None:
                view[active.index] = values

            return write
        if words.dtype.itemsize < numpy_kind.itemsize:
            raise UnsupportedInstruction(f"{operand.name} is too narrow for .{kind}")
        wide = np.dtype(f"{'i' if numpy_kind.kind == 'i' else 'u'}{words.dtype.itemsize}")
        unsigned_narrow = UNSIGNED[numpy_kind.itemsize]
        narrow = numpy_kind if numpy_kind.kind == "i" else unsigned_narrow
        wide_view = words.view(wide)

        def write_extended(active: Active, values: Array) -> None:
            wide_view[active.index] = np.ascontiguousarray(values, numpy_kind).view(narrow)

        return write_extended


def _constant(operand: Immediate, kind: str, numpy_kind: np.dtype[Any]) -> Any:
    if numpy_kind == np.bool_:
        return np.bool_(operand.bits != 0)
    if operand.float_bits:
        bits = np.array([operand.bits], UNSIGNED[operand.float_bits // 8])
        if not is_float(kind):
            return reinterpret(bits, numpy_kind)[0]
        value = bits.view(np.dtype(f"f{operand.float_bits // 8}"))
        if kind == "bf16":
            return float32_to_bfloat16(value.astype(np.float32))[0]
        return value.astype(numpy_kind)[0]
    unsigned = UNSIGNED[numpy_kind.itemsize]
    return np.array([operand.bits & int(np.iinfo(unsigned).max)], unsigned).view(numpy_kind)[0]
