"""The tools of the static verification: parsers, loops, occupancy, the model, gates and ratchet."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from agentforge_kernels.verify import amdgcn, aot, sass
from agentforge_kernels.verify.machine_code import Instruction, hot_loop, loops, tally
from agentforge_kernels.verify.occupancy import Occupancy, occupancy
from agentforge_kernels.verify.presentation import as_json, table
from agentforge_kernels.verify.report import report_cases
from agentforge_kernels.verify.roofline import DEVICES, Counts, modelled_time
from agentforge_kernels.verify.targets import TARGETS

from tests.kernels import probe_kernels as probes

# A loop of two loads and a dot product; a stretch behind the end is rarely taken and returns to it.
SASS = """\
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @!P0 BRA 0x90 ;
        /*0020*/                   LDG.E.EF.128.SYS R12, [R14] ;
        /*0030*/                   LDG.E.U8 R20, desc[UR6][R4.64+0x10] ;
        /*0040*/               @P1 BRA 0xb0 ;
        /*0050*/                   IDP.4A.S8.S8 R35, R20, R35, R29 ;
        /*0060*/                   LDS.U.128 R4, [R0] ;
        /*0070*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0080*/                   BRA.U !UP0, 0x20 ;
        /*0090*/             @!UP1 EXIT ;
        /*00a0*/                   EXIT ;
        /*00b0*/                   STL [R1], R4 ;
        /*00c0*/                   BRA 0x50;
        /*00d0*/                   BRA 0xd0;
        /*00e0*/                   NOP;
"""
AMD = """\
\t.text
kernel:                                 ; @kernel
\t.cfi_startproc
; %bb.0:
\ts_load_dwordx4 s[0:3], s[0:1], 0x0
\ts_waitcnt lgkmcnt(0)
.LBB0_1:                                ; %loop
                                        ; =>This Inner Loop Header: Depth=1
\tglobal_load_dwordx4 v[4:7], v[0:1], off offset:16
\tbuffer_load_ubyte v8, v2, s[4:7], 0 offen
\tv_dot4_i32_iu8 v6, v14, v30, v6 neg_lo:[1,1,0]
\tv_dual_mov_b32 v3, 0 :: v_dual_add_nc_u32 v2, v2, v6
\ts_delay_alu instid0(VALU_DEP_1)
\tds_read_b128 v[0:3], v9
\ts_barrier
\ts_cbranch_scc1 .LBB0_1                 ; taken often
; %bb.2:
\tscratch_store_dword off, v1, s32
\ts_endpgm
.Lfunc_end0:
\tv_mov_b32 v0, v1
"""
AMD_METADATA = """\
  - .agpr_count:     4
    .group_segment_fixed_size: 512
    .private_segment_fixed_size: 16
    .sgpr_count:     24
    .sgpr_spill_count: 1
    .vgpr_count:     23
    .vgpr_spill_count: 2
"""


# --- machine code ---------------------------------------------------------------------------------


def test_sass_is_read_instruction_by_instruction() -> None:
    code = sass.instructions(sass.parse_lines(SASS))
    assert [instruction.kind for instruction in code] == [
        "other", "other", "load", "load", "other", "dot4", "shared", "barrier", "other", "other",
        "other", "spill", "other", "other", "other",
    ]  # fmt: skip
    assert [instruction.load_bytes for instruction in code if instruction.kind == "load"] == [16, 1]
    assert {i: c.target for i, c in enumerate(code) if c.target is not None} == {
        1: 9, 4: 11, 8: 2, 12: 5, 13: 13,
    }  # fmt: skip
    assert [i for i, c in enumerate(code) if not c.falls_through] == [10, 12, 13]
    assert not code[14].issued


def test_the_loop_keeps_its_stretch_out_of_line_and_nothing_else() -> None:
    code = sass.instructions(sass.parse_lines(SASS))
    assert loops(code) == [[2, 3, 4, 5, 6, 7, 8, 11, 12]]
    loop, unrolled = hot_loop(code)
    assert unrolled == 1
    counted = tally(loop)
    assert counted.instructions == 9
    assert counted.loads == {1: 1, 16: 1}
    assert counted.narrow_loads == 1
    assert counted.load_bytes == 17
    assert counted.count("dot4", "spill") == 2


def test_a_kernel_behind_another_has_its_own_branch_targets() -> None:
    moved = SASS
    for address in ("20", "50", "90", "b0", "d0"):
        moved = moved.replace(f"0x{address} ;", f"0x1{address} ;").replace(
            f"0x{address};", f"0x1{address};"
        )
    first = sass.instructions(sass.parse_lines(SASS))
    assert sass.instructions(sass.parse_lines(moved), first=16) == first


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("        /*0000*/                   BRA 0x70 ;", "out of its kernel"),
        ("        /*0000*/                   BRA `(.L_x_1) ;", "without a target"),
        ("        /*0000*/                   BRX R2 -0x30 ;", "table"),
        ("        /*0000*/                   IMMA.777.S8.S8 R4, R4, R5, R6 ;", "shape"),
    ],
)
def test_what_is_not_understood_in_sass_is_an_error(line: str, complaint: str) -> None:
    with pytest.raises(sass.DisassemblyError, match=complaint):
        sass.instructions(sass.parse_lines(line))


@pytest.mark.parametrize(
    ("opcode", "kind", "multiplications"),
    [
        ("IMMA.16832.S8.S8", "int8_matrix", 4096),
        ("IMMA.8816.S8.S8.SAT", "int8_matrix", 1024),
        ("HMMA.16816.F32", "float_matrix", 0),
        ("IGMMA.64x64x32.S8.S8", "warpgroup_matrix", 0),
        ("UTCHMMA", "warpgroup_matrix", 0),
        ("FFMA", "float_multiply_add", 0),
        # A way to clear a register, no arithmetic.
        ("HFMA2.MMA", "other", 0),
        ("LDGSTS.E.BYPASS.128", "load", 0),
        ("LDC.64", "other", 0),
    ],
)
def test_kinds_of_sass(opcode: str, kind: str, multiplications: int) -> None:
    (found,) = sass.instructions(sass.parse_lines(f"        /*0000*/        {opcode} R4, R4, R5 ;"))
    assert (found.kind, found.multiplications) == (kind, multiplications)
    assert found.load_bytes == (16 if kind == "load" else 0)


def test_resources_of_nvidia_leave_out_what_the_driver_reserves() -> None:
    line = " Function k:\n  REG:48 STACK:8 SHARED:1024 LOCAL:16 CONSTANT[0]:424 TEXTURE:0\n"
    assert sass.parse_resources(line, 80) == sass.Resources(48, 8, 16, 1024)
    assert sass.parse_resources(line, 90) == sass.Resources(48, 8, 16, 0)
    for text in ("", line + line):
        with pytest.raises(sass.DisassemblyError, match="expected one"):
            sass.parse_resources(text, 75)


def test_files_without_one_kernel_are_refused() -> None:
    with pytest.raises(sass.DisassemblyError, match="ELF"):
        sass.code_section(b"no ELF file at all")
    with pytest.raises(sass.DisassemblyError, match="not in Triton"):
        sass.tool("no-such-tool")
    assert sass.disassemble([], 75) == []


def test_amd_assembly_is_read_instruction_by_instruction() -> None:
    code = amdgcn.instructions(AMD)
    loop, unrolled = hot_loop(code)
    assert unrolled == 1
    counted = tally(loop)
    assert [instruction.opcode for instruction in code][-1] == "s_endpgm"
    assert loops(code) == [list(range(2, 10))]
    # s_delay_alu is a hint and occupies no pipe.
    assert counted.instructions == 7
    assert counted.loads == {1: 1, 16: 1}
    assert (counted.count("dot4"), counted.count("shared"), counted.count("barrier")) == (1, 1, 1)
    assert tally(code).count("spill") == 1


@pytest.mark.parametrize(
    ("opcode", "kind", "width"),
    [
        ("global_load_b128", "load", 16),
        ("buffer_load_dwordx2", "load", 8),
        ("global_load_d16_u8", "load", 1),
        ("global_load_ushort", "load", 2),
        ("buffer_load_i8", "load", 1),
        ("v_mfma_i32_32x32x16_i8", "int8_matrix", 0),
        ("v_wmma_i32_16x16x16_iu8", "int8_matrix", 0),
        ("v_mfma_f32_32x32x8_f16", "float_matrix", 0),
        ("v_wmma_f32_16x16x16_f16", "float_matrix", 0),
        ("v_fmac_f32_e32", "float_multiply_add", 0),
        ("v_dot4_i32_i8", "dot4", 0),
        ("ds_load_b64", "shared", 0),
        # Exchanges registers between lanes; no memory.
        ("ds_bpermute_b32", "other", 0),
        ("s_load_dwordx4", "other", 0),
    ],
)
def test_kinds_of_amd(opcode: str, kind: str, width: int) -> None:
    (found,) = amdgcn.instructions(f"\t{opcode} v0, v1, v2\n")
    assert (found.kind, found.load_bytes) == (kind, width)


def test_resources_of_amd_come_from_the_metadata() -> None:
    assert amdgcn.resources(AMD_METADATA) == amdgcn.Resources(23, 24, 3, 16, 512)
    with pytest.raises(amdgcn.AssemblyError, match="vgpr_spill_count appears 0 times"):
        amdgcn.resources(AMD_METADATA.replace(".vgpr_spill_count", ".other"))
    with pytest.raises(amdgcn.AssemblyError, match="no such label"):
        amdgcn.instructions("\ts_cbranch_scc1 .LBB0_7\n")
    with pytest.raises(amdgcn.AssemblyError, match="no instructions"):
        amdgcn.instructions("; nothing\n")


def jump(target: int, *, always: bool = False) -> Instruction:
    return Instruction("jump", target=target, falls_through=not always)


STEP = Instruction("step")
DOT = Instruction("dot", kind="dot4")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ([], []),
        ([STEP, STEP], []),
        # Two after each other; one in another, of which only the inner counts.
        ([STEP, jump(0), STEP, jump(2)], [[0, 1], [2, 3]]),
        ([STEP, STEP, jump(1), jump(0)], [[1, 2]]),
        # Two branches back to one start are one loop.
        ([STEP, STEP, jump(0), STEP, jump(0)], [[0, 1, 2, 3, 4]]),
        # Entered in the middle: no start that all paths pass, so no natural loop.
        ([jump(2), STEP, STEP, jump(1)], []),
        # Never reached.
        ([jump(3, always=True), STEP, jump(1), STEP], []),
    ],
)
def test_natural_loops(code: list[Instruction], expected: list[list[int]]) -> None:
    assert loops(code) == expected


def test_the_hot_loop_is_the_one_with_the_products() -> None:
    longer = [STEP] * 9
    code = [*longer, jump(0), DOT, jump(10)]
    assert hot_loop(code) == (code[10:], 1)
    assert hot_loop(longer) == ([], 1)


def code_of(*opcodes: str) -> list[Instruction]:
    """Instructions as the SASS parser makes them, and a branch back to the first."""
    lines = [f"        /*{16 * i:04x}*/        {opcode} R1 ;" for i, opcode in enumerate(opcodes)]
    return [*sass.instructions(sass.parse_lines("\n".join(lines))), jump(0)]


def behind(code: list[Instruction], loop: list[Instruction]) -> list[Instruction]:
    return code + [
        item if item.target is None else dataclasses.replace(item, target=len(code))
        for item in loop
    ]


def test_an_unrolled_loop_is_known_by_the_loop_for_the_rest() -> None:
    once = code_of("LDG.E.128", "FADD", "IADD3", "STG.E")
    # Addresses and counters are shared between the trips.
    four = code_of(*["LDG.E.128"] * 4, *["FADD"] * 4, "IADD3", *["STG.E"] * 4)
    assert hot_loop(behind(four, once)) == (four, 4)
    assert hot_loop(four) == (four, 1)
    # Loops that compute something else, or not a whole number of times as often.
    for other in (
        code_of("LDG.E.128", "FMUL", "STG.E"),
        code_of("LDG.E.64", "FADD", "STG.E"),
        code_of("LDG.E.128", "FADD", "FADD", "STG.E"),
        code_of(*["LDG.E.128", "FADD", "STG.E"] * 3),
        code_of("IADD3", "IMAD"),
    ):
        assert hot_loop(behind(four, other)) == (four, 1)


# --- occupancy and model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "registers", "shared", "threads", "blocks", "limit"),
    [
        # 48 registers: 512 / 48 = 10 warps in each of 4 schedulers, 40 in all, of 32.
        ("sm_75", 48, 8, 128, 8, "warps"),
        # 80: 6 warps a scheduler, 24 in all, 6 blocks of 4.
        ("sm_75", 80, 0, 128, 6, "registers"),
        # 39 are given out as 40: 12 warps a scheduler, 48 in all.
        ("sm_90", 39, 16, 128, 12, "registers"),
        # One warp a block: 16 blocks at most.
        ("sm_75", 32, 0, 32, 16, "blocks"),
        ("sm_89", 32, 0, 32, 24, "blocks"),
        # 24 KB and the driver's 1 KB: 164 / 25 = 6.
        ("sm_80", 32, 24 * 1024, 128, 6, "shared memory"),
        # No reservation on sm_75: 64 / 16 = 4.
        ("sm_75", 32, 16 * 1024, 64, 4, "shared memory"),
        # 49 is given out as 56: 512 / 56 = 9 waves a SIMD, more than its 8.
        ("gfx942", 49, 0, 256, 8, "warps"),
        # 65 as 72: 7 waves in each of 4 SIMDs.
        ("gfx942", 65, 0, 256, 7, "registers"),
        # 100 as 120: 1536 / 120 = 12 waves in each of 2 SIMDs.
        ("gfx1100", 100, 0, 128, 6, "registers"),
        ("gfx1100", 24, 40 * 1024, 128, 1, "shared memory"),
    ],
)
def test_occupancy(
    target: str, registers: int, shared: int, threads: int, blocks: int, limit: str
) -> None:
    warps = blocks * threads // TARGETS[target].warp_size
    most = {"sm_75": 32, "sm_80": 64, "sm_89": 48, "sm_90": 64, "gfx942": 32, "gfx1100": 32}[target]
    assert occupancy(target, registers, shared, threads) == Occupancy(
        blocks, warps, warps / most, limit
    )


def test_occupancy_knows_every_target_and_refuses_nonsense() -> None:
    for target in TARGETS.values():
        assert occupancy(target.name, 24, 0, 4 * target.warp_size).share == 1.0
    with pytest.raises(ValueError, match="registers: 0"):
        occupancy("sm_75", 0, 0, 128)
    with pytest.raises(ValueError, match="multiples of 64"):
        occupancy("gfx942", 32, 0, 96)


def test_the_model_is_the_arithmetic_it_says() -> None:
    turing, ampere, _ = DEVICES
    time = modelled_time(turing, Counts(0.9, 0.25, 1.25, 0.0), 4096, 4096)
    # 4 MiB of codes, 4 KiB of activations and 8 KiB of results at 192 GB/s.
    assert time.memory_us == pytest.approx((4096 * 4096 / 4 + 3 * 4096) / 192e3)
    # 22 SMs of 64 lanes at 1.785 GHz; loads of 64 bytes.
    assert time.integer_us == pytest.approx(0.9 * 4096 * 4096 / (22 * 64 * 1785))
    assert time.load_us == pytest.approx(1.25 * 4096 * 4096 / (22 * 64 * 1785))
    assert time.us == time.memory_us
    assert time.roofline_share == 1.0
    # 624 int8 TOPS are 312e12 multiply-adds a second.
    time = modelled_time(ampere, Counts(1e-3, 0.25, 0.25, 64.0), 4096, 4096)
    assert time.us == time.matrix_us == pytest.approx(64 * 4096 * 4096 / 312e6, rel=2e-3)


@pytest.mark.parametrize("counts", [Counts(0.0, 0.25, 1.0, 0.0), Counts(1.0, 0.0, 1.0, 0.0)])
def test_the_model_refuses_missing_counts(counts: Counts) -> None:
    with pytest.raises(ValueError, match="above zero"):
        modelled_time(DEVICES[0], counts, 512, 512)


def test_the_model_refuses_matrix_units_where_there_are_none() -> None:
    with pytest.raises(ValueError, match="no matrix units"):
        modelled_time(DEVICES[0], Counts(1.0, 0.25, 1.0, 8.0), 512, 512)


# --- ahead-of-time compilation --------------------------------------------------------------------


@pytest.mark.parametrize("target", ["sm_75", "gfx942"])
@pytest.mark.parametrize(
    "value",
    [*(torch.zeros(16, dtype=dtype) for dtype in aot.TYPE_NAMES), 32, -(2**31), 2**40, 0.5, True],
    ids=str,
)
def test_types_and_promises_are_those_of_a_launch(target: str, value: Any) -> None:
    """Triton's own specialisation of the same argument is the oracle; its name is private."""
    from triton.compiler import make_backend
    from triton.runtime.jit import native_specialize_impl

    gpu = aot.gpu_target(TARGETS[target])
    name, letters = native_specialize_impl(type(make_backend(gpu)), value, False, True, True)
    assert aot.type_name("x", value) == name
    aligned = not isinstance(value, (float, bool))
    assert aot.specialisation(TARGETS[target], value, aligned) == (letters or "")


@pytest.mark.parametrize("value", [torch.zeros(2, dtype=torch.complex64), 2**63, "text"], ids=str)
def test_what_no_kernel_takes_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="^x: "):
        aot.type_name("x", value)


def test_without_the_promise_of_alignment_loads_are_narrow() -> None:
    case = probes.gemv_case("unaligned")
    bare = dataclasses.replace(case, aligned=frozenset())
    assert probes.report_of(case, "sm_75").work.narrow_loads == 0
    assert probes.report_of(bare, "sm_75").work.narrow_loads > 0


def test_a_promise_a_launch_cannot_keep_is_refused() -> None:
    import triton

    kernel = triton.JITFunction(probes.good_gemv.fn, do_not_specialize=["row_words"])
    found = report_cases([probes.gemv_case("kept_from_it", kernel)], "sm_75")
    assert found.reports == []
    assert "['row_words'] are promised to be aligned" in found.failures[0]


def test_kernels_are_disassembled_together_as_alone() -> None:
    cases = [probes.gemv_case(), probes.gemv_case("through_shared", probes.shared_memory_gemv)]
    cubins = [aot.compile_case(case, "sm_90").cubin for case in cases]
    together = sass.disassemble([*cubins, cubins[0]], 90)
    assert together[:2] == [sass.disassemble([cubin], 90)[0] for cubin in cubins]
    assert together[2] == together[0]


def test_every_target_is_read_and_reported() -> None:
    reports = [probes.report_of(probes.gemv_case(), target) for target in TARGETS]
    for report in reports:
        loop = report.loop
        assert loop is not None, report.target
        assert loop.loads == {16: 5}, report.target
        assert loop.count("dot4") == 16, report.target
        assert report.spill_bytes == 0
    text = table(reports)
    assert text.count("5x128") == len(TARGETS)
    for device in DEVICES:
        assert text.count(device.name) == 1
    assert "not a measurement" in text
    exported = json.loads(json.dumps([as_json(report) for report in reports]))
    assert [entry["target"] for entry in exported] == list(TARGETS)
    assert len(exported[0]["modelled"]) == 7
