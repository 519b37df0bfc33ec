"""Reads the PTX text that Triton (LLVM's NVPTX backend) writes.

Grammar: PTX ISA, chapters "Syntax" and "State Spaces, Types, and Variables"
(https://docs.nvidia.com/cuda/parallel-thread-execution/). One kernel a text. Debug directives
(``.loc``, ``.file``, ``.section``) are skipped. A statement with an opcode the executor does not
know parses; ``launch`` refuses it.
"""

from __future__ import annotations

import re

from agentforge_kernels.verify.ptx.faults import PtxSyntaxError
from agentforge_kernels.verify.ptx.program import (
    Address,
    Guard,
    Immediate,
    Instruction,
    Operand,
    Pair,
    Parameter,
    Program,
    Register,
    Symbol,
    Vector,
)

_ENTRY = re.compile(
    r"\.entry\s+([\w$]+)\s*\((?P<parameters>.*?)\)(?P<attributes>[^{]*)\{", re.DOTALL
)
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)\s*(?:\[(\d*)\])?\s*;")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+(?:\d+\s+)?)*)?([\w$]+)")
_THREADS = re.compile(r"\.(?:reqntid|maxntid)\s+(\d+)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)")
_REGISTER_RANGE = re.compile(r"(%?[\w$]+)<(\d+)>")
_LABEL = re.compile(r"([$\w]+)\s*:(?!:)")
_STATEMENT = re.compile(r"(?:@(!?)(%?[\w$]+)\s+)?([a-z][\w:]*(?:\.[\w:]+)*)(?:\s+(.*))?$")
_OPERANDS = re.compile(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+")
_ADDRESS = re.compile(r"([%$\w.]+)\s*(?:([+-])\s*(-?\w+))?")
_INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|0|[1-9]\d*)U?")
_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})")
_SKIPPED_LINES = re.compile(r"^[ \t]*\.(?:loc|file|section|pragma)\b.*$", re.MULTILINE)
_COMMENTS = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def parse(ptx: str) -> Program:
    """Parse the one kernel of a PTX module.

    Args:
        ptx: The module's text (``compiled.asm["ptx"]``).

    Raises:
        PtxSyntaxError: No kernel, no block size, or a statement that is not PTX.
    """
    text = _COMMENTS.sub(_blank, ptx)
    text = _SKIPPED_LINES.sub(_blank, text)
    entry = _ENTRY.search(text)
    if entry is None:
        raise PtxSyntaxError("no .entry in the text")
    threads = _THREADS.search(entry["attributes"])
    if threads is None:
        raise PtxSyntaxError(f"{entry[1]}: neither .reqntid nor .maxntid")

    registers: dict[str, str] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    body = text[entry.end() : _closing_brace(text, entry.end())]
    line = text.count("\n", 0, entry.end()) + 1
    for raw in body.split(";"):
        statement, statement_line = raw, line
        line += raw.count("\n")
        while True:  # labels in front of the statement
            stripped = statement.lstrip(" \t\r\n{}")
            statement_line += statement[: len(statement) - len(stripped)].count("\n")
            label = _LABEL.match(stripped)
            if label is None:
                break
            labels[label[1]] = len(instructions)
            statement = stripped[label.end() :]
        statement = " ".join(stripped.split())
        if statement.startswith("."):
            registers.update(_declared(statement, statement_line))
        elif statement:
            instructions.append(_instruction(statement, statement_line))
    return Program(
        name=entry[1],
        parameters=tuple(
            Parameter(name, kind) for kind, name in _PARAMETER.findall(entry["parameters"])
        ),
        threads=int(threads[1]),
        registers=registers,
        shared=_shared_variables(text),
        instructions=tuple(instructions),
        labels=labels,
    )


def _blank(match: re.Match[str]) -> str:
    """Nothing, but as many lines, so that line numbers stay those of the text given."""
    return "\n" * match[0].count("\n") or " "


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return start + brace.start()
    raise PtxSyntaxError("the kernel's body is not closed")


def _shared_variables(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for variable in _SHARED.finditer(text):
        kind, name, count = variable.groups()
        elements = 1 if count is None else int(count or 0)
        sizes[name] = elements * int(re.sub(r"\D", "", kind)) // 8
    return sizes


def _declared(statement: str, line: int) -> dict[str, str]:
    """Type by name of the registers that a ``.reg`` directive declares."""
    match = _REGISTERS.match(statement)
    if match is None:
        raise PtxSyntaxError(f"line {line}: directive not understood: {statement}")
    found: dict[str, str] = {}
    for item in match[2].split(","):
        name = item.strip()
        ranged = _REGISTER_RANGE.fullmatch(name)
        names = [name] if ranged is None else [f"{ranged[1]}{n}" for n in range(int(ranged[2]))]
        found.update(dict.fromkeys(names, match[1]))
    return found


def _instruction(statement: str, line: int) -> Instruction:
    match = _STATEMENT.match(statement)
    if match is None:
        raise PtxSyntaxError(f"line {line}: {statement}")
    negated, predicate, mnemonic, rest = match.groups()
    opcode, *modifiers = mnemonic.split(".")
    guard = Guard(predicate, negated == "!") if predicate else None
    parts = [part.strip() for part in _OPERANDS.findall(rest or "") if part.strip()]
    operands = tuple(_operand(part, line) for part in parts)
    return Instruction(opcode, tuple(modifiers), operands, guard, line, statement)


def _operand(text: str, line: int) -> Operand:
    if text.startswith("{"):
        return Vector(tuple(_plain(part.strip(), line) for part in text.strip("{} ").split(",")))
    if text.startswith("["):
        match = _ADDRESS.fullmatch(text.strip("[] "))
        if match is None:
            raise PtxSyntaxError(f"line {line}: address {text}")
        offset = int(match[3] or "0", 0) * (-1 if match[2] == "-" else 1)
        return Address(_plain(match[1], line), offset)
    if "|" in text:
        first, second = (_plain(part.strip(), line) for part in text.split("|"))
        if isinstance(first, Register) and isinstance(second, Register):
            return Pair(first, second)
        raise PtxSyntaxError(f"line {line}: pair {text}")
    return _plain(text, line)


def _plain(text: str, line: int) -> Register | Immediate | Symbol:
    if text.startswith("%") or text == "_":
        return Register(text)
    if match := _FLOAT.fullmatch(text):
        digits = match[1] or match[2]
        return Immediate(int(digits, 16), 4 * len(digits))
    if _INTEGER.fullmatch(text):
        return Immediate(int(text.rstrip("U"), 0))
    if re.fullmatch(r"\d+\.\d+", text):
        # Only createpolicy writes floats so, and its result is a hint that nothing computes with.
        return Immediate(0)
    if text in ("true", "false"):
        return Immediate(int(text == "true"))
    if re.fullmatch(r"[A-Za-z_$][\w$]*", text):
        # A register of an inline assembly block may be declared without a percent sign.
        return Symbol(text)
    raise PtxSyntaxError(f"line {line}: operand {text}")
