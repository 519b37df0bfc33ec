"""Machine code of a kernel, common to NVIDIA and AMD: instructions, loops, and what is in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "load",
    "dot4",
    "int8_matrix",
    "float_matrix",
    "warpgroup_matrix",
    "float_multiply_add",
    "shared",
    "barrier",
    "spill",
    "other",
]
"""What an instruction is counted as.

``load``: from device memory; ``dot4``: dot product of four bytes; ``..._matrix``: matrix units, by
the type of the operands, ``warpgroup_matrix``: those of sm_90 and later that several warps issue
together (wgmma, tcgen05); ``float_multiply_add``: scalar float32; ``shared``: any access to shared
memory; ``spill``: an access to the thread's own memory, which is device memory.
"""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One machine instruction.

    Attributes:
        opcode: Mnemonic with its modifiers: ``LDG.E.128``, ``v_dot4_i32_i8``.
        kind: What it counts as.
        load_bytes: Bytes a thread loads, for kind ``load``.
        multiplications: Multiply-adds of the whole warp, for the matrix kinds where known.
        target: Index of the instruction jumped to, for a branch.
        falls_through: Whether the next instruction may follow.
        issued: False for markers that occupy no pipe (waits, scheduling hints).
    """

    opcode: str
    kind: Kind = "other"
    load_bytes: int = 0
    multiplications: int = 0
    target: int | None = None
    falls_through: bool = True
    issued: bool = True


@dataclass(frozen=True, slots=True)
class Tally:
    """What a stretch of code holds.

    Attributes:
        instructions: Issued instructions.
        kinds: How many of each kind.
        loads: Loads from device memory by the bytes a thread gets: 16 is a 128-bit load.
        multiplications: Multiply-adds of the matrix instructions of one warp.
    """

    instructions: int
    kinds: dict[Kind, int]
    loads: dict[int, int]
    multiplications: int

    def count(self, *kinds: Kind) -> int:
        """Instructions of these kinds."""
        return sum(self.kinds.get(kind, 0) for kind in kinds)

    @property
    def load_bytes(self) -> int:
        """Bytes a thread loads from device memory (or its caches)."""
        return sum(width * count for width, count in self.loads.items())

    @property
    def narrow_loads(self) -> int:
        """Loads of less than 128 bits a thread."""
        return sum(count for width, count in self.loads.items() if width < 16)


def tally(code: Iterable[Instruction]) -> Tally:
    """Count a stretch of code."""
    issued = [instruction for instruction in code if instruction.issued]
    kinds: Counter[Kind] = Counter(instruction.kind for instruction in issued)
    loads = Counter(item.load_bytes for item in issued if item.kind == "load")
    return Tally(
        instructions=len(issued),
        kinds=dict(kinds),
        loads=dict(sorted(loads.items())),
        multiplications=sum(instruction.multiplications for instruction in issued),
    )


def loops(code: Sequence[Instruction]) -> list[list[int]]:
    """The innermost natural loops, each as the indices of its instructions in order.

    A natural loop belongs to a branch back to an instruction that every path to the branch passes
    (Aho, Sethi, Ullman: Compilers, 10.4); so code moved out of line stays with its loop, and a
    branch back out of a rarely taken stretch makes none. Branches to themselves, which ptxas puts
    behind the end of a kernel, are no loops.
    """
    if not code:
        return []
    successors = [_successors(code, index) for index in range(len(code))]
    starts, block_of = _blocks(code, successors)
    ends = [*starts[1:], len(code)]
    following = [sorted({block_of[to] for to in successors[end - 1]}) for end in ends]
    preceding: list[list[int]] = [[] for _ in starts]
    for block, nexts in enumerate(following):
        for successor in nexts:
            preceding[successor].append(block)
    dominators = _dominators(following, preceding)
    bodies: dict[int, set[int]] = {}
    for block, nexts in enumerate(following):
        for header in nexts:
            if header in dominators[block] and ends[block] - starts[header] > 1:
                bodies.setdefault(header, {header}).update(_body(header, block, preceding))
    innermost = [
        body
        for header, body in bodies.items()
        if not any(other in body for other in bodies if other != header)
    ]
    return [
        [index for block in sorted(body) for index in range(starts[block], ends[block])]
        for body in innermost
    ]


def hot_loop(code: Sequence[Instruction]) -> tuple[list[Instruction], int]:
    """The innermost loop that does the work, and the trips of the source's loop it makes in one.

    It is the one with most matrix and dot-product instructions, then float multiply-adds, then
    loaded bytes, then instructions: a kernel may normalise and quantise in loops of its own first.

    A loop that a compiler unrolled for an unknown number of trips comes with a second one for those
    that remain; where every instruction that computes or moves data is there a whole number of
    times less often, that number is how often it was unrolled. Without such a second loop the
    answer is 1.

    Returns:
        The loop's instructions (none where the code has no loop) and that number.
    """
    candidates = [[code[index] for index in loop] for loop in loops(code)]
    if not candidates:
        return [], 1
    chosen = max(candidates, key=_importance)
    return chosen, max([1, *(_ratio(chosen, other) for other in candidates if other is not chosen)])


_MOVING = re.compile(
    r"(F[A-Z0-9]+|MUFU|I2FP?|ST[GS]|RED|ATOM[GS]?|SHFL)\b|\w*(_f(16|32|64)|_cvt_|_store_|_atomic_)"
)
"""Names of float arithmetic, stores and exchanges: what, with the counted kinds, unrolling repeats
exactly. Addresses and counters it does not."""


def _ratio(loop: list[Instruction], remainder: list[Instruction]) -> int:
    """How many times one loop's characteristic instructions hold those of another; 0: not so."""
    many, few = _characteristic(loop), _characteristic(remainder)
    if not few or many.keys() != few.keys():
        return 0
    ratios = {(count // few[name], count % few[name]) for name, count in many.items()}
    times, rest = ratios.pop()
    return times if not ratios and not rest else 0


def _characteristic(loop: list[Instruction]) -> Counter[str]:
    return Counter(
        f"{item.opcode.split('.')[0]} {item.load_bytes}"
        for item in loop
        if item.kind not in ("other", "spill") or _MOVING.match(item.opcode)
    )


def _importance(loop: list[Instruction]) -> tuple[int, int, int, int]:
    counted = tally(loop)
    products = counted.count("dot4", "int8_matrix", "float_matrix", "warpgroup_matrix")
    additions = counted.count("float_multiply_add")
    return products, additions, counted.load_bytes, counted.instructions


def _successors(code: Sequence[Instruction], index: int) -> list[int]:
    instruction = code[index]
    found = [] if instruction.target is None else [instruction.target]
    if instruction.falls_through and index + 1 < len(code):
        found.append(index + 1)
    return found


def _blocks(
    code: Sequence[Instruction], successors: list[list[int]]
) -> tuple[list[int], dict[int, int]]:
    """First instruction of each basic block, and the block each of these starts."""
    starts = {0}
    for index, found in enumerate(successors):
        if code[index].target is not None or not code[index].falls_through:
            starts.update(found)
            if index + 1 < len(code):
                starts.add(index + 1)
    ordered = sorted(starts)
    return ordered, {start: block for block, start in enumerate(ordered)}


def _dominators(following: list[list[int]], preceding: list[list[int]]) -> list[set[int]]:
    """For each block, the blocks on every path from the entry to it, itself included."""
    reached = _reached(following)
    everything = set(reached)
    dominators = [set(everything) if block else {0} for block in range(len(following))]
    changed = True
    while changed:
        changed = False
        for block in reached:
            if block == 0:
                continue
            known = [dominators[before] for before in preceding[block] if before in everything]
            new = {block} | set.intersection(*known)
            if new != dominators[block]:
                dominators[block] = new
                changed = True
    for block in set(range(len(following))) - everything:
        dominators[block] = set()
    return dominators


def _reached(following: list[list[int]]) -> list[int]:
    """Blocks that some path from the entry leads to, the entry first."""
    found: list[int] = []
    waiting = [0]
    seen = set(waiting)
    while waiting:
        block = waiting.pop()
        found.append(block)
        for successor in following[block]:
            if successor not in seen:
                seen.add(successor)
                waiting.append(successor)
    return found


def _body(header: int, source: int, preceding: list[list[int]]) -> set[int]:
    """Blocks from which ``source`` is reached without passing ``header``."""
    body = {header, source}
    waiting = [source] if source != header else []
    while waiting:
        for before in preceding[waiting.pop()]:
            if before not in body:
                body.add(before)
                waiting.append(before)
    return body
