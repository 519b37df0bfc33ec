"""PTX's fundamental types as numpy types (PTX ISA, section "Fundamental Types").

Registers are arrays of unsigned words; an instruction reads them *as* its type, which is a view,
and numpy's arithmetic on that view wraps exactly as the hardware's. bfloat16 has no numpy type: it
is kept as its 16 bits and widened to float32 (exact) to compute.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "pred": np.dtype(np.bool_),
    "b8": np.dtype(np.uint8),
    "u8": np.dtype(np.uint8),
    "s8": np.dtype(np.int8),
    "b16": np.dtype(np.uint16),
    "u16": np.dtype(np.uint16),
    "s16": np.dtype(np.int16),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "b32": np.dtype(np.uint32),
    "u32": np.dtype(np.uint32),
    "s32": np.dtype(np.int32),
    "f32": np.dtype(np.float32),
    "f16x2": np.dtype(np.uint32),
    "bf16x2": np.dtype(np.uint32),
    "b64": np.dtype(np.uint64),
    "u64": np.dtype(np.uint64),
    "s64": np.dtype(np.int64),
    "f64": np.dtype(np.float64),
}
"""Numpy type of every PTX type the executor knows."""

UNSIGNED: dict[int, np.dtype[Any]] = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}
"""Unsigned type by size in bytes."""


def is_float(name: str) -> bool:
    """True for the types whose arithmetic rounds."""
    return "f" in name


def low_bits(words: Array, kind: np.dtype[Any]) -> Array:
    """The low bits of unsigned words as a type of their size or a smaller one."""
    return words.astype(UNSIGNED[kind.itemsize], copy=False).view(kind)


def bfloat16_to_float32(bits: Array) -> Array:
    """Widen bfloat16 bits (uint16) to float32; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(values: Array) -> Array:
    """Round float32 to bfloat16 bits (uint16), to nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(values), np.uint16(0x7FFF), (rounded >> 16).astype(np.uint16))
