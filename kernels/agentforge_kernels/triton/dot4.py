"""Dot product of four int8 pairs held in 32-bit words: one instruction on every supported GPU.

Weights and activations are both read as int32 words (four consecutive columns each), so the
instruction is applied element by element and no change of layout is needed. On a GTX 1660 this is
what makes a ternary matvec memory-bound: about 0.9 instructions a weight instead of 4.7 with byte
arithmetic.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot4(left, right, total, INSTRUCTION: tl.constexpr):
    """``total + sum over the four bytes of left * right``, both read as signed bytes.

    Args:
        left: int32 words, four int8 each.
        right: int32 words, four int8 each (ternary codes 0..2 are the same signed or unsigned).
        total: int32.
        INSTRUCTION: ``"dp4a"`` (NVIDIA), ``"cdna"``, ``"rdna3"``, or ``"portable"`` (plain integer
            arithmetic, 19 operations: correct anywhere, fast nowhere); ``devices.DOT4_INSTRUCTION``
            has the one for a family.
    """
    tl.static_assert(
        INSTRUCTION == "dp4a"
        or INSTRUCTION == "cdna"
        or INSTRUCTION == "rdna3"
        or INSTRUCTION == "portable",
        "INSTRUCTION must be dp4a, cdna, rdna3 or portable",
    )
    if INSTRUCTION == "dp4a":
        result = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [left, right, total],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    elif INSTRUCTION == "cdna":
        result = tl.inline_asm_elementwise(
            "v_dot4_i32_i8 $0, $1, $2, $3",
            "=v,v,v,v",
            [left, right, total],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    elif INSTRUCTION == "rdna3":
        # neg_lo marks the first two operands as signed (the third is the 32-bit sum).
        result = tl.inline_asm_elementwise(
            "v_dot4_i32_iu8 $0, $1, $2, $3 neg_lo:[1,1,0]",
            "=v,v,v,v",
            [left, right, total],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        # Shifting a byte to the top and back extends its sign.
        result = total + ((left << 24) >> 24) * ((right << 24) >> 24)
        result += ((left << 16) >> 24) * ((right << 16) >> 24)
        result += ((left << 8) >> 24) * ((right << 8) >> 24)
        result += (left >> 24) * (right >> 24)
    return result
