"""Instructions of whole warps: shuffles, reductions, matrix fragments."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import numpy as np
import pytest
from agentforge_kernels.verify.ptx.faults import Divergence, UnsupportedInstruction

from tests.kernels.ptx_snippets import WARP, Array, evaluate, run_block, wrapped


def words(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 2**32, count, np.uint32)


def lane_by_the_manual(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The pseudo-code of ``shfl.sync`` in the PTX manual."""
    bval, cval, mask = b & 31, c & 31, c >> 8 & 31
    max_lane = (lane & mask) | (cval & ~mask & 31)
    min_lane = lane & mask
    if mode == "up":
        j = lane - bval
        inside = j >= max_lane
    elif mode == "down":
        j = lane + bval
        inside = j <= max_lane
    elif mode == "bfly":
        j = lane ^ bval
        inside = j <= max_lane
    else:
        j = min_lane | (bval & ~mask & 31)
        inside = j <= max_lane
    return (j if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("segment", [0, 0b10000, 0b11000, 0b11110])
def test_shuffles(mode: str, segment: int) -> None:
    values = words(2 * WARP, 1)  # two warps
    lanes = np.arange(2 * WARP) % WARP
    bound = 0 if mode == "up" else 31
    for b in (0, 1, 2, 5, 16, 31, 33):
        c = segment << 8 | bound
        got = evaluate(
            f"shfl.sync.{mode}.b32 %d|%p, %a, {b}, {c}, -1;",
            {"%a": ("b32", values)},
            {"%d": "b32", "%p": "pred"},
        )
        for thread, lane in enumerate(lanes.tolist()):
            source, inside = lane_by_the_manual(mode, lane, b, c)
            assert got["%d"][thread] == values[thread - lane + source]
            assert got["%p"][thread] == inside


def test_shuffle_by_registers_without_a_predicate() -> None:
    values, index = words(WARP, 2), np.arange(WARP, dtype=np.uint32)[::-1].copy()
    got = evaluate(
        "shfl.sync.idx.b32 %d, %a, %i, 31, %full;",
        {
            "%a": ("b32", values),
            "%i": ("b32", index),
            "%full": ("b32", np.full(WARP, 2**32 - 1)),
        },
        {"%d": "b32"},
    )["%d"]
    assert got.tolist() == values[::-1].tolist()


REDUCTIONS: dict[str, Callable[[int, int], int]] = {
    "add.s32": operator.add,
    "add.u32": operator.add,
    "min.s32": min,
    "min.u32": min,
    "max.s32": max,
    "max.u32": max,
    "and.b32": operator.and_,
    "or.b32": operator.or_,
    "xor.b32": operator.xor,
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str) -> None:
    kind = name.split(".")[1].replace("b", "u")
    values = words(3 * WARP, 3).view(np.int32 if kind == "s32" else np.uint32)
    got = evaluate(
        f"redux.sync.{name} %d, %a, %m;",
        {"%a": (kind, values), "%m": ("b32", np.full(3 * WARP, 2**32 - 1))},
        {"%d": kind},
    )["%d"]
    for row, results in zip(values.reshape(3, WARP), got.reshape(3, WARP), strict=True):
        want = wrapped(functools.reduce(REDUCTIONS[name], row.tolist()), kind)
        assert results.tolist() == [want] * WARP


PARTIAL = """
setp.lt.u32 %q, %thread, 20;
@%q bra THERE;
bra END;
THERE: {instruction}
END:
"""


@pytest.mark.parametrize(
    "instruction",
    [
        "shfl.sync.bfly.b32 %r, %r, 1, 31, -1;",
        "redux.sync.add.s32 %r, %r, -1;",
        "bar.warp.sync -1;",
        "bar.sync 0;",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r}, [memory];",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r,%r,%r,%r}, {%r,%r,%r,%r}, {%r,%r},"
        " {%r,%r,%r,%r};",
    ],
)
def test_part_of_a_warp_does_not_do(instruction: str) -> None:
    with pytest.raises(Divergence, match=instruction.split()[0]):
        run_block(
            PARTIAL.format(instruction=instruction),
            [],
            declarations=".reg .pred %q; .reg .b32 %r;",
            shared=".shared .align 16 .b8 memory[512];",
        )


def test_masks_of_some_threads() -> None:
    with pytest.raises(UnsupportedInstruction, match="mask of all 32 threads"):
        evaluate("shfl.sync.bfly.b32 %a, %a, 1, 31, 15;", {"%a": ("b32", words(32, 4))}, {})
    # bar.warp.sync: those named must be there; here they are.
    run_block(
        PARTIAL.format(instruction="bar.warp.sync 0xFFFFF;"), [], declarations=".reg .pred %q;"
    )


def fragment_a(thread: int, i: int) -> tuple[int, int]:
    """Row and column of element ``a_i``: PTX ISA, "Matrix Fragments for mma.m16n8k32", s8."""
    group, in_group = thread >> 2, thread % 4
    row = group if 0 <= i < 4 or 8 <= i < 12 else group + 8
    column = in_group * 4 + (i & 3) + (0 if i < 8 else 16)
    return row, column


def fragment_b(thread: int, i: int) -> tuple[int, int]:
    group, in_group = thread >> 2, thread % 4
    row = in_group * 4 + (i & 3) + (0 if i < 4 else 16)
    return row, group


def fragment_c(thread: int, i: int) -> tuple[int, int]:
    group, in_group = thread >> 2, thread % 4
    return (group if i < 2 else group + 8), in_group * 2 + (i & 1)


@pytest.mark.parametrize("left", ["s8", "u8"])
@pytest.mark.parametrize("right", ["s8", "u8"])
@pytest.mark.parametrize("satfinite", ["", ".satfinite"])
def test_matrix_product_of_bytes(left: str, right: str, satfinite: str) -> None:
    generator = np.random.default_rng(5)
    warps = 3
    limits = {"s8": (-128, 128), "u8": (0, 256)}
    a = generator.integers(*limits[left], (warps, 16, 32))
    b = generator.integers(*limits[right], (warps, 32, 8))
    c = generator.integers(-(2**31), 2**31, (warps, 16, 8))
    a[1], b[1] = limits[left][0] or 255, limits[right][0] or 255  # the largest products
    c[1, :, :4] = 2**31 - 1
    registers = {
        name: np.zeros((warps, WARP, count), dtype)
        for name, count, dtype in (("a", 16, np.uint8), ("b", 8, np.uint8), ("c", 4, np.int32))
    }
    for name, matrix, place in (("a", a, fragment_a), ("b", b, fragment_b), ("c", c, fragment_c)):
        for thread in range(WARP):
            for i in range(registers[name].shape[2]):
                row, column = place(thread, i)
                registers[name][:, thread, i] = matrix[:, row, column]
    words_of = {
        name: values.reshape(warps * WARP, -1).view(np.uint32) for name, values in registers.items()
    }
    inputs = {
        f"%{name}{i}": ("b32", np.ascontiguousarray(values[:, i]))
        for name, values in words_of.items()
        for i in range(values.shape[1])
    }
    got = evaluate(
        f"""mma.sync.aligned.m16n8k32.row.col{satfinite}.s32.{left}.{right}.s32
        {{%d0, %d1, %d2, %d3}}, {{%a0, %a1, %a2, %a3}}, {{%b0, %b1}}, {{%c0, %c1, %c2, %c3}};""",
        inputs,
        {f"%d{i}": "s32" for i in range(4)},
    )
    exact = a.astype(object) @ b.astype(object) + c.astype(object)
    for warp in range(warps):
        for thread in range(WARP):
            for i in range(4):
                row, column = fragment_c(thread, i)
                want = exact[warp, row, column]
                if satfinite:
                    want = min(max(want, -(2**31)), 2**31 - 1)
                else:
                    want = (want + 2**31) % 2**32 - 2**31
                assert got[f"%d{i}"][warp * WARP + thread] == want


@pytest.mark.parametrize(
    "name",
    [
        "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32",
        "mma.sp.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32",
    ],
)
def test_other_matrix_products_are_refused(name: str) -> None:
    text = f"{name} {{%a,%a,%a,%a}}, {{%a,%a,%a,%a}}, {{%a,%a}}, {{%a,%a,%a,%a}};"
    with pytest.raises(UnsupportedInstruction, match=name):
        evaluate(text, {"%a": ("b32", words(32, 6))}, {})


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", ["", ".trans"])
def test_matrices_travel_between_shared_memory_and_registers(count: int, transposed: str) -> None:
    matrices = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    source = matrices.reshape(-1).copy()
    # A row is 16 bytes; rows lie in shared memory in a scrambled order.
    scramble = np.random.default_rng(7).permutation(32).astype(np.uint32)
    loaded, stored = np.zeros((WARP, count), np.uint32), np.zeros(4 * 64, np.uint16)
    registers = ", ".join(f"%r{i}" for i in range(count))
    body = f"""
    shl.b32 %t, %thread, 4;
    mad.wide.u32 %g, %thread, 4, %p1;
    ld.global.b32 %row, [%g];
    shl.b32 %row, %row, 4;
    mov.b32 %base, memory;
    add.s32 %row, %row, %base;
    mad.wide.u32 %g, %thread, 16, %p0;
    ld.global.v4.b32 {{%w0, %w1, %w2, %w3}}, [%g];
    st.shared.v4.b32 [%row], {{%w0, %w1, %w2, %w3}};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x{count}{transposed}.shared.b16 {{{registers}}}, [%row];
    """
    for i in range(count):
        body += f"mad.wide.u32 %g, %thread, {4 * count}, %p2; st.global.b32 [%g+{4 * i}], %r{i};"
    body += f"""
    bar.sync 0;
    stmatrix.sync.aligned.m8n8.x{count}{transposed}.shared.b16 [%row], {{{registers}}};
    bar.sync 0;
    ld.shared.v4.b32 {{%w0, %w1, %w2, %w3}}, [%row];
    mad.wide.u32 %g, %thread, 16, %p3;
    st.global.v4.b32 [%g], {{%w0, %w1, %w2, %w3}};
    """
    run_block(
        body,
        [source, scramble, loaded, stored],
        declarations=".reg .b32 %t, %row, %base, %w<4>, %r<4>; .reg .b64 %g;",
        shared=".shared .align 16 .b8 memory[512];",
    )
    for lane in range(WARP):
        for matrix in range(count):
            row, column = lane // 4, 2 * (lane % 4)
            if transposed:
                pair = matrices[matrix, column, row], matrices[matrix, column + 1, row]
            else:
                pair = matrices[matrix, row, column], matrices[matrix, row, column + 1]
            assert loaded[lane, matrix] == int(pair[0]) | int(pair[1]) << 16
    assert np.array_equal(stored, matrices.reshape(-1))
