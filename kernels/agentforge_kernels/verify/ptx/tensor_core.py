"""mma.sync, ldmatrix and stmatrix: matrices spread over the registers of a warp.

Fragment layouts: PTX ISA, 9.7.14.5 (m16n8k16 and m16n8k32). With ``e`` elements in a 32-bit register,
lane ``l``, ``group = l / 4`` and ``position = l % 4``:

* A, register ``i``, element ``j``: row ``group + 8 (i % 2)``, column ``e position + j + 4 e (i / 2)``;
* B, register ``i``, element ``j``: row ``e position + j + 4 e i``, column ``group``;
* C and D, register ``i``: row ``group + 8 (i / 2)``, column ``2 position + i % 2``.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from agentforge_kernels.verify.ptx.machine import (
    WARP,
    Binder,
    Machine,
    elements_of,
    require_whole_warps,
    unsupported,
)
from agentforge_kernels.verify.ptx.memory_access import store_shared
from agentforge_kernels.verify.ptx.program import Instruction
from agentforge_kernels.verify.ptx.registers import Active, Handler, Reader
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, Array, bfloat16_to_float32

GROUP, POSITION = np.arange(WARP) // 4, np.arange(WARP) % 4
ROWS, COLUMNS = 16, 8
"""m and n of every supported shape."""
INTEGERS, FLOATS = ("s8", "u8"), ("f16", "bf16")


def bind_mma(instruction: Instruction, machine: Machine) -> Handler:
    """``mma.sync.aligned.m16n8kK.row.col{.satfinite}.dtype.atype.btype.ctype d, a, b, c``.

    Integers: exact, wrapped or (``.satfinite``) clamped to int32. Floats: products and sum in float64,
    rounded once; the hardware's own order and rounding of partial sums is not documented.

    Raises:
        UnsupportedInstruction: Another shape or type (m8n8k16, int4, tf32, fp8, sparse).
    """
    modifiers = instruction.modifiers
    shape = next((name for name in modifiers if re.fullmatch(r"m\d+n\d+k\d+", name)), "")
    kinds = [name for name in modifiers if name in NUMPY_TYPES]
    if not shape.startswith("m16n8k") or len(kinds) != 4 or "sp" in modifiers:
        raise unsupported(instruction)
    result_kind, a_kind, b_kind, _ = kinds
    integer = a_kind in INTEGERS and b_kind in INTEGERS and result_kind == "s32"
    floating = a_kind in FLOATS and a_kind == b_kind and result_kind == "f32"
    if not integer and not floating:
        raise unsupported(instruction)
    depth = int(shape.removeprefix("m16n8k"))
    d, a, b, c = (elements_of(operand) for operand in instruction.operands[:4])
    per_register = 4 // NUMPY_TYPES[a_kind].itemsize
    if (
        len(a) * per_register * WARP != ROWS * depth
        or len(b) * per_register * WARP != COLUMNS * depth
    ):
        raise unsupported(instruction, "registers do not fit the shape")
    a_readers = [machine.registers.reader(operand, "b32") for operand in a]
    b_readers = [machine.registers.reader(operand, "b32") for operand in b]
    c_readers = [machine.registers.reader(operand, result_kind) for operand in c]
    writers = [machine.registers.writer(operand, result_kind) for operand in d]
    saturates = "satfinite" in modifiers

    def multiply(active: Active) -> None:
        require_whole_warps(active, instruction)
        warps = len(active) // WARP
        # float64 holds sums of int8 products exactly (32 * 2^14 + 2^31 < 2^53) and multiplies fast.
        left = np.empty((warps, ROWS, depth), np.float64)
        right = np.empty((warps, depth, COLUMNS), np.float64)
        added = np.empty((warps, ROWS, COLUMNS), np.float64)
        for number, values in enumerate(_elements(a_readers, active, a_kind)):
            for j in range(per_register):
                row = GROUP + 8 * (number % 2)
                column = per_register * POSITION + j + 4 * per_register * (number // 2)
                left[:, row, column] = values[:, :, j]
        for number, values in enumerate(_elements(b_readers, active, b_kind)):
            for j in range(per_register):
                row = per_register * POSITION + j + 4 * per_register * number
                right[:, row, GROUP] = values[:, :, j]
        for number, read in enumerate(c_readers):
            row, column = GROUP + 8 * (number // 2), 2 * POSITION + number % 2
            added[:, row, column] = read(active).reshape(warps, WARP)
        result = left @ right + added
        for number, write in enumerate(writers):
            row, column = GROUP + 8 * (number // 2), 2 * POSITION + number % 2
            write(active, _rounded(result[:, row, column].reshape(-1), integer, saturates))

    return multiply


def _elements(readers: list[Reader], active: Active, kind: str) -> list[Array]:
    """Registers as ``[warps, 32, elements]`` of numbers."""
    found = []
    for read in readers:
        values = np.ascontiguousarray(read(active)).view(NUMPY_TYPES[kind]).reshape(-1, WARP, 1)
        values = values.reshape(len(active) // WARP, WARP, -1)
        found.append(bfloat16_to_float32(values) if kind == "bf16" else values)
    return found


def _rounded(values: Array, integer: bool, saturates: bool) -> Array:
    if not integer:
        return values.astype(np.float32)
    if saturates:
        limits = np.iinfo(np.int32)
        values = np.clip(values, limits.min, limits.max)
    return values.astype(np.int64).astype(np.int32)


def _matrix_count(instruction: Instruction) -> int:
    counts = [name for name in instruction.modifiers if name in ("x1", "x2", "x4")]
    if (
        "m8n8" not in instruction.modifiers
        or "b16" not in instruction.modifiers
        or len(counts) != 1
    ):
        raise unsupported(instruction)
    return int(counts[0][1:])


def bind_load_matrix(instruction: Instruction, machine: Machine) -> Handler:
    """``ldmatrix.sync.aligned.m8n8.xN{.trans}.shared.b16``: N 8x8 matrices of 16-bit elements.

    Lane ``8 m + r`` gives the address of row ``r`` of matrix ``m``; lane ``l`` receives elements
    ``2 (l % 4)`` and the next of row ``l / 4``, of the transposed matrix with ``.trans``.
    """
    count = _matrix_count(instruction)
    transposed = "trans" in instruction.modifiers
    read_address = machine.address_reader(instruction.operands[1])
    writers = [
        machine.registers.writer(part, "b32") for part in elements_of(instruction.operands[0])
    ]

    def load(active: Active) -> None:
        require_whole_warps(active, instruction)
        rows, owners = _row_threads(active, count)
        addresses = read_address(active)[rows]
        blocks, warps = machine.block[owners], machine.warp[owners]
        offsets = machine.shared.locate(addresses, blocks, 16)
        machine.shared.before_read(offsets, warps, blocks, 16)
        elements = [
            machine.shared.load(offsets + 2 * column, np.dtype(np.uint16)) for column in range(8)
        ]
        matrices = np.stack(elements, axis=1).reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.transpose(0, 1, 3, 2)
        for number, write in enumerate(writers):
            low = matrices[:, number, GROUP, 2 * POSITION].astype(np.uint32)
            high = matrices[:, number, GROUP, 2 * POSITION + 1].astype(np.uint32)
            write(active, (low | high << np.uint32(16)).reshape(-1))

    return load


def bind_store_matrix(instruction: Instruction, machine: Machine) -> Handler:
    """``stmatrix.sync.aligned.m8n8.xN{.trans}.shared.b16``: the inverse of ``ldmatrix`` (sm_90)."""
    count = _matrix_count(instruction)
    transposed = "trans" in instruction.modifiers
    read_address = machine.address_reader(instruction.operands[0])
    readers = [
        machine.registers.reader(part, "b32") for part in elements_of(instruction.operands[1])
    ]

    def store(active: Active) -> None:
        require_whole_warps(active, instruction)
        rows, owners = _row_threads(active, count)
        matrices = np.empty((len(active) // WARP, count, 8, 8), np.uint16)
        for number, read in enumerate(readers):
            words = read(active).reshape(-1, WARP)
            matrices[:, number, GROUP, 2 * POSITION] = words.astype(np.uint16)
            matrices[:, number, GROUP, 2 * POSITION + 1] = (words >> np.uint32(16)).astype(
                np.uint16
            )
        if transposed:
            matrices = matrices.transpose(0, 1, 3, 2)
        lines = np.ascontiguousarray(matrices).view(np.uint64).reshape(-1, 2)
        store_shared(
            machine,
            Active(owners, machine.threads),
            read_address(active)[rows],
            [np.ascontiguousarray(lines[:, half]) for half in range(2)],
        )

    return store


def _row_threads(active: Active, count: int) -> tuple[Any, Any]:
    """Positions among the active threads, and numbers, of the lanes that give row addresses."""
    rows = np.nonzero(np.arange(len(active)) % WARP < 8 * count)[0]
    return rows, active.threads[rows]


BINDERS: dict[str, Binder] = {
    "mma": bind_mma,
    "ldmatrix": bind_load_matrix,
    "stmatrix": bind_store_matrix,
}
