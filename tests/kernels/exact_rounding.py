"""Rounding exact fractions to binary floating-point formats: the oracle of float instructions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Format:
    """An IEEE 754 binary format.

    Attributes:
        precision: Bits of the significand, the hidden one included.
        smallest: Exponent of the smallest normal number.
        largest: Exponent of the largest.
    """

    precision: int
    smallest: int
    largest: int


FORMATS = {
    "f16": Format(11, -14, 15),
    "bf16": Format(8, -126, 127),
    "f32": Format(24, -126, 127),
}


def nearest(value: Fraction, kind: str, zero: float = 0.0) -> float:
    """``value`` rounded to the format, to nearest, ties to even.

    Args:
        value: The exact value.
        kind: PTX type.
        zero: What an exact zero becomes: its sign is not in ``value``.
    """
    if value == 0:
        return zero
    described = FORMATS[kind]
    exponent = max(floor_log2(abs(value)), described.smallest)
    unit = Fraction(2) ** (exponent - described.precision + 1)
    units = round(abs(value) / unit)  # Python rounds a Fraction's ties to even
    magnitude = units * unit
    limit = Fraction(2) ** (described.largest + 1)
    result = math.inf if magnitude >= limit else float(magnitude)
    return math.copysign(result, value)


def floor_log2(value: Fraction) -> int:
    """Exponent of the leading bit of a positive fraction."""
    estimate = value.numerator.bit_length() - value.denominator.bit_length()
    return estimate if Fraction(2) ** estimate <= value else estimate - 1


def numbers(kind: str, count: int, seed: int) -> NDArray[Any]:
    """Finite numbers of a format over all its exponents, subnormal ones and zeros included.

    Returns:
        float32, each exactly representable in the format.
    """
    described = FORMATS[kind]
    generator = np.random.default_rng(seed)
    significand = generator.integers(0, 2**described.precision, count)
    exponent = generator.integers(described.smallest, described.largest + 1, count)
    sign = generator.choice([-1.0, 1.0], count)
    found = np.ldexp(sign * significand, exponent - described.precision + 1)
    return np.concatenate([[0.0, -0.0, 1.0, -1.0], found]).astype(np.float32)
