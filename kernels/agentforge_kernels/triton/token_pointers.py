# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Addresses of outputs that stay right beyond two thousand million elements."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def from_token(output, residual, first_token, rows):
    """Pointers moved to a program's first token, in 64 bits; offsets from there fit in 32.

    A 64-bit offset for each element instead would cost a matrix kernel 64 registers a thread.

    Args:
        output: Pointer to float32 ``[tokens, rows]``.
        residual: The same, or ``None``.
        first_token: Token of the program's first output.
        rows: Outputs of a token.

    Returns:
        ``output`` and ``residual``, moved.
    """
    base = first_token.to(tl.int64) * rows
    if residual is not None:
        residual += base
    return output + base, residual
