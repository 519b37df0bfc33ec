"""NVIDIA's machine code (SASS) of compiled kernels, read with the tools inside Triton's wheel.

``nvdisasm`` takes 0.2 to 0.5 s to start and next to nothing for an instruction. So the code of many
kernels of one architecture is put one behind the other into one raw image, and one run disassembles
them all. ``cuobjdump -res-usage`` gives registers and stack; it starts in 5 ms.

Instruction names: CUDA Binary Utilities, "Instruction Set Reference".
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentforge_kernels.verify.machine_code import Instruction, Kind

INSTRUCTION_BYTES = 16
"""Of every instruction since Volta."""
SPECIFIC_VARIANTS = frozenset({90, 100, 120})
"""Capabilities Triton compiles the architecture-specific variant (``sm_90a``) of."""
RESERVED_SHARED_BYTES = 1024
"""What the driver keeps of a block's shared memory from sm_80 on; cuobjdump counts it on sm_90."""

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_HEXADECIMAL = re.compile(r"0x[0-9a-f]+$")

_KINDS: tuple[tuple[str, Kind], ...] = (
    (r"LDG|LDGSTS|LD", "load"),
    (r"IDP", "dot4"),
    (r"IMMA", "int8_matrix"),
    (r"HMMA|DMMA|QMMA|OMMA|BMMA", "float_matrix"),
    (r"[IHQBO]GMMA|UTC[A-Z]*MMA", "warpgroup_matrix"),
    (r"FFMA|FFMA2|FFMA32I", "float_multiply_add"),
    (r"LDS|LDSM|STS|STSM|ATOMS", "shared"),
    (r"BAR|SYNCS|WARPGROUPBAR", "barrier"),
    (r"LDL|STL", "spill"),
)
_MATRIX_SHAPES = {"8816": 8 * 8 * 16, "16816": 16 * 8 * 16, "16832": 16 * 8 * 32}
"""Multiply-adds of an IMMA by the digits of its name."""
_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


class DisassemblyError(RuntimeError):
    """A tool is missing, failed, or printed what is not understood; says which and what."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a kernel reserves.

    Attributes:
        registers: Of a thread.
        stack_bytes: Of a thread, in device memory.
        local_bytes: Of a thread, in device memory: spilled registers.
        shared_bytes: Of a block, declared in the code, without the driver's own.
    """

    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int


def tool(name: str) -> Path:
    """A program of Triton's wheel.

    Raises:
        DisassemblyError: The wheel does not hold it.
    """
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.is_file():
        raise DisassemblyError(f"{name}: not in Triton {triton.__version__}; expected {path}")
    return path


def resources(cubin: bytes, capability: int) -> Resources:
    """Registers and memory of the one kernel in an ELF file, read by cuobjdump.

    Raises:
        DisassemblyError: The tool fails or prints no resources.
    """
    return parse_resources(_run("cuobjdump", ["-res-usage"], cubin), capability)


def parse_resources(text: str, capability: int) -> Resources:
    """Read cuobjdump's line for the one kernel of a file.

    Raises:
        DisassemblyError: There is not exactly one.
    """
    found = _RESOURCES.findall(text)
    if len(found) != 1:
        raise DisassemblyError(
            f"cuobjdump: resources of {len(found)} kernels, expected one: {text}"
        )
    registers, stack, shared, local = map(int, found[0])
    if capability >= 90:
        shared = max(0, shared - RESERVED_SHARED_BYTES)
    return Resources(registers, stack, local, shared)


def disassemble(cubins: Sequence[bytes], capability: int) -> list[list[Instruction]]:
    """The instructions of kernels of one architecture, in the order given.

    Args:
        cubins: ELF files with one kernel each.
        capability: Compute capability times ten, the same for all.

    Raises:
        DisassemblyError: No code in a file, the tool fails, or its output is not understood.
    """
    codes = [code_section(cubin) for cubin in cubins]
    if not codes:
        return []
    architecture = f"SM{capability}{'a' if capability in SPECIFIC_VARIANTS else ''}"
    lines = parse_lines(_run("nvdisasm", ["-b", architecture], b"".join(codes)))
    if len(lines) * INSTRUCTION_BYTES != sum(map(len, codes)):
        raise DisassemblyError(
            f"nvdisasm: {len(lines)} instructions understood of {sum(map(len, codes))} bytes"
        )
    kernels = []
    first = 0
    for code in codes:
        count = len(code) // INSTRUCTION_BYTES
        kernels.append(instructions(lines[first : first + count], first))
        first += count
    return kernels


def code_section(cubin: bytes) -> bytes:
    """The machine code of the one kernel in a 64-bit little-endian ELF file.

    Raises:
        DisassemblyError: Not such a file, or not exactly one section ``.text.<kernel>``.
    """
    if cubin[:6] != b"\x7fELF\x02\x01":
        raise DisassemblyError(f"no 64-bit little-endian ELF file: starts with {cubin[:6]!r}")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_bytes, entries, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    # name, type, flags, address, offset, size of each section header.
    headers = [
        struct.unpack_from("<IIQQQQ", cubin, table + i * entry_bytes) for i in range(entries)
    ]
    names = headers[names_index][4]
    code = []
    for name, _, _, _, offset, size in headers:
        if cubin[names + name : names + name + 6] == b".text.":
            code.append(cubin[offset : offset + size])
    if len(code) != 1:
        raise DisassemblyError(f"{len(code)} kernels in one file, expected one")
    return code[0]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of raw disassembly: byte offset, predicate (or empty), opcode, operands."""

    offset: int
    predicate: str
    opcode: str
    operands: str


def parse_lines(text: str) -> list[Line]:
    """The instructions in nvdisasm's text."""
    found = (_LINE.match(line) for line in text.splitlines())
    return [Line(int(m[1], 16), m[2] or "", m[3], m[4]) for m in found if m]


def instructions(lines: Sequence[Line], first: int = 0) -> list[Instruction]:
    """What the lines of one kernel mean.

    Args:
        lines: All of its lines.
        first: Number of its first instruction in the image: branches are to addresses in that.

    Raises:
        DisassemblyError: A branch out of the kernel or through a table, or an unknown matrix shape.
    """
    return [_instruction(line, first, len(lines)) for line in lines]


def _instruction(line: Line, first: int, count: int) -> Instruction:
    base = line.opcode.split(".")[0]
    target = None
    falls_through = True
    if base in ("BRA", "JMP"):
        address = _HEXADECIMAL.search(line.operands)
        if address is None:
            raise DisassemblyError(f"nvdisasm: branch without a target: {line}")
        target = int(address[0], 16) // INSTRUCTION_BYTES - first
        if not 0 <= target < count:
            raise DisassemblyError(f"nvdisasm: branch out of its kernel: {line}")
        # "BRA.U !UP0, 0x660" carries its condition among the operands.
        falls_through = bool(line.predicate) or address[0] != line.operands
    elif base in ("EXIT", "RET"):
        falls_through = bool(line.predicate)
    elif base in ("BRX", "JMX"):
        raise DisassemblyError(f"nvdisasm: a jump through a table is not understood: {line}")
    kind = _kind(base)
    return Instruction(
        opcode=line.opcode,
        kind=kind,
        load_bytes=_width(line.opcode) if kind == "load" else 0,
        multiplications=_multiplications(line.opcode) if kind == "int8_matrix" else 0,
        target=target,
        falls_through=falls_through,
        issued=base != "NOP",
    )


def _kind(base: str) -> Kind:
    for pattern, kind in _KINDS:
        if re.fullmatch(pattern, base):
            return kind
    return "other"


def _width(opcode: str) -> int:
    for modifier in opcode.split("."):
        if modifier in _WIDTHS:
            return _WIDTHS[modifier]
    return 4


def _multiplications(opcode: str) -> int:
    for modifier in opcode.split("."):
        if modifier in _MATRIX_SHAPES:
            return _MATRIX_SHAPES[modifier]
    raise DisassemblyError(f"nvdisasm: matrix shape not understood: {opcode}")


def _run(name: str, options: list[str], image: bytes) -> str:
    program = tool(name)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(image)
        file.flush()
        result = subprocess.run(
            [str(program), *options, file.name], capture_output=True, text=True, check=False
        )
    if result.returncode:
        said = (result.stderr or result.stdout).strip()
        raise DisassemblyError(f"{name} {' '.join(options)} failed: {said}")
    return result.stdout
