"""Who runs next: the order in which warps take their turns, and who waits at a barrier.

Threads that stand at the same instruction run it together. Where a program branches, the part that
stands at the *lowest* instruction runs first; parts that meet again become one. That is how
compilers lay out code to reconverge, and how SIMT hardware before Volta behaved.

A :class:`Schedule` says which warps may run at a time. ``TOGETHER`` runs all. ``FORWARD`` and
``BACKWARD`` run one warp of a block alone until it ends or waits at a barrier, then the next (or
the previous): the two extremes of what hardware may do, and the ones that make a missing barrier
show in the results.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from agentforge_kernels.verify.ptx.faults import Divergence
from agentforge_kernels.verify.ptx.machine import WARP, Machine, require_whole_warps, unsupported
from agentforge_kernels.verify.ptx.program import Immediate, Instruction
from agentforge_kernels.verify.ptx.registers import Active
from agentforge_kernels.verify.ptx.types import Array


class Schedule(Enum):
    """Order in which the warps of a block run."""

    TOGETHER = "together"
    FORWARD = "forward"
    BACKWARD = "backward"


def turns_of(schedule: Schedule, threads_per_block: int, threads: int) -> list[Array]:
    """Thread numbers that run together, turn after turn."""
    numbers = np.arange(threads)
    if schedule is Schedule.TOGETHER:
        return [numbers]
    warp_in_block = numbers % threads_per_block // WARP
    order = range(threads_per_block // WARP)
    if schedule is Schedule.BACKWARD:
        order = order[::-1]
    return [numbers[warp_in_block == warp] for warp in order]


class Standing:
    """Where the running threads of one turn stand: sets of threads by instruction."""

    def __init__(self, threads: Array, batch: int) -> None:
        self._batch = batch
        self._at = {0: Active(threads, batch)}

    def __bool__(self) -> bool:
        return bool(self._at)

    def take_lowest(self) -> tuple[int, Active]:
        """Remove and return the lowest instruction and the threads that stand there."""
        lowest = min(self._at)
        return lowest, self._at.pop(lowest)

    def put(self, instruction: int, active: Active) -> None:
        """Let threads stand at an instruction, together with those already there."""
        there = self._at.get(instruction)
        if there is not None:
            threads = np.sort(np.concatenate([there.threads, active.threads]))
            active = Active(threads, self._batch)
        self._at[instruction] = active


class Barrier:
    """``bar.sync 0`` of a batch of blocks: who waits, and at which instruction.

    Args:
        machine: Tells threads' blocks.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        blocks = int(machine.block[-1]) + 1
        self._waiting_at = np.full((blocks, machine.threads // blocks), -1, np.int64)

    def arrive(self, active: Active, position: int, instruction: Instruction) -> None:
        """Threads stop here until their block has met.

        Raises:
            Divergence: Part of a warp arrives (bar.sync is the aligned form: PTX ISA, "barrier").
        """
        require_whole_warps(active, instruction)
        self._waiting_at.reshape(-1)[active.threads] = position

    def release(self) -> dict[int, Array]:
        """Threads of the blocks that have met, by the instruction they waited at.

        Raises:
            Divergence: No block has met though threads wait: some ended without the barrier, or
                warps wait at different ones.
        """
        waiting = self._waiting_at
        complete = (waiting >= 0).all(axis=1)
        met = complete & (waiting == waiting[:, :1]).all(axis=1)
        if not bool(met.any()):
            if bool(complete.any()):
                raise Divergence("bar.sync: warps of a block wait at different barriers")
            if bool((waiting >= 0).any()):
                raise Divergence("bar.sync: threads of a block ended without reaching the barrier")
            return {}
        self._machine.shared.barrier(np.nonzero(met)[0])
        threads = np.nonzero(np.repeat(met, waiting.shape[1]))[0]
        positions = waiting.reshape(-1)[threads]
        waiting[met] = -1
        return {int(place): threads[positions == place] for place in np.unique(positions)}


def branch_target(instruction: Instruction, labels: dict[str, int]) -> int:
    """Index of the instruction behind a ``bra``'s label.

    Raises:
        UnsupportedInstruction: No such label.
    """
    name = getattr(instruction.operands[0], "name", "")
    if name not in labels:
        raise unsupported(instruction, "the label is not in the program")
    return labels[name]


def require_whole_block_barrier(instruction: Instruction) -> None:
    """Raise ``UnsupportedInstruction`` unless this is ``bar.sync 0`` of all threads."""
    numbers = [part.bits for part in instruction.operands if isinstance(part, Immediate)]
    if "sync" not in instruction.modifiers or len(instruction.operands) != 1 or numbers != [0]:
        raise unsupported(instruction, "only bar.sync 0 of the whole block is known")
