"""Float instructions of the PTX executor against exact fractions rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from agentforge_kernels.verify.ptx.faults import UnsupportedInstruction
from agentforge_kernels.verify.ptx.types import bfloat16_to_float32

from tests.kernels.exact_rounding import nearest, numbers
from tests.kernels.ptx_snippets import Array, evaluate

NAN, INFINITY = math.nan, math.inf


def bits_of(values: Array, kind: str) -> Array:
    """float32 numbers, representable in ``kind``, as that kind's register content."""
    if kind == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype({"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind])


def values_of(bits: Array, kind: str) -> list[float]:
    return (bfloat16_to_float32(bits) if kind == "bf16" else bits).astype(np.float64).tolist()


def operate(text: str, kind: str, *operands: Array) -> list[float]:
    """Run ``text`` on registers ``%a``, ``%b``, ``%c``; the result is in ``%d``."""
    inputs = {
        f"%{name}": (kind, bits_of(values, kind))
        for name, values in zip("abc", operands, strict=False)
    }
    return values_of(evaluate(text, inputs, {"%d": kind})["%d"], kind)


def same(got: float, want: float) -> bool:
    """Equal in value and sign; NaN equals NaN."""
    if math.isnan(want):
        return math.isnan(got)
    return got == want and math.copysign(1, got) == math.copysign(1, want)


EXACT: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "add.f32": lambda a, b: a + b,
    "add.rn.f32": lambda a, b: a + b,
    "sub.f32": lambda a, b: a - b,
    "mul.f32": lambda a, b: a * b,
    "div.rn.f32": lambda a, b: a / b,
    "add.f16": lambda a, b: a + b,
    "sub.f16": lambda a, b: a - b,
    "mul.f16": lambda a, b: a * b,
    "add.bf16": lambda a, b: a + b,
    "sub.bf16": lambda a, b: a - b,
    "mul.bf16": lambda a, b: a * b,
}


@pytest.mark.parametrize("name", EXACT)
def test_arithmetic_rounds_once(name: str) -> None:
    kind = name.split(".")[-1]
    first, second = numbers(kind, 1500, 1), numbers(kind, 1500, 2)
    # Half of the pairs have close exponents, where sums cancel and round.
    second[::2] = bits_back(first[::2] * np.float32(1.625), kind)
    if name.startswith("div"):
        first, second = first[second != 0], second[second != 0]
    got = operate(f"{name} %d, %a, %b;", kind, first, second)
    for a, b, result in zip(first.tolist(), second.tolist(), got, strict=True):
        exact = EXACT[name](Fraction(a), Fraction(b))
        if exact != 0:  # signs of zeros have their own test
            assert same(result, nearest(exact, kind)), (a, b)
        else:
            assert result == 0


def bits_back(values: Array, kind: str) -> Array:
    """Values brought into a format and back to float32."""
    with np.errstate(over="ignore"):
        clipped = np.nan_to_num(np.clip(values, -6e4, 6e4) if kind == "f16" else values)
        return np.array(values_of(bits_of(clipped, kind), kind), np.float32)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_fused_multiply_add_rounds_once(kind: str) -> None:
    a, b = numbers(kind, 3000, 3), numbers(kind, 3000, 4)
    with np.errstate(all="ignore"):
        # Addends that nearly cancel the product, or lie far below its last bit.
        near = bits_back(-(a * b), kind)
        tiny = bits_back(a * b * np.float32(2.0**-30), kind)
    c = np.where(np.arange(len(a)) % 3 == 0, near, np.where(np.arange(len(a)) % 3 == 1, tiny, a))
    got = operate(f"fma.rn.{kind} %d, %a, %b, %c;", kind, a, b, c)
    for x, y, z, result in zip(a.tolist(), b.tolist(), c.tolist(), got, strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        assert exact == 0 or same(result, nearest(exact, kind)), (x, y, z)


def test_fused_multiply_add_where_rounding_twice_would_differ() -> None:
    """Sums a fraction of float64's last bit beside the middle of two float32 numbers.

    Rounded to float64 first, many fall on the middle, and ties-to-even errs for half of these.
    """
    a, b, c = [], [], []
    for m in (1, 64, 128, 256, 384, 512, 640, 1024):
        for k in range(8):
            for scale in (1.0, -1.0, 2.0**-20, -(2.0**-20)):
                # a b = 2^-24 (1 - m^2 2^-46), that is 2^-24 less m^2 2^-18 last bits of 1.
                a.append(scale * (1 + m * 2.0**-23))
                b.append(2.0**-24 * (1 - m * 2.0**-23))
                c.append(abs(scale) * (1 + k * 2.0**-23))
    operands = [np.array(values, np.float32) for values in (a, b, c)]
    got = operate("fma.rn.f32 %d, %a, %b, %c;", "f32", *operands)
    want = [
        nearest(Fraction(x) * Fraction(y) + Fraction(z), "f32")
        for x, y, z in zip(a, b, c, strict=True)
    ]
    assert got == want
    negated = operate(
        "neg.f32 %a, %a; neg.f32 %c, %c; fma.rn.f32 %d, %a, %b, %c;", "f32", *operands
    )
    assert negated == [-value for value in want]
    twice = [float(np.float32(x * y + z)) for x, y, z in zip(a, b, c, strict=True)]
    assert sum(x != y for x, y in zip(twice, want, strict=True)) > 20


def test_bfloat16_multiply_add_where_rounding_to_float32_first_would_differ() -> None:
    """Products in the middle of two bfloat16 numbers, and addends beside float32's last bit."""
    cases = [
        (1.5, 1 + k * 2.0**-7, sign * c)
        for k in range(1, 32, 2)
        for c in (2.0**-30, 2.0**-25, 1.5 * 2.0**-24, 1.25 * 2.0**-23, 1.75 * 2.0**-23)
        for sign in (1.0, -1.0)
    ]
    operands = [np.array(column, np.float32) for column in zip(*cases, strict=True)]
    got = operate("fma.rn.bf16 %d, %a, %b, %c;", "bf16", *operands)
    assert got == [nearest(Fraction(a) * Fraction(b) + Fraction(c), "bf16") for a, b, c in cases]


@pytest.mark.parametrize("text", ["sqrt.rn.f32 %d, %a;", "rcp.rn.f32 %d, %a;"])
def test_roots_and_reciprocals_round_once(text: str) -> None:
    a = np.abs(numbers("f32", 1500, 5))
    a = a[a > 0]
    for x, result in zip(a.tolist(), operate(text, "f32", a), strict=True):
        if text.startswith("rcp"):
            assert same(result, nearest(1 / Fraction(x), "f32")), x
        else:
            # 2^200 x is a whole number; its root to the unit, with a bit for "there is more".
            scaled = int(Fraction(x) * 2**400)
            root = math.isqrt(scaled)
            more = Fraction(int(root * root != scaled), 2)
            assert same(result, nearest((root + more) / 2**200, "f32")), x


def test_signed_zeros_infinities_and_nan() -> None:
    cases = [
        ("add.f32 %d, %a, %b;", 0.0, -0.0, 0.0),
        ("add.f32 %d, %a, %b;", -0.0, -0.0, -0.0),
        ("sub.f32 %d, %a, %b;", 1.0, 1.0, 0.0),
        ("sub.f32 %d, %a, %b;", INFINITY, INFINITY, NAN),
        ("mul.f32 %d, %a, %b;", -0.0, 3.0, -0.0),
        ("mul.f32 %d, %a, %b;", 0.0, INFINITY, NAN),
        ("mul.f32 %d, %a, %b;", 1e30, 1e30, INFINITY),
        ("div.rn.f32 %d, %a, %b;", 1.0, -0.0, -INFINITY),
        ("div.rn.f32 %d, %a, %b;", 0.0, 0.0, NAN),
        ("fma.rn.f32 %d, %a, %b, %b;", 0.0, INFINITY, NAN),
        ("fma.rn.f32 %d, %a, %b, %b;", 1.0, -INFINITY, -INFINITY),
        ("neg.f32 %d, %a;", 0.0, 0.0, -0.0),
        ("abs.f32 %d, %a;", -0.0, 0.0, 0.0),
        ("abs.f32 %d, %a;", -INFINITY, 0.0, INFINITY),
        ("sqrt.rn.f32 %d, %a;", -1.0, 0.0, NAN),
        # min and max: a number beats NaN, -0 is below +0.
        ("min.f32 %d, %a, %b;", 0.0, -0.0, -0.0),
        ("min.f32 %d, %a, %b;", -0.0, 0.0, -0.0),
        ("max.f32 %d, %a, %b;", 0.0, -0.0, 0.0),
        ("max.f32 %d, %a, %b;", -0.0, 0.0, 0.0),
        ("min.f32 %d, %a, %b;", NAN, 2.0, 2.0),
        ("min.f32 %d, %a, %b;", 2.0, NAN, 2.0),
        ("max.f32 %d, %a, %b;", NAN, -2.0, -2.0),
        ("max.f32 %d, %a, %b;", NAN, NAN, NAN),
        ("min.NaN.f32 %d, %a, %b;", NAN, 2.0, NAN),
        ("max.NaN.f32 %d, %a, %b;", 2.0, NAN, NAN),
        ("max.NaN.f32 %d, %a, %b;", 2.0, 3.0, 3.0),
        ("min.f32 %d, %a, %b;", 2.0, -3.0, -3.0),
        # .ftz: subnormal operands and results are zero, sign kept.
        ("add.ftz.f32 %d, %a, %b;", -1e-40, -0.0, -0.0),
        ("add.f32 %d, %a, %b;", 2.0**-140, 2.0**-140, 2.0**-139),
        ("mul.ftz.f32 %d, %a, %b;", 2.0**-100, -(2.0**-40), -0.0),
        ("mul.f32 %d, %a, %b;", 2.0**-100, -(2.0**-40), -(2.0**-140)),
        # .sat: into [0, 1], NaN to 0.
        ("add.sat.f32 %d, %a, %b;", 0.75, 0.5, 1.0),
        ("add.sat.f32 %d, %a, %b;", -0.75, 0.5, 0.0),
        ("add.sat.f32 %d, %a, %b;", NAN, 0.5, 0.0),
        ("fma.rn.sat.f32 %d, %a, %b, %b;", 0.5, 0.5, 0.75),
    ]
    for text, a, b, want in cases:
        (got,) = operate(text, "f32", np.array([a]), np.array([b]))
        assert same(got, want), (text, a, b, got)


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2"])
def test_pairs_are_two_numbers(kind: str) -> None:
    element = kind.removesuffix("x2")
    numbers_of = [
        bits_of(np.array(values, np.float32), element)
        for values in ([1.5, -2.0, 0.25, 8.0], [0.5, 4.0, -1.0, 0.125], [1.0, 1.0, 2.0, -1.0])
    ]
    inputs = {
        f"%{name}": (kind, np.ascontiguousarray(values).view(np.uint32))
        for name, values in zip("abc", numbers_of, strict=True)
    }
    text = f"fma.rn.{kind} %d, %a, %b, %c; max.{kind} %e, %a, %b; neg.{kind} %f, %a;"
    got = evaluate(text, inputs, {"%d": kind, "%e": kind, "%f": kind})
    part = np.uint16 if element == "bf16" else np.float16
    assert values_of(got["%d"].view(part), element) == [1.75, -7.0, 1.75, 0.0]
    assert values_of(got["%e"].view(part), element) == [1.5, 4.0, 0.25, 8.0]
    assert values_of(got["%f"].view(part), element) == [-1.5, 2.0, -0.25, -8.0]


def test_float64_arithmetic() -> None:
    generator = np.random.default_rng(6)
    a, b = generator.normal(size=(2, 64)) * 1e200
    inputs = {"%a": ("f64", a), "%b": ("f64", b)}
    got = evaluate(
        "add.f64 %d, %a, %b; mul.f64 %e, %a, %b; div.rn.f64 %f, %a, %b;",
        inputs,
        {"%d": "f64", "%e": "f64", "%f": "f64"},
    )
    for x, y, *results in zip(
        a.tolist(), b.tolist(), *(got[name].tolist() for name in ("%d", "%e", "%f")), strict=True
    ):
        assert results == [x + y, x * y, x / y]
    with pytest.raises(UnsupportedInstruction, match="not exact"):
        evaluate("fma.rn.f64 %d, %a, %b, %b;", inputs, {"%d": "f64"})


APPROXIMATIONS: dict[str, Callable[[float], float]] = {
    "rcp.approx.ftz.f32": lambda a: 1 / a,
    "sqrt.approx.ftz.f32": math.sqrt,
    "rsqrt.approx.ftz.f32": lambda a: 1 / math.sqrt(a),
    "ex2.approx.ftz.f32": lambda a: 2.0**a,
    "lg2.approx.ftz.f32": math.log2,
}


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximations_are_within_a_unit_in_the_last_place(name: str) -> None:
    a = np.random.default_rng(8).uniform(0.01, 60, 200).astype(np.float32)
    for x, result in zip(a.tolist(), operate(f"{name} %d, %a;", "f32", a), strict=True):
        want = APPROXIMATIONS[name](x)
        assert abs(result - want) <= abs(np.spacing(np.float32(want))), x


@pytest.mark.parametrize("name", ["div.full.f32", "div.approx.f32"])
def test_fast_division(name: str) -> None:
    a, b = np.random.default_rng(9).uniform(0.1, 100, (2, 200)).astype(np.float32)
    for x, y, result in zip(
        a.tolist(), b.tolist(), operate(f"{name} %d, %a, %b;", "f32", a, b), strict=True
    ):
        assert abs(result - x / y) <= float(np.spacing(np.float32(x / y)))


@pytest.mark.parametrize(
    "text",
    ["add.rz.f32 %d, %a, %a;", "fma.rm.f32 %d, %a, %a, %a;", "max.xorsign.abs.f32 %d, %a, %a;"],
)
def test_other_roundings_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedInstruction, match=text.split()[0]):
        operate(text, "f32", np.ones(4, np.float32))
