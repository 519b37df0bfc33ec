"""Loads, stores, asynchronous copies and atomics of the PTX executor."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import numpy as np
import pytest
from agentforge_kernels.verify.ptx import launch, parse
from agentforge_kernels.verify.ptx.faults import UnsupportedInstruction
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES

from tests.kernels.ptx_snippets import WARP, Array, module, run_block, wrapped


def drawn(kind: str, count: int, seed: int = 1) -> Array:
    dtype = NUMPY_TYPES[kind]
    octets = np.random.default_rng(seed).integers(0, 256, count * dtype.itemsize, np.uint8)
    return octets.view(dtype)


VECTORS = [
    (kind, count)
    for kind in ("b8", "u16", "b32", "f32", "s64", "b64")
    for count in (1, 2, 4)
    if NUMPY_TYPES[kind].itemsize * count <= 16
]


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("kind", "count"), VECTORS)
def test_vectors_of_every_width(space: str, kind: str, count: int) -> None:
    size = NUMPY_TYPES[kind].itemsize
    source = np.arange(WARP * count).astype(NUMPY_TYPES[kind])
    target = np.zeros_like(source)
    register = f"b{max(16, 8 * size)}"
    vector = f".v{count}" if count > 1 else ""
    names = ", ".join(f"%r{i}" for i in range(count))
    listed = f"{{{names}}}" if count > 1 else names
    through_shared = f"""
    mul.lo.u32 %s, %thread, {size * count};
    mov.b32 %base, memory;
    add.s32 %s, %s, %base;
    st.shared{vector}.{kind} [%s], {listed};
    ld.shared{vector}.{kind} {listed}, [%s+0];
    """
    run_block(
        f"""
        mad.wide.u32 %g, %thread, {size * count}, %p0;
        ld.global{vector}.{kind} {listed}, [%g];
        {through_shared if space == "shared" else ""}
        mad.wide.u32 %g, %thread, {size * count}, %p1;
        st.global{vector}.{kind} [%g], {listed};
        """,
        [source, target],
        declarations=f".reg .b64 %g; .reg .b32 %s, %base; .reg .{register} %r<4>;",
        shared=".shared .align 16 .b8 memory[1024];",
    )
    assert target.tolist() == source.tolist()


def test_narrow_loads_extend_and_narrow_stores_cut() -> None:
    source = np.array([0x80, 0x7F, 0xFF, 0x01] * 8, np.uint8)
    signed, unsigned, cut = np.zeros(WARP, np.int32), np.zeros(WARP, np.int32), source * 0
    run_block(
        """
        cvt.u64.u32 %o, %thread;
        add.s64 %g, %p0, %o;
        ld.global.s8 %a, [%g];
        ld.global.u8 %b, [%g];
        mad.wide.u32 %g, %thread, 4, %p1;
        st.global.b32 [%g], %a;
        mad.wide.u32 %g, %thread, 4, %p2;
        st.global.b32 [%g], %b;
        or.b32 %b, %b, 0xABCDEF00;
        add.s64 %g, %p3, %o;
        st.global.b8 [%g], %b;
        """,
        [source, signed, unsigned, cut],
        declarations=".reg .b64 %g, %o; .reg .b32 %a, %b;",
    )
    assert signed.tolist() == source.view(np.int8).tolist()
    assert unsigned.tolist() == source.tolist()
    assert cut.tolist() == source.tolist()


def test_cache_hints_and_offsets_change_no_value() -> None:
    source, target = np.arange(64, dtype=np.uint32), np.zeros(32, np.uint32)
    run_block(
        """
        mov.u64 %policy, 0x0;
        createpolicy.fractional.L2::evict_first.b64 %policy, 1.0;
        mad.wide.u32 %g, %thread, 4, %p0;
        ld.global.L1::evict_first.L2::cache_hint.b32 { %a }, [ %g + 8 ], %policy;
        add.s64 %g, %g, 64;
        ld.global.nc.b32 %b, [%g+-64];
        add.s32 %a, %a, %b;
        mad.wide.u32 %g, %thread, 4, %p1;
        st.global.wb.b32 [%g], %a;
        fence.acq_rel.gpu;
        membar.gl;
        """,
        [source, target],
        declarations=".reg .b64 %g, %policy; .reg .b32 %a, %b;",
    )
    assert target.tolist() == [2 * thread + 2 for thread in range(32)]


def test_parameters_of_every_kind_reach_the_kernel() -> None:
    text = module(
        """
        ld.param.u64 %p, [out];
        ld.param.u32 %i, [i];
        ld.param.f32 %f, [f];
        ld.param.s64 %l, [l];
        ld.param.b64 %null, [scratch];
        cvt.rn.f32.s32 %g, %i;
        add.f32 %f, %f, %g;
        st.global.f32 [%p], %f;
        st.global.b64 [%p+8], %l;
        st.global.b64 [%p+16], %null;
        """,
        ".param .u64 .ptr .global .align 1 out, .param .u32 i, .param .f32 f, .param .u64 l,"
        " .param .u64 .ptr .global .align 1 scratch",
        declarations=".reg .b64 %p, %l, %null; .reg .b32 %i, %f, %g;",
    )
    out = np.ones(3, np.int64)
    launch(parse(text), (1, 1, 1), [out, -3, 0.5, -(2**40)])
    assert out[:1].view(np.float32)[0] == -2.5
    assert out[1:].tolist() == [-(2**40), 0]


COPY = """
mad.wide.u32 %g, %thread, {size}, %p0;
mul.lo.u32 %s, %thread, {size};
mov.b32 %base, memory;
add.s32 %s, %s, %base;
"""
SHARED = ".extern .shared .align 16 .b8 memory[];"
REGISTERS = ".reg .b64 %g; .reg .b32 %s, %base, %n, %w<4>; .reg .pred %q;"


@pytest.mark.parametrize("size", [4, 8, 16])
def test_asynchronous_copies_arrive_and_fill_with_zeros(size: int) -> None:
    words = size // 4
    source = np.arange(WARP * words, dtype=np.uint32) + 1
    target = np.full(WARP * words, 99, np.uint32)
    body = COPY.format(size=size)
    # Odd threads copy nothing: a source size of 0 may point anywhere.
    body += f"""
    and.b32 %n, %thread, 1;
    setp.eq.s32 %q, %n, 1;
    selp.b32 %n, 0, {size}, %q;
    @%q mov.b64 %g, 0;
    cp.async.c{"g" if size == 16 else "a"}.shared.global [%s], [%g], {size}, %n;
    cp.async.commit_group;
    cp.async.wait_group 0;
    """
    for word in range(words):
        body += f"""
        ld.shared.b32 %n, [%s+{4 * word}];
        mad.wide.u32 %g, %thread, {size}, %p1;
        st.global.b32 [%g+{4 * word}], %n;
        """
    run_block(
        body, [source, target], declarations=REGISTERS, shared=SHARED, dynamic_shared=WARP * size
    )
    want = source.reshape(WARP, words).copy()
    want[1::2] = 0
    assert target.tolist() == want.reshape(-1).tolist()


def test_waiting_for_all_but_the_newest_groups() -> None:
    source, target = np.arange(3 * WARP, dtype=np.uint32) + 7, np.zeros(3 * WARP, np.uint32)
    body = COPY.format(size=4)
    for group in range(3):
        body += f"cp.async.ca.shared.global [%s+{128 * group}], [%g+{128 * group}], 4;"
        body += "cp.async.commit_group;"
    body += "mad.wide.u32 %g, %thread, 4, %p1;"
    for group, newest in ((0, 2), (1, 1), (2, 0)):
        body += f"""
        cp.async.wait_group {newest};
        ld.shared.b32 %n, [%s+{128 * group}];
        st.global.b32 [%g+{128 * group}], %n;
        """
    run_block(body, [source, target], declarations=REGISTERS, shared=SHARED, dynamic_shared=384)
    assert target.tolist() == source.tolist()


ATOMICS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "min": min,
    "max": max,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "exch": lambda old, new: new,
}


@pytest.mark.parametrize("name", ATOMICS)
@pytest.mark.parametrize("kind", ["s32", "u32", "u64"])
def test_atomics_combine_all_threads_of_all_blocks(name: str, kind: str) -> None:
    logic = name in ("and", "or", "xor", "exch")
    typed = f"b{kind[1:]}" if logic else kind
    size = NUMPY_TYPES[kind].itemsize
    blocks, places = 3, 5
    values = drawn(kind, blocks * WARP)
    memory = drawn(kind, 2 * places, 2)
    before, olds = memory.copy(), np.zeros_like(values)
    run_block(
        f"""
        mov.u32 %t, %ctaid.x;
        mad.lo.s32 %t, %t, {WARP}, %thread;
        mad.wide.u32 %g, %t, {size}, %p0;
        ld.global.{typed} %v, [%g];
        rem.u32 %place, %t, {places};
        mad.wide.u32 %h, %place, {size}, %p1;
        atom.global.gpu.relaxed.{name}.{typed} %old, [%h], %v;
        red.global.gpu.relaxed.{name}.{typed} [%h+{places * size}], %v;
        mad.wide.u32 %g, %t, {size}, %p2;
        st.global.{typed} [%g], %old;
        """,
        [values, memory, olds],
        declarations=f".reg .b32 %t, %place; .reg .b64 %g, %h; .reg .b{8 * size} %v, %old;",
        grid=(blocks, 1, 1),
    )
    for place in range(places):
        own = values[place::places].tolist()
        for position in (place, place + places):
            total = functools.reduce(ATOMICS[name], own, int(before[position]))
            assert memory[position] == wrapped(total, kind)
        # What each thread found is what its predecessor left.
        found = int(before[place])
        for value, old in zip(own, olds[place::places].tolist(), strict=True):
            assert old == found
            found = wrapped(ATOMICS[name](found, value), kind)


def test_float_sum_and_compare_and_swap() -> None:
    total, lock, winners = np.zeros(1, np.float32), np.zeros(1, np.uint32), np.zeros(32, np.uint32)
    run_block(
        """
        red.global.gpu.relaxed.add.f32 [%p0], 0f3F000000;
        add.s32 %t, %thread, 1;
        atom.global.acq_rel.gpu.cas.b32 %old, [%p1], 0, %t;
        mad.wide.u32 %g, %thread, 4, %p2;
        st.global.b32 [%g], %old;
        """,
        [total, lock, winners],
        declarations=".reg .b32 %t, %old; .reg .b64 %g;",
    )
    assert total[0] == 16.0
    assert lock[0] == 1  # the first thread won
    assert winners.tolist() == [0] + [1] * 31


@pytest.mark.parametrize(
    "text",
    [
        "atom.shared.add.u32 %w0, [%s], 1;",
        "atom.global.inc.u32 %w0, [%p0], 1;",
        "red.global.add.noftz.bf16x2 [%p0], %w0;",
        "red.global.v2.f32.add [%p0], {%w0, %w1};",
        "ld.b32 %w0, [%p0];",
        "ld.local.b32 %w0, [%p0];",
        "st.shared::cluster.b32 [%s], %w0;",
        "ld.param.v2.b32 {%w0, %w1}, [p0];",
        "cp.async.ca.shared.global [%s], [%p0], 4, 2;",
        "cp.async.ca.shared.global [%s], [%p0], 32;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%p0], [%s], 16;",
    ],
)
def test_forms_that_are_not_implemented_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedInstruction):
        run_block(
            "mov.b32 %s, 0;" + text,
            [np.zeros(32, np.uint32)],
            declarations=REGISTERS,
            shared=SHARED,
            dynamic_shared=64,
        )
