"""Branches, predicates, loops, barriers, grids and the parser of the PTX executor."""

from __future__ import annotations

import numpy as np
import pytest
from agentforge_kernels.verify.ptx import Schedule, launch, parse
from agentforge_kernels.verify.ptx.faults import PtxSyntaxError, UnsupportedInstruction
from agentforge_kernels.verify.ptx.program import Guard, Immediate, Register

from tests.kernels.ptx_snippets import WARP, module, run_block

STORE = "mad.wide.u32 %g, %thread, 4, %p0; st.global.b32 [%g], %r;"
REGISTERS = ".reg .b64 %g; .reg .b32 %r, %i, %n; .reg .pred %q, %u;"


@pytest.mark.parametrize("schedule", Schedule)
def test_divergent_paths_meet_again(schedule: Schedule) -> None:
    out = np.zeros(64, np.uint32)
    run_block(
        f"""
        and.b32 %i, %thread, 3;
        setp.eq.s32 %q, %i, 0;
        @%q bra ZERO;
        setp.eq.s32 %q, %i, 1;
        @!%q bra OTHER;
        mov.b32 %r, 10;
        bra.uni JOIN;
        ZERO:
        mov.b32 %r, 20;
        bra JOIN;
        OTHER:
        add.s32 %r, %i, 30;
        JOIN:
        shfl.sync.bfly.b32 %r, %r, 3, 31, -1;
        {STORE}
        """,
        [out],
        threads=64,
        declarations=REGISTERS,
        schedule=schedule,
    )
    # Neighbours' values, which only a reconverged warp can exchange.
    assert out.tolist() == [33, 32, 10, 20] * 16


@pytest.mark.parametrize("schedule", Schedule)
def test_loops_with_a_trip_count_of_each_thread(schedule: Schedule) -> None:
    out = np.zeros(96, np.uint32)
    run_block(
        f"""
        mov.b32 %r, 0;
        mov.b32 %i, 0;
        LOOP:
        setp.ge.u32 %q, %i, %thread;
        @%q bra DONE;
        add.s32 %i, %i, 1;
        add.s32 %r, %r, %i;
        bra LOOP;
        DONE:
        {STORE}
        """,
        [out],
        threads=96,
        declarations=REGISTERS,
        schedule=schedule,
    )
    assert out.tolist() == [n * (n + 1) // 2 for n in range(96)]


def test_predicated_instructions_touch_chosen_threads_only() -> None:
    out = np.zeros(32, np.uint32)
    run_block(
        """
        setp.lt.u32 %q, %thread, 10;
        mov.b32 %r, 1;
        @%q mov.b32 %r, 2;
        @!%q add.s32 %r, %r, 5;
        setp.ne.u32 %u, %thread, 3;
        mad.wide.u32 %g, %thread, 4, %p0;
        @%q mov.b64 %g, %p0;
        @!%q st.global.b32 [%g], %r;
        @!%u st.global.b32 [%g+12], %r;
        """,
        [out],
        declarations=REGISTERS,
    )
    assert out.tolist() == [0, 0, 0, 2] + [0] * 6 + [6] * 22


def test_threads_that_return_early_are_gone() -> None:
    out = np.zeros(64, np.uint32)
    run_block(
        f"""
        setp.lt.u32 %q, %thread, 5;
        @%q ret;
        setp.lt.u32 %q, %thread, 9;
        @%q exit;
        mov.b32 %r, 1;
        {STORE}
        """,
        [out],
        threads=64,
        declarations=REGISTERS,
    )
    assert out.tolist() == [0] * 9 + [1] * 55


@pytest.mark.parametrize(
    ("schedule", "order"),
    [(Schedule.FORWARD, [0, 1, 2, 0, 1, 2]), (Schedule.BACKWARD, [2, 1, 0, 2, 1, 0])],
)
def test_warps_take_turns_between_barriers(schedule: Schedule, order: list[int]) -> None:
    ticket, out = np.zeros(1, np.uint32), np.zeros(6, np.uint32)
    write_down = """
        @%q atom.global.add.u32 %r, [%p0], 1;
        mad.wide.u32 %g, %r, 4, %p1;
        @%q st.global.b32 [%g], %i;
    """
    run_block(
        f"""
        shr.u32 %i, %thread, 5;
        and.b32 %n, %thread, 31;
        setp.eq.u32 %q, %n, 0;
        {write_down}
        bar.sync 0;
        {write_down}
        """,
        [ticket, out],
        threads=96,
        declarations=REGISTERS,
        schedule=schedule,
    )
    assert out.tolist() == order


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("barrier", ["bar.sync 0;", "barrier.sync.aligned 0;"])
def test_warps_exchange_values_through_shared_memory(schedule: Schedule, barrier: str) -> None:
    threads, blocks = 128, 3
    out = np.zeros(threads * blocks, np.uint32)
    body = f"""
        mov.u32 %n, %ctaid.x;
        mad.lo.s32 %r, %n, 1000, %thread;
        shl.b32 %i, %thread, 2;
        mov.b32 %s, small;
        add.s32 %i, %i, %s;
        st.shared.b32 [%i+256], %r;
        {barrier}
        mov.b32 %s, {threads - 1};
        sub.s32 %s, %s, %thread;
        shl.b32 %s, %s, 2;
        ld.shared.b32 %r, [%s+256];
        {barrier}
        st.shared.b32 [%i+256], %r;
        {barrier}
        ld.shared.b32 %r, [%i+256];
        mad.lo.s32 %i, %n, {threads}, %thread;
        mad.wide.u32 %g, %i, 4, %p0;
        st.global.b32 [%g], %r;
    """
    run_block(
        body,
        [out],
        threads=threads,
        declarations=REGISTERS + ".reg .b32 %s;",
        # The sized variable lies first; small is not at zero by luck only when it comes first.
        shared=".shared .align 4 .b8 small[256]; .extern .shared .align 16 .b8 dynamic[];",
        grid=(blocks, 1, 1),
        dynamic_shared=512,
        schedule=schedule,
    )
    want = [1000 * block + threads - 1 - t for block in range(blocks) for t in range(threads)]
    assert out.tolist() == want


def test_shared_variables_do_not_overlap() -> None:
    out = np.zeros(3, np.uint32)
    run_block(
        """
        mov.b32 %r, dynamic; mov.b32 %i, first; mov.b32 %n, second;
        st.global.b32 [%p0], %r;
        st.global.b32 [%p0+4], %i;
        st.global.b32 [%p0+8], %n;
        """,
        [out],
        declarations=REGISTERS,
        shared="""
        .extern .shared .align 16 .b8 dynamic[];
        .shared .align 8 .b64 first;
        .shared .align 4 .b8 second[40];
        """,
        dynamic_shared=64,
    )
    dynamic, first, second = out.tolist()
    assert second >= first + 8
    assert dynamic >= second + 40
    assert dynamic % 16 == 0


def test_grid_of_three_dimensions_over_several_batches() -> None:
    grid = (5, 4, 3)
    out = np.zeros(60 * WARP, np.uint32)
    body = """
        mov.u32 %i, %ctaid.z; mov.u32 %n, %nctaid.y; mov.u32 %r, %ctaid.y;
        mad.lo.s32 %i, %i, %n, %r;
        mov.u32 %n, %nctaid.x; mov.u32 %r, %ctaid.x;
        mad.lo.s32 %i, %i, %n, %r;
        mov.u32 %n, %ntid.x; mov.u32 %r, %tid.y;
        add.s32 %r, %r, %thread;
        mad.lo.s32 %r, %i, %n, %r;
        mad.wide.u32 %g, %r, 4, %p0;
        mov.u32 %n, %nctaid.z; mov.u32 %i, %ntid.y;
        mad.lo.s32 %r, %r, %n, %i;
        st.global.b32 [%g], %r;
    """
    run_block(body, [out], declarations=REGISTERS, grid=grid)
    assert out.tolist() == [3 * number + 1 for number in range(60 * WARP)]
    # 1024 threads a block: eight blocks make a batch, sixty need eight batches.
    out = np.zeros(60 * 1024, np.uint32)
    run_block(body, [out], threads=1024, declarations=REGISTERS, grid=grid)
    assert out.tolist() == [3 * number + 1 for number in range(60 * 1024)]


def test_what_was_executed_is_counted_by_thread() -> None:
    text = module(
        """
        mov.u32 %r, %tid.x;
        setp.lt.u32 %q, %r, 7;
        @%q add.s32 %r, %r, 1;
        """,
        threads=64,
        declarations=".reg .b32 %r; .reg .pred %q;",
    )
    execution = launch(parse(text), (3, 1, 1), [])
    assert execution.executed == {
        "mov.u32": 192,
        "setp.lt.u32": 192,
        "add.s32": 21,
        "ret": 192,
    }
    assert execution.steps == 4


def test_parsed_instruction_keeps_line_and_text() -> None:
    text = module(
        "/* a comment\n over two lines */\n.loc 1 2 3\n@!%q  add.s32   %r,\t-5, 0x1F; // end",
        declarations=".reg .b32 %r; .reg .pred %q;",
    )
    program = parse(text)
    added = program.instructions[0]
    assert added.text == "@!%q add.s32 %r, -5, 0x1F"
    assert text.splitlines()[added.line - 1].strip().startswith("@!%q  add.s32")
    assert added.guard == Guard("%q", negated=True)
    assert added.operands == (Register("%r"), Immediate(-5), Immediate(31))
    assert program.threads == WARP


def test_names_of_inline_assembly_need_no_percent_sign() -> None:
    out = np.zeros(32, np.uint32)
    run_block(
        f"""
        {{ .reg .b32 t; .reg .pred odd;
        and.b32 t, %thread, 1;
        setp.eq.u32 odd, t, 1;
        mov.b32 %r, 3;
        @odd add.s32 %r, %r, t; }}
        {STORE}
        """,
        [out],
        declarations=REGISTERS,
    )
    assert out.tolist() == [3, 4] * 16


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("no kernel here", "no .entry"),
        (module("").replace(".reqntid 32", ""), "reqntid"),
        (module("")[: module("").rindex("}")], "not closed"),
        (module("ADD %r;"), "ADD"),
        (module("ld.global.b32 %r, [%a*2];"), r"address \[%a\*2\]"),
        (module("add.s32 %r, #5, 1;"), "operand #5"),
        (module("setp.eq.b32 %r|5, 1, 1;"), "pair"),
        (module(".branchtargets A, B;"), "directive"),
    ],
)
def test_text_that_is_not_understood(text: str, match: str) -> None:
    with pytest.raises(PtxSyntaxError, match=match):
        parse(text)


@pytest.mark.parametrize(
    "body",
    ["bra NOWHERE;", "bar.sync 1;", "bar.sync 0, 64;", "bar.arrive 0, 64;", "bar.red.popc.u32 %r;"],
)
def test_other_control_is_refused(body: str) -> None:
    with pytest.raises(UnsupportedInstruction, match=body.split()[0]):
        run_block(body, [], declarations=REGISTERS)
