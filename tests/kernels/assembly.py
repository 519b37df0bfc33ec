"""Reading x86 assembly: where the loops are and what touches the stack."""

from __future__ import annotations

import re

LABEL = re.compile(r"^(\.L\w+):")
JUMP = re.compile(r"^\tj\w+\s+(\.L\w+)")
STACK = re.compile(r"\(%rsp[,)]|-\d+\(%rbp[,)]")


def innermost_loops(lines: list[str], instruction: str) -> list[list[str]]:
    """Loops of a function that hold ``instruction`` and no smaller such loop."""
    at = {match[1]: number for number, line in enumerate(lines) if (match := LABEL.match(line))}
    loops = []
    for number, line in enumerate(lines):
        match = JUMP.match(line)
        if match and at.get(match[1], number) < number:
            body = range(at[match[1]], number + 1)
            if any(instruction in lines[i] for i in body):
                loops.append(body)
    return [
        lines[loop.start : loop.stop]
        for loop in loops
        if not any(
            other is not loop and loop.start <= other.start and other.stop <= loop.stop
            for other in loops
        )
    ]
