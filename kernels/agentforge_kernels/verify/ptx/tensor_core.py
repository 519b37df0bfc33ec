"""mma.sync, ldmatrix and stmatrix: matrices spread over the registers of a warp.

Fragment layout of m16n8k32 for 8-bit integers (PTX ISA, "Matrix Fragments for mma.m16n8k32"): lane
``l`` with ``group = l / 4`` and ``position = l % 4`` holds, in byte ``j`` of a 32-bit register,

* A, register ``i``: row ``group + 8 (i % 2)``, column ``4 position + j + 16 (i / 2)``;
* B, register ``i``: row ``4 position + j + 16 i``, column ``group``;
* C and D, register ``i``, one int32: row ``group + 8 (i / 2)``, column ``2 position + i % 2``.
"""

from __future__ import annotations

import numpy as np

from agentforge_kernels.verify.ptx.machine import (
    WARP,
    Binder,
    Machine,
    elements_of,
    require_whole_warps,
    unsupported,
)
from agentforge_kernels.verify.ptx.program import Instruction
from agentforge_kernels.verify.ptx.registers import Active, Handler
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, Array

GROUP, POSITION = np.arange(WARP) // 4, np.arange(WARP) % 4
ROWS, COLUMNS, DEPTH = 16, 8, 32
"""m, n and k of the supported shape."""
BYTES = np.arange(4)


def bind_mma(instruction: Instruction, machine: Machine) -> Handler:
    """``mma.sync.aligned.m16n8k32.row.col{.satfinite}.s32.atype.btype.s32 d, a, b, c``.

    Exact; the sum wraps, or with ``.satfinite`` is clamped to int32.

    Raises:
        UnsupportedInstruction: Another shape or type. Floats among them: the hardware's order and
            rounding of partial sums is not documented.
    """
    modifiers = instruction.modifiers
    kinds = [name for name in modifiers if name in NUMPY_TYPES]
    if (
        "m16n8k32" not in modifiers
        or "sp" in modifiers
        or kinds[:1] + kinds[3:] != ["s32", "s32"]
        or not set(kinds[1:3]) <= {"s8", "u8"}
    ):
        raise unsupported(instruction, "of mma only m16n8k32 of 8-bit integers is known")
    a_type, b_type = NUMPY_TYPES[kinds[1]], NUMPY_TYPES[kinds[2]]
    d, a, b, c = (elements_of(operand) for operand in instruction.operands[:4])
    a_readers = [machine.registers.reader(operand, "b32") for operand in a]
    b_readers = [machine.registers.reader(operand, "b32") for operand in b]
    c_readers = [machine.registers.reader(operand, "s32") for operand in c]
    writers = [machine.registers.writer(operand, "s32") for operand in d]
    saturates = "satfinite" in modifiers

    def multiply(active: Active) -> None:
        require_whole_warps(active, instruction)
        warps = active.count // WARP
        # float64 holds these sums exactly (32 * 2^16 + 2^31 < 2^53) and multiplies fast.
        left = np.empty((warps, ROWS, DEPTH), np.float64)
        right = np.empty((warps, DEPTH, COLUMNS), np.float64)
        added = np.empty((warps, ROWS, COLUMNS), np.float64)
        for i, read in enumerate(a_readers):
            row = GROUP + 8 * (i % 2)
            left[:, row[:, None], _depth(i // 2)] = _bytes_of(read(active), a_type)
        for i, read in enumerate(b_readers):
            right[:, _depth(i), GROUP[:, None]] = _bytes_of(read(active), b_type)
        for i, read in enumerate(c_readers):
            row, column = _accumulator_place(i)
            added[:, row, column] = read(active).reshape(warps, WARP)
        result = left @ right + added
        if saturates:
            limits = np.iinfo(np.int32)
            result = np.clip(result, limits.min, limits.max)
        whole = result.astype(np.int64).astype(np.int32)
        for i, write in enumerate(writers):
            row, column = _accumulator_place(i)
            write(active, whole[:, row, column].reshape(-1))

    return multiply


def _depth(half: int) -> Array:
    """Place along k of a register's bytes: ``[32 lanes, 4]``."""
    return 4 * POSITION[:, None] + BYTES + 16 * half


def _accumulator_place(register: int) -> tuple[Array, Array]:
    """Row and column by lane."""
    return GROUP + 8 * (register // 2), 2 * POSITION + register % 2


def _bytes_of(words: Array, kind: np.dtype[np.generic]) -> Array:
    """Registers as numbers ``[warps, 32 lanes, 4]``."""
    return np.ascontiguousarray(words).reshape(-1, WARP, 1).view(kind)


def _matrix_count(instruction: Instruction) -> int:
    counts = [name for name in instruction.modifiers if name in ("x1", "x2", "x4")]
    if not {"m8n8", "b16"} <= set(instruction.modifiers) or len(counts) != 1:
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
    parts = elements_of(instruction.operands[0])
    writers = [machine.registers.writer(part, "b32") for part in parts]

    def load(active: Active) -> None:
        require_whole_warps(active, instruction)
        rows = _row_lanes(active, count)
        lines = machine.shared.load(
            read_address(active)[rows], active.threads[rows], NUMPY_TYPES["b16"], 8
        )
        matrices = lines.reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.transpose(0, 1, 3, 2)
        pairs = np.ascontiguousarray(matrices).view(np.uint32)  # [warps, count, 8, 4]
        for number, write in enumerate(writers):
            write(active, pairs[:, number].reshape(-1))

    return load


def bind_store_matrix(instruction: Instruction, machine: Machine) -> Handler:
    """``stmatrix.sync.aligned.m8n8.xN{.trans}.shared.b16``: the inverse of ``ldmatrix`` (sm_90)."""
    count = _matrix_count(instruction)
    transposed = "trans" in instruction.modifiers
    read_address = machine.address_reader(instruction.operands[0])
    parts = elements_of(instruction.operands[1])
    readers = [machine.registers.reader(part, "b32") for part in parts]

    def store(active: Active) -> None:
        require_whole_warps(active, instruction)
        rows = _row_lanes(active, count)
        words = np.stack([read(active).reshape(-1, 8, 4) for read in readers], axis=1)
        matrices = words.view(np.uint16)  # [warps, count, 8, 8]
        if transposed:
            matrices = matrices.transpose(0, 1, 3, 2)
        lines = np.ascontiguousarray(matrices).reshape(-1, 8)
        machine.shared.store(read_address(active)[rows], active.threads[rows], lines)

    return store


def _row_lanes(active: Active, count: int) -> Array:
    """Positions among the active threads of the lanes that give row addresses."""
    return np.nonzero(np.arange(active.count) % WARP < 8 * count)[0]


BINDERS: dict[str, Binder] = {
    "mma": bind_mma,
    "ldmatrix": bind_load_matrix,
    "stmatrix": bind_store_matrix,
}
