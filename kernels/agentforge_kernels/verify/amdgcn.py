"""AMD's machine code of compiled kernels, read from the assembly Triton's code generator writes.

Registers, spills and memory are in the metadata behind the code (LLVM, "User Guide for AMDGPU
Backend", "Code Object V5 Metadata"); instruction names are those of the CDNA 3 and RDNA 3 ISA
documents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentforge_kernels.verify.machine_code import Instruction, Kind

_LABEL = re.compile(r"^(\.LBB\w+):")
_INSTRUCTION = re.compile(r"^\t([a-z]\w+)(?:\s+(.*?))?\s*(?:;.*)?$")
_FUNCTION_END = re.compile(r"^\.Lfunc_end\d+:")

_KINDS: tuple[tuple[str, Kind], ...] = (
    (r"(global|buffer|flat)_load_.*", "load"),
    (r"v_dot4c?_i32_\w+", "dot4"),
    (r"v_mfma_i32_.*|v_wmma_i32_.*", "int8_matrix"),
    (r"v_s?mfmac?_.*|v_s?wmmac?_.*", "float_matrix"),
    (r"v_(pk_|dual_)?(fma|fmac|mad|fmaak|fmamk)_f32.*", "float_multiply_add"),
    (r"ds_(read|write|load|store|add|max)_?.*", "shared"),
    (r"s_barrier.*", "barrier"),
    (r"scratch_.*", "spill"),
)
_MARKERS = re.compile(r"s_(waitcnt\w*|wait_\w+|nop|delay_alu|clause|setprio|sched_barrier)")
"""Occupy no pipe: waits and hints."""
_WIDTHS = {
    **dict.fromkeys(("dwordx4", "b128"), 16),
    **dict.fromkeys(("dwordx3", "b96"), 12),
    **dict.fromkeys(("dwordx2", "b64"), 8),
    **dict.fromkeys(("dword", "b32"), 4),
    **dict.fromkeys(("ushort", "sshort", "short", "u16", "i16", "b16"), 2),
    **dict.fromkeys(("ubyte", "sbyte", "u8", "i8", "b8"), 1),
}
"""Bytes by the part of a load's name that says so; ``d16`` is where in a register they go."""


class AssemblyError(RuntimeError):
    """The assembly lacks what must be in it; says what."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a kernel reserves.

    Attributes:
        vector_registers: Of a thread, those of the matrix units included.
        scalar_registers: Of a wave.
        spills: Vector and scalar registers kept in memory.
        scratch_bytes: Of a thread, in device memory.
        shared_bytes: Local data share of a workgroup, declared in the code.
    """

    vector_registers: int
    scalar_registers: int
    spills: int
    scratch_bytes: int
    shared_bytes: int


def resources(assembly: str) -> Resources:
    """Read the metadata of the one kernel in an assembly file.

    Raises:
        AssemblyError: A field is missing, or there are several kernels.
    """
    # The matrix units' registers come out of the same file of registers (CDNA 3, 3.6.4) and
    # vgpr_count holds both; RDNA has none.
    return Resources(
        vector_registers=_field(assembly, "vgpr_count"),
        scalar_registers=_field(assembly, "sgpr_count"),
        spills=_field(assembly, "vgpr_spill_count") + _field(assembly, "sgpr_spill_count"),
        scratch_bytes=_field(assembly, "private_segment_fixed_size"),
        shared_bytes=_field(assembly, "group_segment_fixed_size"),
    )


def _field(assembly: str, name: str) -> int:
    found = re.findall(rf"^\s+(?:- )?\.{name}:\s+(\d+)", assembly, re.MULTILINE)
    if len(found) != 1:
        raise AssemblyError(
            f"AMD assembly: .{name} appears {len(found)} times in the metadata, expected 1"
        )
    return int(found[0])


def instructions(assembly: str) -> list[Instruction]:
    """The instructions of the first function in an assembly file.

    Raises:
        AssemblyError: No code, or a branch to an unknown label.
    """
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in assembly.splitlines():
        if _FUNCTION_END.match(line):
            break
        if label := _LABEL.match(line):
            labels[label[1]] = len(lines)
        elif found := _INSTRUCTION.match(line):
            lines.append((found[1], found[2] or ""))
    if not lines:
        raise AssemblyError("AMD assembly: no instructions")
    return [_instruction(opcode, operands, labels) for opcode, operands in lines]


def _instruction(opcode: str, operands: str, labels: dict[str, int]) -> Instruction:
    target = None
    falls_through = True
    if opcode.startswith(("s_branch", "s_cbranch")):
        if operands not in labels:
            raise AssemblyError(f"AMD assembly: {opcode} {operands}: no such label")
        target = labels[operands]
        falls_through = opcode != "s_branch"
    elif opcode in ("s_endpgm", "s_setpc_b64"):
        falls_through = False
    kind = _kind(opcode)
    return Instruction(
        opcode=opcode,
        kind=kind,
        load_bytes=_width(opcode) if kind == "load" else 0,
        target=target,
        falls_through=falls_through,
        issued=not _MARKERS.fullmatch(opcode),
    )


def _kind(opcode: str) -> Kind:
    for pattern, kind in _KINDS:
        if re.fullmatch(pattern, opcode):
            return kind
    return "other"


def _width(opcode: str) -> int:
    for part in opcode.split("_"):
        if part in _WIDTHS:
            return _WIDTHS[part]
    raise AssemblyError(f"AMD assembly: width of {opcode} not understood")
