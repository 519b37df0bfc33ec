"""Numpy meaning of the assembly in ``triton.packed_bytes``, for the interpreter.

Trits are computed on four packed bytes by one text; the interpreter hands over single bytes, so
each is taken for itself. Permutations are computed from the selector as the PTX manual defines
``prmt``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLANES = 4
SELECTORS = (0x5410, 0x7632, 0x6240, 0x7351)


def trits_of_plane(plane: int) -> Callable[..., NDArray[np.int8]]:
    """uint8 with codes at bits ``2 * plane`` to int8, 0..2 to -1..1; as the assembly, 3 to 2."""

    def emulate(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
        return ((np.asarray(packed, np.uint8) >> (2 * plane)) & 3).astype(np.int8) - np.int8(1)

    return emulate


def codes_of_plane(plane: int) -> Callable[..., NDArray[np.int8]]:
    """uint8 with codes 0..2 at bits ``2 * plane`` to int8 0, 1, 2."""

    def emulate(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
        return ((np.asarray(packed, np.uint8) >> (2 * plane)) & 3).astype(np.int8)

    return emulate


def permutation(selector: int) -> Callable[..., NDArray[np.int32]]:
    """``prmt``: nibble ``i`` of the selector names the byte of ``right:left`` for byte ``i``."""
    picks = [(selector >> (4 * position)) & 7 for position in range(4)]

    def emulate(left: NDArray[np.int32], right: NDArray[np.int32]) -> NDArray[np.int32]:
        left, right = (
            np.ascontiguousarray(word, np.int32) for word in np.broadcast_arrays(left, right)
        )
        pair = np.stack([left, right], axis=-1).view(np.uint8)
        return np.ascontiguousarray(pair[..., picks]).view(np.int32)[..., 0]

    return emulate


def _trits_text(plane: int) -> str:
    return (
        f"{{ .reg .b32 t; shr.u32 t, $1, {2 * plane}; and.b32 t, t, 0x03030303; "
        "or.b32 t, t, 0x80808080; sub.s32 t, t, 0x01010101; xor.b32 $0, t, 0x80808080; }"
    )


def _codes_text(plane: int) -> str:
    return f"{{ .reg .b32 t; shr.u32 t, $1, {2 * plane}; and.b32 $0, t, 0x03030303; }}"


BYTE_ASSEMBLY: dict[str, Callable[..., NDArray[Any]]] = {
    **{_trits_text(plane): trits_of_plane(plane) for plane in range(PLANES)},
    **{_codes_text(plane): codes_of_plane(plane) for plane in range(PLANES)},
    **{f"prmt.b32 $0, $1, $2, {selector:#06x}": permutation(selector) for selector in SELECTORS},
}
"""By normalised text, as ``interpreter.INLINE_ASSEMBLY``."""
