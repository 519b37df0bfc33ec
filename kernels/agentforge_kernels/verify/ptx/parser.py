"""Reads the PTX text that Triton (LLVM's NVPTX backend) writes.

Grammar: PTX ISA, chapters 4 and 5 (https://docs.nvidia.com/cuda/parallel-thread-execution/). One kernel
a text. Debug directives (``.loc``, ``.file``, ``.section``) are skipped; a statement with an opcode the
executor does not know still parses: it fails when it is about to be executed.
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
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?\s*;")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+(?:\d+\s+)?)*)?([\w$]+)")
_THREADS = re.compile(r"\.(?:reqntid|maxntid)\s+(\d+)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
_LABEL = re.compile(r"([$\w]+)\s*:(?!:)")
_STATEMENT = re.compile(r"(?:@(!?)(%[\w$]+)\s+)?([a-z][\w:]*(?:\.[\w:]+)*)(?:\s+(.*))?$", re.DOTALL)
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
    parameters = tuple(
        Parameter(name, kind) for kind, name in _PARAMETER.findall(entry["parameters"])
    )
    end = _closing_brace(text, entry.end())

    registers: dict[str, str] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    line = text.count("\n", 0, entry.end()) + 1
    for raw in text[entry.end() : end].split(";"):
        statement, line_here = raw, line
        line += raw.count("\n")
        while True:
            stripped = statement.lstrip(" \t\r\n{}")
            line_here += statement[: len(statement) - len(stripped)].count("\n")
            statement = stripped
            label = _LABEL.match(statement)
            if label is None:
                break
            labels[label[1]] = len(instructions)
            statement = statement[label.end() :]
        statement = " ".join(statement.split())
        if not statement:
            continue
        if statement.startswith("."):
            _declare(statement, registers)
        else:
            instructions.append(_instruction(statement, line_here))
    sized = {
        name: int(count) * _bytes_of(kind) for kind, name, count in _SHARED.findall(text) if count
    }
    sized |= {
        name: _bytes_of(kind)
        for kind, name, count in _SHARED.findall(text)
        if not count and f"{name}[" not in text
    }
    symbols = tuple(dict.fromkeys(name for _, name, _ in _SHARED.findall(text)))
    return Program(
        entry[1],
        parameters,
        int(threads[1]),
        registers,
        sized,
        symbols,
        tuple(instructions),
        labels,
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


def _bytes_of(kind: str) -> int:
    return int(re.sub(r"\D", "", kind)) // 8


def _declare(statement: str, registers: dict[str, str]) -> None:
    match = _REGISTERS.match(statement)
    if match is None:
        if statement.startswith((".shared", ".extern", ".branchtargets", ".callprototype")):
            return
        raise PtxSyntaxError(f"directive not understood: {statement}")
    kind = match[1]
    for item in match[2].split(","):
        name = item.strip()
        ranged = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
        if ranged is None:
            registers[name] = kind
        else:
            registers.update({f"{ranged[1]}{number}": kind for number in range(int(ranged[2]))})


def _instruction(statement: str, line: int) -> Instruction:
    match = _STATEMENT.match(statement)
    if match is None:
        raise PtxSyntaxError(f"line {line}: {statement}")
    negated, predicate, mnemonic, rest = match.groups()
    opcode, *modifiers = mnemonic.split(".")
    guard = Guard(predicate, negated == "!") if predicate else None
    operands = tuple(_operand(part, line) for part in _split_operands(rest or ""))
    return Instruction(opcode, tuple(modifiers), operands, guard, line, statement)


def _split_operands(text: str) -> list[str]:
    """Split at commas outside of braces and brackets."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)
    return [part.strip() for part in parts if part.strip()]


def _operand(text: str, line: int) -> Operand:
    if text.startswith("{"):
        elements = tuple(_plain(part.strip(), line) for part in text.strip("{} ").split(","))
        return Vector(elements)
    if text.startswith("["):
        inner = text.strip("[] ")
        match = re.fullmatch(r"([%$\w.]+)\s*(?:([+-])\s*(-?\w+))?", inner)
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
    if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        return Immediate(int(match[1], 16), 32)
    if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
        return Immediate(int(match[1], 16), 64)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
        return Immediate(int(text.rstrip("U"), 0))
    if re.fullmatch(r"-?\d+\.\d+", text):
        # Only createpolicy writes floats so, and its result is a hint that nothing computes with.
        return Immediate(0)
    if text in ("true", "false"):
        return Immediate(int(text == "true"))
    if re.fullmatch(r"[$\w]+", text):
        # A register of an inline assembly block may be declared without a percent sign.
        return Symbol(text)
    raise PtxSyntaxError(f"line {line}: operand {text}")
