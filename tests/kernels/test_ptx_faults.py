"""What a GPU would do silently wrong, or hang on, must be caught when PTX is executed."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from agentforge_kernels.verify.aot import compile_case
from agentforge_kernels.verify.ptx import Schedule, launch, parse
from agentforge_kernels.verify.ptx.case_runner import run_program, run_ptx
from agentforge_kernels.verify.ptx.faults import (
    Divergence,
    Endless,
    Misaligned,
    OutOfBounds,
    PtxFault,
    Race,
    ReadOnly,
    Trap,
    UninitialisedRead,
    UnsupportedInstruction,
)
from agentforge_kernels.verify.targets import EXECUTED

from tests.kernels.executed_kernels import GEMV, NORM, STRAY, product_case
from tests.kernels.ptx_snippets import WARP, module, run_block

REGISTERS = ".reg .b64 %g; .reg .b32 %r, %s, %base, %n, %v<4>; .reg .pred %q;"
PLACE = "mad.wide.u32 %g, %thread, {size}, %p0;"
SHARED = ".shared .align 16 .b8 memory[256];"
OWN_CELL = "shl.b32 %s, %thread, 2; mov.b32 %base, memory; add.s32 %s, %s, %base;"


def block(body: str, threads: int = WARP, count: int = 32, **options: object) -> np.ndarray:
    """Run statements with one buffer of ``count`` words."""
    buffer = np.zeros(count, np.uint32)
    run_block(body, [buffer], threads, REGISTERS, SHARED, **options)
    return buffer


@pytest.mark.parametrize("access", ["ld.global.b8 %r, [%p0+{}];", "st.global.b8 [%p0+{}], %r;"])
def test_one_byte_beyond_a_buffer(access: str) -> None:
    for inside in (0, 127):
        block(access.format(inside))
    for outside in (-1, 128, 128 + 4096, -(2**39)):
        with pytest.raises(OutOfBounds, match="1-byte access"):
            block(access.format(outside))


def test_a_vector_that_begins_inside_and_ends_outside() -> None:
    block("ld.global.v4.b32 {%v0, %v1, %v2, %v3}, [%p0+32];", count=12)
    with pytest.raises(OutOfBounds, match=r"16-byte access at byte 32 of buffer 0 \(44 bytes\)"):
        block("ld.global.v4.b32 {%v0, %v1, %v2, %v3}, [%p0+32];", count=11)


def test_null_pointers_and_buffers_next_to_each_other() -> None:
    with pytest.raises(OutOfBounds, match="in no buffer"):
        block("mov.b64 %g, 0; ld.global.b32 %r, [%g];")
    first, second = np.zeros(16, np.uint32), np.ones(16, np.uint32)
    with pytest.raises(OutOfBounds, match="byte 64 of buffer 0"):
        run_block("st.global.b32 [%p0+64], %thread;", [first, second])
    assert second.tolist() == [1] * 16


def test_one_byte_beyond_shared_memory() -> None:
    block("mov.b32 %s, memory; st.shared.b32 [%s+252], 1;")
    for access in ("st.shared.b8 [%s+256], %r;", "ld.shared.b8 %r, [%s+256];"):
        with pytest.raises(OutOfBounds, match="byte 256 of 256 of shared memory"):
            block("mov.b32 %s, memory;" + access)
    with pytest.raises(OutOfBounds, match="shared"):
        block(
            "mov.b32 %s, memory; setp.eq.s32 %q, %thread, 0;"
            "@%q cp.async.ca.shared.global [%s+256], [%p0], 4;"
        )


@pytest.mark.parametrize(
    ("access", "size"),
    [
        ("ld.global.b32 %r, [%p0+{}];", 4),
        ("ld.global.v2.b32 {{%v0, %v1}}, [%p0+{}];", 8),
        ("ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%p0+{}];", 16),
        ("st.global.v4.b32 [%p0+{}], {{%v0, %v1, %v2, %v3}};", 16),
        ("st.shared.v2.b32 [%s+{}], {{%v0, %v1}};", 8),
        ("cp.async.cg.shared.global [%s], [%p0+{}], 16;", 16),
        ("cp.async.cg.shared.global [%s+{}], [%p0], 16;", 16),
    ],
)
def test_misaligned_accesses(access: str, size: int) -> None:
    one_thread = "setp.eq.u32 %q, %thread, 0; mov.b32 %s, memory; @%q "
    block(one_thread + access.format(size))
    for offset in (1, size // 2):
        with pytest.raises(Misaligned, match=f"{size}-byte access"):
            block(one_thread + access.format(offset))


def test_a_tensor_that_is_unaligned_on_the_host_is_unaligned_for_the_kernel() -> None:
    case = GEMV
    compiled = compile_case(case, "sm_75")
    arguments = case.build_checked(0)
    weights = np.zeros(8 * 256 + 1, np.int32)[1:]
    values = [arguments["q"].numpy(), weights, arguments["output"].numpy(), 256]
    with pytest.raises(Misaligned, match="16-byte access at byte 0 of buffer 1"):
        launch(parse(compiled.ptx), case.grid, values, dynamic_shared=compiled.shared_bytes)


def test_stores_to_a_read_only_buffer() -> None:
    frozen = np.zeros(32, np.uint32)
    frozen.flags.writeable = False
    run_block("ld.global.b32 %r, [%p0];", [frozen], declarations=REGISTERS)
    for store in ("st.global.b32 [%p0+4], 1;", "red.global.add.u32 [%p0+4], 1;"):
        with pytest.raises(ReadOnly, match="byte 4 of buffer 0"):
            run_block(store, [frozen], declarations=REGISTERS)


def test_shared_memory_nobody_wrote() -> None:
    with pytest.raises(UninitialisedRead, match="byte 8 of shared memory"):
        block("mov.b32 %s, memory; st.shared.v2.b32 [%s], {1, 2}; ld.shared.b32 %r, [%s+8];")
    # A part of a vector is enough.
    with pytest.raises(UninitialisedRead):
        block("mov.b32 %s, memory; st.shared.b32 [%s], 1; ld.shared.v2.b32 {%v0, %v1}, [%s];")


@pytest.mark.parametrize(
    "between",
    [
        "",
        "cp.async.commit_group;",
        "cp.async.wait_group 0;",  # not committed: in no group
        "cp.async.commit_group; cp.async.wait_group 1;",
    ],
)
def test_asynchronous_copies_read_before_they_are_waited_for(between: str) -> None:
    start = OWN_CELL + PLACE.format(size=4) + "cp.async.ca.shared.global [%s], [%g], 4;"
    block(start + "cp.async.commit_group; cp.async.wait_group 0; ld.shared.b32 %r, [%s];")
    block(start + "cp.async.wait_all; ld.shared.b32 %r, [%s];")
    with pytest.raises(UninitialisedRead):
        block(start + between + "ld.shared.b32 %r, [%s];")


NEIGHBOUR = "xor.b32 %n, %s, 128;"
"""The cell of the same lane in the other of two warps."""
NEEDS_A_BARRIER = {
    "store, read": "st.shared.b32 [%s], 1; {} ld.shared.b32 %r, [%n];",
    "read, store": "st.shared.b32 [%s], 1; bar.sync 0; ld.shared.b32 %r, [%s];"
    "{} st.shared.b32 [%n], 2;",
    "store, store": "st.shared.b32 [%s], 1; {} st.shared.b32 [%n], 2;",
    "copy, read": "cp.async.ca.shared.global [%s], [%p0], 4; cp.async.wait_all; {}"
    "ld.shared.b32 %r, [%n];",
    "read, copy": "st.shared.b32 [%s], 1; bar.sync 0; ld.shared.b32 %r, [%s]; {}"
    "cp.async.ca.shared.global [%n], [%p0], 4;",
}


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("name", NEEDS_A_BARRIER)
def test_a_missing_barrier_shows_in_every_schedule(name: str, schedule: Schedule) -> None:
    body = OWN_CELL + NEIGHBOUR + NEEDS_A_BARRIER[name]
    block(body.format("bar.sync 0;"), threads=64, schedule=schedule)
    with pytest.raises((Race, UninitialisedRead), match="of shared memory"):
        block(body.format(""), threads=64, schedule=schedule)


def test_a_store_under_an_asynchronous_copy() -> None:
    copy = OWN_CELL + "cp.async.ca.shared.global [%s], [%p0], 4; cp.async.commit_group;"
    block(copy + "cp.async.wait_group 0; st.shared.b32 [%s], 1;")
    for again in ("st.shared.b32 [%s], 1;", "cp.async.ca.shared.global [%s], [%p0], 4;"):
        with pytest.raises(Race, match="copy to it is under way"):
            block(copy + "bar.sync 0;" + again)


def test_warps_may_store_the_same_value_and_read_the_same_place() -> None:
    block(
        """
        mov.b32 %s, memory;
        st.shared.b32 [%s], 5;
        bar.sync 0;
        ld.shared.b32 %r, [%s];
        bar.sync 0;
        setp.lt.u32 %q, %thread, 32;
        @%q st.shared.b32 [%s], 6;
        """,
        threads=128,
    )


def test_several_readers_are_remembered() -> None:
    # Warp 0 reads alone last, and may not store: warp 1 has read, too.
    with pytest.raises(Race, match="read by one warp, stored by"):
        block(
            """
            mov.b32 %s, memory;
            st.shared.b32 [%s], 5;
            bar.sync 0;
            ld.shared.b32 %r, [%s];
            setp.lt.u32 %q, %thread, 32;
            @%q ld.shared.b32 %r, [%s];
            @%q st.shared.b32 [%s], 6;
            """,
            threads=64,
        )


def test_threads_that_store_different_values_to_one_place() -> None:
    with pytest.raises(Race, match="device memory"):
        block("st.global.b32 [%p0], %thread;")
    with pytest.raises(Race, match="shared memory"):
        block("mov.b32 %s, memory; st.shared.b32 [%s], %thread;")


@pytest.mark.parametrize("schedule", Schedule)
def test_barriers_that_not_all_threads_reach(schedule: Schedule) -> None:
    first_warp = "setp.lt.u32 %q, %thread, 32;"
    with pytest.raises(Divergence, match="ended without reaching"):
        block(first_warp + "@%q bar.sync 0;", threads=64, schedule=schedule)
    with pytest.raises(Divergence, match="different barriers"):
        block(
            first_warp + "@%q bra THERE; bar.sync 0; bra END; THERE: bar.sync 0; END:",
            threads=64,
            schedule=schedule,
        )


def test_loops_without_end_and_traps() -> None:
    text = module("AGAIN: bra.uni AGAIN;")
    with pytest.raises(Endless, match="no end after 1000 steps"):
        launch(parse(text), (1, 1, 1), [], step_limit=1000)
    with pytest.raises(Trap, match="gave up"):
        block("setp.eq.u32 %q, %thread, 3; @%q trap;")


def test_launches_that_do_not_fit_the_kernel() -> None:
    with pytest.raises(PtxFault, match="1 arguments for 0 parameters"):
        launch(parse(module("")), (1, 1, 1), [1])
    with pytest.raises(PtxFault, match="48 threads are no whole warps"):
        launch(parse(module("", threads=48)), (1, 1, 1), [])


@pytest.mark.parametrize(
    "instruction",
    [
        "tex.2d.v4.f32.f32 {%r}, [%g];",
        "wmma.load.a.sync [%g];",
        "nanosleep.u32 20;",
        "vadd.s32 %r;",
    ],
)
def test_unknown_instructions_are_refused_before_anything_runs(instruction: str) -> None:
    buffer = np.zeros(32, np.uint32)
    with pytest.raises(UnsupportedInstruction, match=instruction.split()[0]):
        run_block("st.global.b32 [%p0], 1;" + instruction, [buffer], declarations=REGISTERS)
    assert buffer[0] == 0


def test_hopper_matrix_instructions_are_refused_with_a_remedy() -> None:
    # 64 x 64 with four warps: Triton chooses wgmma for sm_90 and mma.sync for sm_80.
    case = product_case(size=64)
    run_ptx(case, "sm_80")
    with pytest.raises(UnsupportedInstruction, match="choose smaller tiles or fewer warps"):
        run_ptx(case, "sm_90")
    for text in (
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile [%s], [%g];",
        "mbarrier.init.shared.b64 [%s], 1;",
        "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r}, [%s];",
    ):
        with pytest.raises(UnsupportedInstruction, match="TMA|sm_80"):
            block(text)


@pytest.mark.parametrize("target", EXECUTED)
def test_a_forgotten_mask(target: str) -> None:
    with pytest.raises(OutOfBounds, match=r"of 200|\(200 bytes\).*1 output"):
        run_ptx(STRAY, target)


def without(ptx: str, pattern: str, number: int) -> str:
    """The text without the ``number``-th match."""
    match = list(re.finditer(pattern, ptx))[number]
    return ptx[: match.start()] + ptx[match.end() :]


BARRIER = r"bar\.sync\s+0;"


@pytest.mark.parametrize("target", EXECUTED)
def test_every_barrier_of_a_compiled_quantiser_is_needed(target: str) -> None:
    """Dropped in turn: detection sees it in any schedule, and results alone in at least one."""
    compiled = compile_case(NORM, target)
    count = len(re.findall(BARRIER, compiled.ptx))
    assert count >= 2
    for number in range(count):
        program = parse(without(compiled.ptx, BARRIER, number))
        wrong = []
        for schedule in Schedule:
            with pytest.raises((Race, UninitialisedRead)):
                run_program(NORM, program, compiled.shared_bytes, 1, [schedule])
            try:
                run_program(NORM, program, compiled.shared_bytes, 1, [schedule], detect=False)
            except (AssertionError, PtxFault):
                wrong.append(schedule)
        assert wrong, f"barrier {number} of {count}: no schedule shows it in the results"


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("pattern", "instead"),
    [
        (BARRIER, ""),
        (r"cp\.async\.wait_group\s+\d+;", ""),
        # One group too few is waited for.
        (r"cp\.async\.wait_group\s+2;", "cp.async.wait_group 3;"),
        (r"cp\.async\.commit_group;", ""),
    ],
)
def test_a_compiled_pipeline_without_its_synchronisation(
    target: str, pattern: str, instead: str
) -> None:
    """All of a kind at once: of single ones Triton emits some that only repeat others."""
    case = product_case()
    compiled = compile_case(case, target)
    damaged, count = re.subn(pattern, instead, compiled.ptx)
    assert count >= 1
    for schedule in Schedule:
        run_program(case, parse(compiled.ptx), compiled.shared_bytes, 1, [schedule])
        with pytest.raises((Race, UninitialisedRead)):
            run_program(case, parse(damaged), compiled.shared_bytes, 1, [schedule])


def change(old: str, new: str) -> Callable[[str], str]:
    def mutate(ptx: str) -> str:
        assert re.search(old, ptx), old
        return re.sub(old, new, ptx, count=1)

    return mutate


MUTATIONS: dict[str, Callable[[str], str]] = {
    "a shift": change(r"shl\.b32 (.*), 2;", r"shl.b32 \1, 3;"),
    "a mask": change(r"and\.b32 (.*), 124;", r"and.b32 \1, 60;"),
    "an offset of a load": change(r"mad\.wide\.u32 (.*), 4, ", r"mad.wide.u32 \1, 8, "),
    "signedness": change(r"dp4a\.s32\.s32", "dp4a.s32.u32"),
    "the accumulator": change(
        r"dp4a\.s32\.s32 (\S+), (\S+), (\S+), \S+;", r"dp4a.s32.s32 \1, \2, \3, 0;"
    ),
    "the operand": change(r"dp4a\.s32\.s32 (\S+), (\S+), \S+, ", r"dp4a.s32.s32 \1, \2, \2, "),
    "the loop's step": change(r"add\.s32(\s+%r\d+, %r\d+, )128;", r"add.s32\g<1>64;"),
    "the distance of a shuffle": change(
        r"shfl\.sync\.bfly\.b32(.*), 1, 31, -1;", r"shfl.sync.bfly.b32\1, 2, 31, -1;"
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_compiled_matvec_with_one_instruction_changed(name: str) -> None:
    compiled = compile_case(GEMV, "sm_75")
    run_program(GEMV, parse(compiled.ptx), compiled.shared_bytes)
    program = parse(MUTATIONS[name](compiled.ptx))
    with pytest.raises((AssertionError, PtxFault)):
        run_program(GEMV, program, compiled.shared_bytes)
