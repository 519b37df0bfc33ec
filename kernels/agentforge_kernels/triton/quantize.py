# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Activations to int8, one scale a token, optionally through RMSNorm, in one launch.

Everything is a function of ``u``: the activation, or with a norm the activation times the norm's
weight, in float32. The root mean square divides every element alike, so it cancels in ``q`` and is
needed for the scale only; ``q`` does not depend on the order in which squares are added.

Launch with ``enable_fp_fusion=False``: contracted to one multiply-add, ``u * step + 1.5 * 2^23``
would round ties by the unrounded product.
"""

from __future__ import annotations

import triton
import triton.language as tl

from agentforge_kernels.format import SMALLEST_MAGNITUDE

SMALLEST = tl.constexpr(SMALLEST_MAGNITUDE)
MAGNITUDE_BITS = tl.constexpr(0x7FFFFFFF)
INFINITY_BITS = tl.constexpr(0x7F800000)
NAN_BITS = tl.constexpr(0x7FC00000)
ROUNDING = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding it rounds to a whole number, ties to even, left in the low bits."""
ROUNDING_BITS = tl.constexpr(0x4B400000)
SMALL = tl.constexpr(2.0**-70)
"""Squares of finite float32 values times this neither overflow nor, where they count, vanish."""


@triton.jit
def largest_bits(values):
    """Bits of the magnitudes: they order like the magnitudes, NaN and infinity above all others."""
    return values.to(tl.int32, bitcast=True) & MAGNITUDE_BITS


@triton.jit
def inverse_root(squares, small_squares, columns, epsilon):
    """``1 / sqrt(mean square + epsilon)``.

    Args:
        squares: Sum of squares; infinite where values beyond 10^19 overflow.
        small_squares: Sum of squares of the values times ``SMALL``.
        columns: Number of values.
        epsilon: Of the norm.
    """
    count = columns * 1.0
    fits = squares < float("inf")
    mean = tl.div_rn(tl.where(fits, squares, small_squares), count)
    root = tl.sqrt_rn(tl.where(fits, mean + epsilon, mean))
    return tl.div_rn(tl.where(fits, 1.0, SMALL), root)


@triton.jit
def step_and_scale(bits, inverse):
    """How a token is quantised.

    Args:
        bits: ``largest_bits`` of the token's ``u``, the largest.
        inverse: Factor that makes ``u`` the normalised activation; 1 without a norm.

    Returns:
        The factor from ``u`` to units of one step, and the scale; (0, NaN) for a token that holds
        NaN or infinity, or that an ``epsilon`` of 0 leaves nothing to divide by.
    """
    finite = (bits < INFINITY_BITS) & (inverse < float("inf"))
    largest_u = tl.where(finite, bits, 0).to(tl.float32, bitcast=True)
    largest = largest_u * tl.where(finite, inverse, 1.0)
    tiny = largest < SMALLEST
    # torch's 127 / x is 127 times the rounded reciprocal, not the rounded quotient.
    step = 127.0 * tl.div_rn(1.0, tl.where(tiny, SMALLEST, largest_u))
    step *= tl.where(tiny, inverse, 1.0)
    scale = tl.div_rn(tl.maximum(largest, SMALLEST), 127.0)
    nan = tl.full((), NAN_BITS, tl.int32).to(tl.float32, bitcast=True)
    return tl.where(finite, step, 0.0), tl.where(finite, scale, nan)


@triton.jit
def round_to_int(scaled):
    """Nearest integer, ties to even; for magnitudes below 2^22."""
    return (scaled + ROUNDING).to(tl.int32, bitcast=True) - ROUNDING_BITS


@triton.jit(do_not_specialize=["groups"])
def quantize_tokens(
    x,
    norm_weight,
    q,
    scale,
    total,
    columns,
    groups,
    epsilon,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Absmax int8 of every token; grid ``[tokens]``.

    Args:
        x: float32, float16 or bfloat16 ``[tokens, columns]``.
        norm_weight: float32 ``[columns]``, or ``None`` for no norm.
        q: int8 ``[tokens, 128 * groups]``: columns beyond ``columns`` become zero.
        scale: float32 ``[tokens]``.
        total: int32 ``[tokens]``: the sum of ``q``.
        columns: Columns.
        groups: Groups of 128 columns, padding included.
        epsilon: Of the norm.
        BLOCK_COLUMNS: Columns a step, so that any number of columns needs the same registers.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_COLUMNS)
    row = x + token * columns
    bits = tl.zeros((BLOCK_COLUMNS,), tl.int32)
    squares = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    small_squares = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for begin in range(0, columns, BLOCK_COLUMNS):
        inside = begin + column < columns
        u = tl.load(row + (begin + column), mask=inside, other=0.0).to(tl.float32)
        if norm_weight is not None:
            squares += u * u
            small_squares += (u * SMALL) * (u * SMALL)
            u *= tl.load(norm_weight + (begin + column), mask=inside, other=0.0)
        bits = tl.maximum(bits, largest_bits(u))
    inverse = 1.0
    if norm_weight is not None:
        inverse = inverse_root(tl.sum(squares, 0), tl.sum(small_squares, 0), columns, epsilon)
    step, token_scale = step_and_scale(tl.max(bits, 0), inverse)

    padded = groups * 128
    sums = tl.zeros((BLOCK_COLUMNS,), tl.int32)
    # The second reading finds the token in the first-level cache.
    for begin in range(0, padded, BLOCK_COLUMNS):
        inside = begin + column < columns
        u = tl.load(row + (begin + column), mask=inside, other=0.0).to(tl.float32)
        if norm_weight is not None:
            u *= tl.load(norm_weight + (begin + column), mask=inside, other=0.0)
        rounded = tl.where(step > 0.0, round_to_int(u * step), 0)
        sums += rounded
        tl.store(
            q + (token * padded + begin + column),
            rounded.to(tl.int8),
            mask=begin + column < padded,
        )
    tl.store(scale + token, token_scale)
    tl.store(total + token, tl.sum(sums, 0))
