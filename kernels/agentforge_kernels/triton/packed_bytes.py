# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Four bytes at a time in one 32-bit register, where the compiler would take them one by one.

Triton computes on bytes in a register each and packs the results again for the matrix unit: about
12 instructions for the four trits of a packed byte. The assembly here does them together: a loop of
64 tokens x 64 rows on compute capability 8.0 falls from 1,630 to 512 instructions (``tl.dot`` of
int8, 32 matrix instructions). NVIDIA only: AMD's compiler gives no register to four packed bytes
("couldn't allocate output register"), so there the plain expression is compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Codes 0..2 at bits 2 j of each byte to trits. With the top bit set, subtracting 1 never borrows
# from the next byte; the exclusive or gives -1, 0, 1 (0x80 - 1 = 0x7f, and 0x7f ^ 0x80 = 0xff).
_TRITS = """{{
.reg .b32 t;
shr.u32 t, $1, {shift};
and.b32 t, t, 0x03030303;
or.b32 t, t, 0x80808080;
sub.s32 t, t, 0x01010101;
xor.b32 $0, t, 0x80808080;
}}"""
_TRITS_0 = tl.constexpr(_TRITS.format(shift=0))
_TRITS_1 = tl.constexpr(_TRITS.format(shift=2))
_TRITS_2 = tl.constexpr(_TRITS.format(shift=4))
_TRITS_3 = tl.constexpr(_TRITS.format(shift=6))
_CODES = """{{
.reg .b32 t;
shr.u32 t, $1, {shift};
and.b32 $0, t, 0x03030303;
}}"""
_CODES_0 = tl.constexpr(_CODES.format(shift=0))
_CODES_1 = tl.constexpr(_CODES.format(shift=2))
_CODES_2 = tl.constexpr(_CODES.format(shift=4))
_CODES_3 = tl.constexpr(_CODES.format(shift=6))


@triton.jit
def _packed(text: tl.constexpr, packed):
    return tl.inline_asm_elementwise(text, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)


@triton.jit
def trits_of_plane(packed, PLANE: tl.constexpr, INSTRUCTION: tl.constexpr):
    """Trits of one of the four planes of packed bytes, operands of an int8 ``tl.dot``.

    Args:
        packed: uint8, any shape; codes 0..2 of plane ``j`` at bits ``2 j``.
        PLANE: 0 to 3.
        INSTRUCTION: As for ``dot4``; ``"dp4a"`` means NVIDIA.

    Returns:
        int8 of the same shape, -1, 0 or 1.
    """
    tl.static_assert(PLANE >= 0 and PLANE <= 3, "PLANE must be 0 to 3")
    if INSTRUCTION == "dp4a":
        if PLANE == 0:
            trits = _packed(_TRITS_0, packed)
        elif PLANE == 1:
            trits = _packed(_TRITS_1, packed)
        elif PLANE == 2:
            trits = _packed(_TRITS_2, packed)
        else:
            trits = _packed(_TRITS_3, packed)
    else:
        trits = ((packed >> (2 * PLANE)) & 3).to(tl.int8, bitcast=True) - 1
    return trits


@triton.jit
def codes_of_plane(packed, PLANE: tl.constexpr, INSTRUCTION: tl.constexpr):
    """As :func:`trits_of_plane`, but the codes 0..2 themselves: two instructions for four of them.

    Args:
        packed: uint8, any shape; codes 0..2 of plane ``j`` at bits ``2 j``.
        PLANE: 0 to 3.
        INSTRUCTION: As for ``dot4``; ``"dp4a"`` means NVIDIA.

    Returns:
        int8 of the same shape, 0, 1 or 2.
    """
    tl.static_assert(PLANE >= 0 and PLANE <= 3, "PLANE must be 0 to 3")
    if INSTRUCTION == "dp4a":
        if PLANE == 0:
            codes = _packed(_CODES_0, packed)
        elif PLANE == 1:
            codes = _packed(_CODES_1, packed)
        elif PLANE == 2:
            codes = _packed(_CODES_2, packed)
        else:
            codes = _packed(_CODES_3, packed)
    else:
        codes = ((packed >> (2 * PLANE)) & 3).to(tl.int8, bitcast=True)
    return codes


@triton.jit
def _bytes(left, right, SELECTOR: tl.constexpr):
    """Bytes of two int32 words picked by ``prmt``: 0..3 of ``left``, 4..7 of ``right``."""
    tl.static_assert(
        SELECTOR == 0x5410 or SELECTOR == 0x7632 or SELECTOR == 0x6240 or SELECTOR == 0x7351,
        "SELECTOR must be one of the four that a transposition needs",
    )
    if SELECTOR == 0x5410:
        word = _picked("prmt.b32 $0, $1, $2, 0x5410;", left, right)
    elif SELECTOR == 0x7632:
        word = _picked("prmt.b32 $0, $1, $2, 0x7632;", left, right)
    elif SELECTOR == 0x6240:
        word = _picked("prmt.b32 $0, $1, $2, 0x6240;", left, right)
    else:
        word = _picked("prmt.b32 $0, $1, $2, 0x7351;", left, right)
    return word


@triton.jit
def _picked(text: tl.constexpr, left, right):
    return tl.inline_asm_elementwise(
        text, "=r,r,r", [left, right], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def transpose_bytes(a, b, c, d, INSTRUCTION: tl.constexpr):
    """Four int32 words to four: word ``i`` holds byte ``i`` of ``a``, of ``b``, of ``c``, of ``d``.

    Eight byte permutations where there are such (NVIDIA), else 16 shifts and masks.

    Args:
        a: int32 words, any shape (``b``, ``c``, ``d`` alike).
        b: Second byte of each result.
        c: Third.
        d: Fourth.
        INSTRUCTION: As for ``dot4``; ``"dp4a"`` means NVIDIA.
    """
    if INSTRUCTION == "dp4a":
        low_ac = _bytes(a, c, 0x5410)  # a0 a1 c0 c1
        low_bd = _bytes(b, d, 0x5410)
        high_ac = _bytes(a, c, 0x7632)  # a2 a3 c2 c3
        high_bd = _bytes(b, d, 0x7632)
        words = (
            _bytes(low_ac, low_bd, 0x6240),  # a0 b0 c0 d0
            _bytes(low_ac, low_bd, 0x7351),
            _bytes(high_ac, high_bd, 0x6240),
            _bytes(high_ac, high_bd, 0x7351),
        )
    else:
        low_ac = (a & 0xFFFF) | (c << 16)
        low_bd = (b & 0xFFFF) | (d << 16)
        high_ac = ((a >> 16) & 0xFFFF) | (c & -0x10000)
        high_bd = ((b >> 16) & 0xFFFF) | (d & -0x10000)
        words = (
            (low_ac & 0x00FF00FF) | ((low_bd & 0x00FF00FF) << 8),
            ((low_ac >> 8) & 0x00FF00FF) | (low_bd & -0x00FF0100),
            (high_ac & 0x00FF00FF) | ((high_bd & 0x00FF00FF) << 8),
            ((high_ac >> 8) & 0x00FF00FF) | (high_bd & -0x00FF0100),
        )
    return words
