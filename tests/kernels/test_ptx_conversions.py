"""cvt and mov of the PTX executor: widths, signs, rounding, saturation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from agentforge_kernels.verify.ptx.faults import UnsupportedInstruction
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, bfloat16_to_float32

from tests.kernels.exact_rounding import nearest, numbers
from tests.kernels.ptx_snippets import (
    Array,
    as_array,
    evaluate,
    integer_edges,
    pairs_of,
    wrapped,
)

INTEGERS = ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64")


def convert(text: str, source: str, values: Array, destination: str) -> Array:
    return evaluate(f"{text} %d, %a;", {"%a": (source, values)}, {"%d": destination})["%d"]


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("destination", INTEGERS)
def test_integers_wrap_or_saturate(source: str, destination: str) -> None:
    values, _ = pairs_of(source, extra=30)
    limits = np.iinfo(NUMPY_TYPES[destination])
    array = as_array(values, source)
    got = convert(f"cvt.{destination}.{source}", source, array, destination)
    assert got.tolist() == [wrapped(value, destination) for value in values]
    got = convert(f"cvt.sat.{destination}.{source}", source, array, destination)
    assert got.tolist() == [min(max(value, int(limits.min)), int(limits.max)) for value in values]


def test_a_narrow_result_fills_its_wide_register() -> None:
    values = np.array([0x80, 0x7F, 0x1FF, 0xFFFFFF80], np.uint32)
    for kind, want in (("s8", [-128, 127, -1, -128]), ("u8", [128, 127, 255, 128])):
        got = convert(f"cvt.{kind}.u32", "u32", values, "s32")
        assert got.tolist() == want


ROUNDINGS = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


def float_edges(kind: str) -> list[float]:
    """Halves, whole numbers around every integer type's limits, and beyond."""
    found = [0.0, -0.0, 0.49999997, 1e-40, -1e-40, 3e38, -3e38, math.inf, -math.inf]
    found += [n + half for n in range(-6, 7) for half in (0.5, 0.25, 0.75)]
    for integer in INTEGERS:
        found += [float(edge) for edge in integer_edges(integer)]
    with np.errstate(over="ignore"):
        return np.array(found).astype(NUMPY_TYPES[kind]).tolist()


@pytest.mark.parametrize("source", ["f32", "f16", "f64"])
@pytest.mark.parametrize("destination", INTEGERS)
def test_floats_to_integers_round_as_told_and_saturate(source: str, destination: str) -> None:
    values = float_edges(source)
    limits = np.iinfo(NUMPY_TYPES[destination])
    for name, rounding in ROUNDINGS.items():
        got = convert(
            f"cvt.{name}.{destination}.{source}",
            source,
            np.array(values, NUMPY_TYPES[source]),
            destination,
        )
        for value, result in zip(values, got.tolist(), strict=True):
            if math.isinf(value):
                whole = 2**200 if value > 0 else -(2**200)
            else:
                whole = rounding(value)
            assert result == min(max(whole, int(limits.min)), int(limits.max)), (name, value)


def test_not_a_number_becomes_an_integer_as_the_manual_says() -> None:
    # PTX ISA, cvt: zero, unless float64 or a 64-bit integer takes part: then only the top bit.
    for source, destination, want in (
        ("f32", "s32", 0),
        ("f32", "u8", 0),
        ("f16", "s16", 0),
        ("f32", "s64", -(2**63)),
        ("f32", "u64", 2**63),
        ("f64", "s32", -(2**31)),
        ("f64", "u32", 2**31),
    ):
        values = np.full(3, math.nan, NUMPY_TYPES[source])
        got = convert(f"cvt.rzi.{destination}.{source}", source, values, destination)
        assert got.tolist() == [want] * 3


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("destination", ["f32", "f16", "bf16"])
def test_integers_to_floats_round_once(source: str, destination: str) -> None:
    values, _ = pairs_of(source, extra=200)
    # 2^24 + 1 and its like: ties and near-ties of float32.
    values += [
        v
        for v in ((1 << 24) + 1, (1 << 25) + 2, (1 << 31) + 129, (1 << 60) + (1 << 36) + 1)
        if v <= int(np.iinfo(NUMPY_TYPES[source]).max)
    ]
    text = f"cvt.rn.{destination}.{source}"
    if source in ("s64", "u64") and destination != "f32":
        with pytest.raises(UnsupportedInstruction, match="cvt"):
            convert(text, source, as_array(values, source), destination)
        return
    got = float_values(convert(text, source, as_array(values, source), destination), destination)
    assert got == [nearest(Fraction(value), destination) for value in values]


def float_values(bits: Array, kind: str) -> list[float]:
    return (bfloat16_to_float32(bits) if kind == "bf16" else bits).astype(np.float64).tolist()


@pytest.mark.parametrize("destination", ["f16", "bf16"])
def test_floats_to_narrower_floats_round_once(destination: str) -> None:
    values = numbers("f32", 2000, 11)
    # Half of them moved between two neighbours of the narrow format: ties and near-ties.
    values[::2] = numbers(destination, 2000, 12)[::2] * np.float32(1 + 2.0**-9 + 2.0**-23)
    got = float_values(
        convert(f"cvt.rn.{destination}.f32", "f32", values, destination), destination
    )
    for value, result in zip(values.tolist(), got, strict=True):
        want = nearest(Fraction(value), destination, zero=value)
        assert (result, math.copysign(1, result)) == (want, math.copysign(1, want))
    special = np.array([math.inf, -math.inf, math.nan, 3.4e38, -0.0], np.float32)
    got = float_values(
        convert(f"cvt.rn.{destination}.f32", "f32", special, destination), destination
    )
    assert [got[0], got[1], got[3]] == [math.inf, -math.inf, math.inf]
    assert math.isnan(got[2])
    assert math.copysign(1, got[4]) == -1


def test_pairs_hold_the_first_operand_in_the_upper_half() -> None:
    high, low = numbers("f32", 500, 13), numbers("f32", 500, 14)
    for kind in ("f16", "bf16"):
        got = evaluate(
            f"cvt.rn.{kind}x2.f32 %d, %a, %b;",
            {"%a": ("f32", high), "%b": ("f32", low)},
            {"%d": f"{kind}x2"},
        )["%d"]
        parts = got.view(NUMPY_TYPES[kind]).reshape(-1, 2)
        for place, values in ((0, low), (1, high)):
            assert float_values(parts[:, place], kind) == [
                nearest(Fraction(value), kind, zero=value) for value in values.tolist()
            ]


def test_widening_is_exact() -> None:
    halves = numbers("f16", 300, 15).astype(np.float16)
    assert convert("cvt.f32.f16", "f16", halves, "f32").tolist() == halves.tolist()
    bits = np.arange(0, 0x7F80, 7, dtype=np.uint16)
    got = convert("cvt.f32.bf16", "bf16", bits, "f32")
    assert got.view(np.uint32).tolist() == [value << 16 for value in bits.tolist()]


def test_rounding_to_whole_floats_and_saturating_ones() -> None:
    values = np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 0.25, math.nan], np.float32)
    got = convert("cvt.rni.f32.f32", "f32", values, "f32")[:-1]
    assert got.tolist() == [-2.0, -0.0, 0.0, 2.0, 2.0, 0.0]
    got = convert("cvt.sat.f32.f32", "f32", values, "f32")
    assert got.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0, 0.25, 0.0]
    tiny = np.array([1e-40, -1e-40], np.float32)
    flushed = convert("cvt.ftz.f64.f32", "f32", tiny, "f64")
    assert flushed.tolist() == [0.0, 0.0]
    assert np.signbit(flushed).tolist() == [False, True]


@pytest.mark.parametrize(
    "text",
    [
        "cvt.rz.f16.f32 %d, %a;",
        "cvt.rna.tf32.f32 %d, %a;",
        "cvt.rn.satfinite.e4m3x2.f32 %d, %a, %a;",
        "cvt.rn.sat.f16x2.f32 %d, %a, %a;",
        "cvt.rn.f16x2.f32 %d, %a;",
        "cvt.rn.f16x2.s32 %d, %a, %a;",
        "cvt.f32.f16x2 %d, %a;",
        "cvt.s32 %d, %a;",
    ],
)
def test_other_conversions_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedInstruction, match=text.split()[0]):
        evaluate(text, {"%a": ("f32", np.ones(2, np.float32))}, {"%d": "b32"})


def test_moves_pack_and_unpack() -> None:
    generator = np.random.default_rng(16)
    a, b = generator.integers(0, 2**32, (2, 40), np.uint32)
    got = evaluate(
        """
        mov.b64 %wide, {%a, %b};
        mov.b64 {%low, %high}, %wide;
        mov.b32 {%h0, %h1}, %a;
        mov.b32 %swapped, {%h1, %h0};
        mov.b64 %four, {%h0, %h1, %h1, %h0};
        mov.b32 %ten, 0xA;
        mov.f32 %half, 0f3F000000;
        mov.f64 %double, 0d3FF8000000000000;
        mov.b64 {_, %upper}, %wide;
        """,
        {"%a": ("b32", a), "%b": ("b32", b)},
        {
            "%wide": "b64",
            "%low": "b32",
            "%high": "b32",
            "%swapped": "b32",
            "%four": "b64",
            "%ten": "b32",
            "%half": "f32",
            "%double": "f64",
            "%upper": "b32",
        },
        declarations=".reg .b16 %h0, %h1;",
    )
    wide = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    assert np.array_equal(got["%wide"], wide)
    assert np.array_equal(got["%low"], a)
    assert np.array_equal(got["%high"], b)
    assert np.array_equal(got["%swapped"], a << np.uint32(16) | a >> np.uint32(16))
    low, high = a & np.uint32(0xFFFF), a >> np.uint32(16)
    assert got["%four"].tolist() == [
        x | y << 16 | y << 32 | x << 48 for x, y in zip(low.tolist(), high.tolist(), strict=True)
    ]
    assert set(got["%ten"].tolist()) == {10}
    assert set(got["%half"].tolist()) == {0.5}
    assert set(got["%double"].tolist()) == {1.5}
    assert np.array_equal(got["%upper"], b)
