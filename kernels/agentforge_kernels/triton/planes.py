# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Codes to operands: the four planes of a packed word.

A word of the stored form holds four codes in each byte, plane ``j`` at bits ``2 j``; plane ``j`` of
word ``i`` in a group of eight words is columns ``32 j + 4 i`` to ``32 j + 4 i + 3``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from agentforge_kernels.triton.dot4 import dot4


@triton.jit
def plane_words(packed, PLANE: tl.constexpr):
    """Codes 0..2 of one plane: int32 words of four bytes."""
    return (packed >> (2 * PLANE)) & 0x03030303


@triton.jit
def add_group(packed, q0, q1, q2, q3, even, odd, INSTRUCTION: tl.constexpr):
    """All 16 codes of a word times their activations, with one shift instead of three.

    Planes 1 and 3 are left two bits up, so their products count four times and are kept apart.

    Args:
        packed: int32 words of codes.
        q0: int32 words of the activations of plane 0 (``q1`` .. ``q3`` alike).
        q1: Plane 1.
        q2: Plane 2.
        q3: Plane 3.
        even: Running sum of planes 0 and 2.
        odd: Four times the running sum of planes 1 and 3.
        INSTRUCTION: As for ``dot4``.

    Returns:
        ``even`` and ``odd``; :func:`join_planes` makes one sum of them.
    """
    upper = packed >> 4
    even = dot4(q0, packed & 0x03030303, even, INSTRUCTION)
    odd = dot4(q1, packed & 0x0C0C0C0C, odd, INSTRUCTION)
    even = dot4(q2, upper & 0x03030303, even, INSTRUCTION)
    odd = dot4(q3, upper & 0x0C0C0C0C, odd, INSTRUCTION)
    return even, odd


@triton.jit
def join_planes(even, odd):
    """The sum over all planes; ``odd`` is a multiple of four, so the shift is exact."""
    return even + (odd >> 2)


@triton.jit
def first_plane_words(word):
    """Where plane 0 of packed word ``word`` finds its activations, in int32 words of a token's q.

    Planes 1 to 3 are 8, 16 and 24 words further. With ``4 * begin`` added this holds for word
    ``begin + word`` as well, ``begin`` a multiple of eight.
    """
    return (word // 8) * 32 + word % 8


@triton.jit
def inside_or_first(inside, offset, word):
    """``offset`` of activations, or where a word lies beyond the row's end, one in the first group.

    So activations are loaded without a mask (whose zeros cost an instruction a register) from
    memory that exists; the codes beyond the end are zero, and zero times anything is zero.

    Args:
        inside: Whether a word is in its row; the same for eight words in a row.
        offset: Where its activations are.
        word: ``arange`` over the words of a step.
    """
    offset = tl.where(inside, offset, (word % 8)[None, :])
    # The compiler does not see through the choice that eight words stay consecutive and aligned.
    return tl.max_contiguous(tl.multiple_of(offset, [1, 8]), [1, 8])
