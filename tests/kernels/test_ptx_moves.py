"""mov, selp, setp and predicate logic of the PTX executor."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import numpy as np
import pytest
from agentforge_kernels.verify.ptx.faults import UnsupportedInstruction

from tests.kernels.ptx_snippets import as_array, evaluate, pairs_of

ORDERED: dict[str, Callable[[float, float], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64", "b32"])
def test_integer_comparisons(kind: str) -> None:
    typed = kind.replace("b", "u")
    first, second = pairs_of(typed, extra=20)
    names = {"eq": "eq", "ne": "ne"} if kind[0] == "b" else {name: name for name in ORDERED}
    if kind[0] == "u":
        names |= UNSIGNED_NAMES
    got = evaluate(
        "".join(f"setp.{name}.{kind} %{name}, %a, %b;" for name in names),
        {"%a": (typed, as_array(first, typed)), "%b": (typed, as_array(second, typed))},
        {f"%{name}": "pred" for name in names},
    )
    for name, meaning in names.items():
        want = [ORDERED[meaning](a, b) for a, b in zip(first, second, strict=True)]
        assert got[f"%{name}"].tolist() == want


@pytest.mark.parametrize("kind", ["f16", "f32", "f64", "bf16"])
def test_float_comparisons_with_nan(kind: str) -> None:
    edges = [0.0, -0.0, 1.0, -1.0, 1.5, math.inf, -math.inf, math.nan]
    first = [a for a in edges for _ in edges]
    second = edges * len(edges)

    def register(values: list[float]) -> np.ndarray:
        if kind == "bf16":
            return (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return np.array(values, {"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind])

    names = [*ORDERED, *(f"{name}u" for name in ORDERED), "num", "nan"]
    got = evaluate(
        "".join(f"setp.{name}.{kind} %{name}, %a, %b;" for name in names),
        {"%a": (kind, register(first)), "%b": (kind, register(second))},
        {f"%{name}": "pred" for name in names},
    )
    for name in names:
        for a, b, result in zip(first, second, got[f"%{name}"].tolist(), strict=True):
            unordered = math.isnan(a) or math.isnan(b)
            if name in ("num", "nan"):
                want = unordered == (name == "nan")
            elif unordered:  # ordered comparisons are false, "...u" ones true
                want = name.endswith("u")
            else:
                want = ORDERED[name.removesuffix("u")](a, b)
            assert result == want, (name, a, b)


def test_comparison_combined_with_a_predicate_and_negated() -> None:
    a = np.array([1, 2, 3, 4] * 2, np.int32)
    c = np.array([1] * 4 + [0] * 4, np.uint32)
    got = evaluate(
        """
        setp.lt.and.s32 %p|%q, %a, 3, %c;
        setp.lt.or.s32 %r|%s, %a, 3, %c;
        setp.lt.xor.s32 %t, %a, 3, %c;
        """,
        {"%a": ("s32", a), "%c": ("pred", c)},
        dict.fromkeys(("%p", "%q", "%r", "%s", "%t"), "pred"),
    )
    below, third = a < 3, c == 1
    assert got["%p"].tolist() == (below & third).tolist()
    assert got["%q"].tolist() == (~below & third).tolist()
    assert got["%r"].tolist() == (below | third).tolist()
    assert got["%s"].tolist() == (~below | third).tolist()
    assert got["%t"].tolist() == (below ^ third).tolist()


def test_predicate_logic() -> None:
    a, b = np.array([0, 0, 1, 1], np.uint32), np.array([0, 1, 0, 1], np.uint32)
    got = evaluate(
        """
        and.pred %d, %a, %b; or.pred %e, %a, %b; xor.pred %f, %a, %b; not.pred %g, %a;
        mov.pred %h, %b; setp.ne.b32 %i, 0, 0; selp.u32 %j, 7, 9, %a;
        mov.pred %k, -1; mov.pred %l, 0; xor.pred %m, %a, true; xor.pred %n, %a, false;
        """,
        {"%a": ("pred", a), "%b": ("pred", b)},
        {**{f"%{name}": "pred" for name in "defghiklmn"}, "%j": "u32"},
    )
    assert got["%d"].tolist() == [False, False, False, True]
    assert got["%e"].tolist() == [False, True, True, True]
    assert got["%f"].tolist() == [False, True, True, False]
    assert got["%g"].tolist() == [True, True, False, False]
    assert got["%h"].tolist() == [False, True, False, True]
    assert got["%i"].tolist() == [False] * 4
    assert got["%j"].tolist() == [9, 9, 7, 7]
    assert got["%k"].tolist() == [True] * 4
    assert got["%l"].tolist() == [False] * 4
    assert got["%m"].tolist() == got["%g"].tolist()
    assert got["%n"].tolist() == a.astype(bool).tolist()


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "f32", "s32"])
def test_selection(kind: str) -> None:
    a, b = np.arange(1, 9), np.arange(11, 19)
    chosen = np.array([1, 0, 0, 1, 1, 1, 0, 0], np.uint32)
    got = evaluate(
        f"selp.{kind} %d, %a, %b, %p;",
        {"%a": (kind, a), "%b": (kind, b), "%p": ("pred", chosen)},
        {"%d": kind},
    )["%d"]
    assert got.tolist() == np.where(chosen == 1, a, b).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "setp.lo.s32.f32 %p, %a, %a;",
        "setp.ltu.s32 %p, %a, %a;",
        "setp.eq.f16x2 %p, %a, %a;",
        "selp.b32 %d, %a, %a, %a;",
        "mov.b32 %p, %a;",
    ],
)
def test_misused_types_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedInstruction):
        evaluate(text, {"%a": ("s32", np.arange(4, dtype=np.int32))}, {"%p": "pred", "%d": "b32"})
