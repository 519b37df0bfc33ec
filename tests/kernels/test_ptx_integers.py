"""Integer instructions of the PTX executor against Python's unbounded integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from agentforge_kernels.verify.ptx.faults import UnsupportedInstruction

from tests.kernels.ptx_snippets import Array, as_array, evaluate, pairs_of, wrapped

TYPES = ("s16", "u16", "s32", "u32", "s64", "u64")
WIDE = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}


def truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
    "div": truncated,
    "rem": lambda a, b: a - b * truncated(a, b),
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", BINARY)
def test_arithmetic_wraps(name: str, kind: str) -> None:
    first, second = pairs_of(kind)
    if name in ("div", "rem"):  # by zero: PTX leaves the result open
        first = [a for a, b in zip(first, second, strict=True) if b]
        second = [b for b in second if b]
    got = evaluate(
        f"{name}.{kind} %d, %a, %b;",
        {"%a": (kind, as_array(first, kind)), "%b": (kind, as_array(second, kind))},
        {"%d": kind},
    )["%d"]
    want = [wrapped(BINARY[name](a, b), kind) for a, b in zip(first, second, strict=True)]
    assert got.tolist() == want


@pytest.mark.parametrize("kind", TYPES)
def test_high_half_and_multiply_add(kind: str) -> None:
    first, second = pairs_of(kind)
    third = second[::-1]
    bits = as_array([0], kind).itemsize * 8
    inputs = {
        f"%{name}": (kind, as_array(values, kind))
        for name, values in zip("abc", (first, second, third), strict=True)
    }
    got = evaluate(
        f"mul.hi.{kind} %d, %a, %b; mad.lo.{kind} %e, %a, %b, %c;",
        inputs,
        {"%d": kind, "%e": kind},
    )
    triples = list(zip(first, second, third, strict=True))
    assert got["%d"].tolist() == [wrapped((a * b) >> bits, kind) for a, b, _ in triples]
    assert got["%e"].tolist() == [wrapped(a * b + c, kind) for a, b, c in triples]


@pytest.mark.parametrize("kind", WIDE)
def test_wide_products_keep_all_bits(kind: str) -> None:
    first, second = pairs_of(kind)
    wide = WIDE[kind]
    third, _ = pairs_of(wide)
    third = (third * 2)[: len(first)]
    got = evaluate(
        f"mul.wide.{kind} %d, %a, %b; mad.wide.{kind} %e, %a, %b, %c;",
        {
            "%a": (kind, as_array(first, kind)),
            "%b": (kind, as_array(second, kind)),
            "%c": (wide, as_array(third, wide)),
        },
        {"%d": wide, "%e": wide},
    )
    triples = list(zip(first, second, third, strict=True))
    assert got["%d"].tolist() == [a * b for a, b, _ in triples]
    assert got["%e"].tolist() == [wrapped(a * b + c, wide) for a, b, c in triples]


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_negation_and_magnitude_of_the_smallest_number_wrap(kind: str) -> None:
    values, _ = pairs_of(kind)
    got = evaluate(
        f"neg.{kind} %d, %a; abs.{kind} %e, %a;",
        {"%a": (kind, as_array(values, kind))},
        {"%d": kind, "%e": kind},
    )
    assert got["%d"].tolist() == [wrapped(-a, kind) for a in values]
    assert got["%e"].tolist() == [wrapped(abs(a), kind) for a in values]


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_logic(kind: str) -> None:
    unsigned = f"u{kind[1:]}"
    first, second = pairs_of(unsigned)
    got = evaluate(
        f"and.{kind} %d, %a, %b; or.{kind} %e, %a, %b; xor.{kind} %f, %a, %b; not.{kind} %g, %a;",
        {"%a": (kind, as_array(first, kind)), "%b": (kind, as_array(second, kind))},
        dict.fromkeys(("%d", "%e", "%f", "%g"), kind),
    )
    pairs = list(zip(first, second, strict=True))
    assert got["%d"].tolist() == [a & b for a, b in pairs]
    assert got["%e"].tolist() == [a | b for a, b in pairs]
    assert got["%f"].tolist() == [a ^ b for a, b in pairs]
    assert got["%g"].tolist() == [wrapped(~a, unsigned) for a in first]


COUNTS = [*range(70), 127, 128, 255, 256, 257, 2**31, 2**32 - 1]
"""Shift counts: PTX clamps them to the width, C leaves anything beyond it undefined."""


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"])
def test_shifts_are_clamped(kind: str) -> None:
    typed = kind.replace("b", "u")
    values, _ = pairs_of(typed, extra=4)
    values = values[:: max(1, len(values) // 12)]
    pairs = [(value, count) for value in values for count in COUNTS]
    operation = "shl" if kind[0] == "b" else "shr"
    got = evaluate(
        f"{operation}.{kind} %d, %a, %n;",
        {
            "%a": (typed, as_array([value for value, _ in pairs], typed)),
            "%n": ("u32", as_array([count for _, count in pairs], "u32")),
        },
        {"%d": typed},
    )["%d"]
    want = [
        wrapped(a << min(n, 64), typed) if operation == "shl" else a >> min(n, 64) for a, n in pairs
    ]
    assert got.tolist() == want


@pytest.mark.parametrize("bits", [32, 64])
def test_counting_and_reversing_bits(bits: int) -> None:
    values, _ = pairs_of(f"u{bits}")
    values += [1 << position for position in range(bits)]
    got = evaluate(
        f"clz.b{bits} %d, %a; popc.b{bits} %e, %a; brev.b{bits} %f, %a;",
        {"%a": (f"b{bits}", as_array(values, f"b{bits}"))},
        {"%d": "u32", "%e": "u32", "%f": f"b{bits}"},
    )
    assert got["%d"].tolist() == [bits - a.bit_length() for a in values]
    assert got["%e"].tolist() == [a.bit_count() for a in values]
    assert got["%f"].tolist() == [int(f"{a:0{bits}b}"[::-1], 2) for a in values]


def field_by_the_manual(a: int, position: int, length: int, kind: str) -> int:
    """The pseudo-code of ``bfe`` in the PTX manual, bit by bit."""
    msb = int(kind[1:]) - 1
    pos, count = position & 0xFF, length & 0xFF
    bit = [(a >> i) & 1 for i in range(msb + 1)]
    sign = 0 if kind[0] == "u" or count == 0 else bit[min(pos + count - 1, msb)]
    result = 0
    for i in range(msb + 1):
        chosen = bit[pos + i] if i < count and pos + i <= msb else sign
        result |= chosen << i
    return wrapped(result, kind)


POSITIONS = [0, 1, 5, 8, 16, 31, 32, 33, 63, 64, 65, 255, 256, 0x10004]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_extracting_a_field(kind: str) -> None:
    values, _ = pairs_of(kind, extra=3)
    cases = [(a, p, n) for a in values[::17] for p in POSITIONS for n in POSITIONS]
    a, p, n = (list(column) for column in zip(*cases, strict=True))
    got = evaluate(
        f"bfe.{kind} %d, %a, %p, %n;",
        {
            "%a": (kind, as_array(a, kind)),
            "%p": ("u32", as_array(p, "u32")),
            "%n": ("u32", as_array(n, "u32")),
        },
        {"%d": kind},
    )["%d"]
    assert got.tolist() == [field_by_the_manual(*case, kind) for case in cases]


@pytest.mark.parametrize("bits", [32, 64])
def test_inserting_a_field(bits: int) -> None:
    first, second = pairs_of(f"u{bits}", extra=3)
    cases = [
        (a, b, p, n)
        for a, b in list(zip(first, second, strict=True))[::23]
        for p in POSITIONS
        for n in POSITIONS
    ]
    kind = f"b{bits}"
    a, b, p, n = (list(column) for column in zip(*cases, strict=True))
    got = evaluate(
        f"bfi.{kind} %d, %a, %b, %p, %n;",
        {
            "%a": (kind, as_array(a, kind)),
            "%b": (kind, as_array(b, kind)),
            "%p": ("u32", as_array(p, "u32")),
            "%n": ("u32", as_array(n, "u32")),
        },
        {"%d": kind},
    )["%d"]

    def by_the_manual(a: int, b: int, position: int, length: int) -> int:
        for i in range(length & 0xFF):
            place = (position & 0xFF) + i
            if place < bits:
                b = b & ~(1 << place) | ((a >> i & 1) << place)
        return b

    assert got.tolist() == [by_the_manual(*case) for case in cases]


def words(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).integers(0, 2**32, count, np.uint32)


def test_permuting_bytes() -> None:
    a, b = words(512, 1), words(512, 2)
    selectors = words(512, 3)
    selectors[:6] = [0x3210, 0x7654, 0x5410, 0x7632, 0xFEDC, 0xBA98]
    got = evaluate(
        "prmt.b32 %d, %a, %b, %s;",
        {"%a": ("b32", a), "%b": ("b32", b), "%s": ("b32", selectors)},
        {"%d": "b32"},
    )["%d"]
    for x, y, selector, result in zip(
        a.tolist(), b.tolist(), selectors.tolist(), got.tolist(), strict=True
    ):
        pool = (x | y << 32).to_bytes(8, "little")
        want = []
        for position in range(4):
            nibble = selector >> (4 * position) & 15
            octet = pool[nibble & 7]
            want.append((0xFF if octet & 0x80 else 0) if nibble & 8 else octet)
        assert result == int.from_bytes(want, "little")


def test_every_table_of_three_input_logic() -> None:
    a, b, c = words(4, 4), words(4, 5), words(4, 6)
    inputs = {"%a": ("b32", a), "%b": ("b32", b), "%c": ("b32", c)}
    for first in range(0, 256, 16):
        tables = range(first, first + 16)
        text = "".join(f"lop3.b32 %d{t}, %a, %b, %c, {t:#x};\n" for t in tables)
        got = evaluate(text, inputs, {f"%d{table}": "b32" for table in tables})
        for table in tables:
            # The manual: apply the wanted function to 0xF0, 0xCC and 0xAA to get the table.
            for x, y, z, result in zip(a, b, c, got[f"%d{table}"], strict=True):
                for bit in range(32):
                    row = (x >> bit & 1) << 2 | (y >> bit & 1) << 1 | (z >> bit & 1)
                    assert result >> bit & 1 == table >> row & 1


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shifts(mode: str) -> None:
    counts = np.array([*range(40), 63, 64, 2**32 - 1], np.uint32)
    low, high = words(len(counts), 8), words(len(counts), 9)
    got = evaluate(
        f"shf.l.{mode}.b32 %d, %a, %b, %n; shf.r.{mode}.b32 %e, %a, %b, %n;",
        {"%a": ("b32", low), "%b": ("b32", high), "%n": ("u32", counts)},
        {"%d": "b32", "%e": "b32"},
    )
    for a, b, count, left, right in zip(
        low.tolist(), high.tolist(), counts.tolist(), got["%d"], got["%e"], strict=True
    ):
        n = count & 31 if mode == "wrap" else min(count, 32)
        assert left == (b << n | a >> (32 - n)) & 0xFFFFFFFF
        assert right == (b << (32 - n) | a >> n) & 0xFFFFFFFF


@pytest.mark.parametrize("left", ["s32", "u32"])
@pytest.mark.parametrize("right", ["s32", "u32"])
def test_dot_product_of_four_bytes(left: str, right: str) -> None:
    a, b, c = words(300, 10), words(300, 11), words(300, 12)
    a[:2], b[:2] = 0x80808080, 0x80808080  # -128 * -128, or 128 * 128, four times
    c[:3] = [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    kind = "u32" if (left, right) == ("u32", "u32") else "s32"
    got = evaluate(
        f"dp4a.{left}.{right} %d, %a, %b, %c;",
        {
            "%a": ("b32", a),
            "%b": ("b32", b),
            "%c": (kind, c.view(np.int32) if kind[0] == "s" else c),
        },
        {"%d": kind},
    )["%d"]
    for x, y, z, result in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        total = wrapped(z, kind)
        for shift in (0, 8, 16, 24):
            first, second = x >> shift & 0xFF, y >> shift & 0xFF
            total += wrapped(first, left.replace("32", "8")) * wrapped(
                second, right.replace("32", "8")
            )
        assert result == wrapped(total, kind)


@pytest.mark.parametrize(
    "text",
    [
        "add.sat.s32 %d, %a, %a;",
        "add.cc.u32 %d, %a, %a;",
        "mul.s32 %d, %a, %a;",
        "mul24.lo.s32 %d, %a, %a;",
        "prmt.b32.f4e %d, %a, %a, %a;",
        "shf.r.b32 %d, %a, %a, %a;",
        "add.s32 %d, %a, %a, %a;",
        "add.s32 %d, %a, %never_declared;",
        "add.s64 %d, %a, %a;",
        "dp2a.lo.s32.s32 %d, %a, %a, %a;",
        "bfind.u32 %d, %a;",
    ],
)
def test_forms_that_are_not_implemented_are_refused_by_name(text: str) -> None:
    with pytest.raises(UnsupportedInstruction) as raised:
        evaluate(text, {"%a": ("s32", np.arange(4, dtype=np.int32))}, {"%d": "s32"})
    assert text.rstrip(";") in str(raised.value)
