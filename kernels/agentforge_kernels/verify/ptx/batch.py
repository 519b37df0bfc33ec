"""One batch of blocks, from the first instruction to the last ``ret``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from agentforge_kernels.verify.ptx.binding import CONTROL, bind, bind_guard, located
from agentforge_kernels.verify.ptx.control import (
    Barrier,
    Schedule,
    Standing,
    branch_target,
    require_whole_block_barrier,
    turns_of,
)
from agentforge_kernels.verify.ptx.faults import Endless, PtxFault, Trap
from agentforge_kernels.verify.ptx.machine import Machine
from agentforge_kernels.verify.ptx.program import Instruction, Program
from agentforge_kernels.verify.ptx.registers import Active, Handler, Reader
from agentforge_kernels.verify.ptx.types import Array

Control = Callable[[Active], int | None]
"""Executes a control instruction; returns where the threads stand next, ``None`` if nowhere yet."""


class _Step(NamedTuple):
    """One instruction, ready to run: either ``handler`` or ``control`` is there."""

    guard: Reader | None
    handler: Handler | None
    control: Control | None


class Batch:
    """Executes a program on a machine.

    Args:
        program: The kernel.
        machine: State of the batch's blocks.
        schedule: Order in which a block's warps run.
        executed: int64, threads that ran each instruction; added to.
        step_limit: Steps after which the batch is taken to hang.

    Raises:
        UnsupportedInstruction: A form of an instruction that the executor does not know.
    """

    def __init__(
        self,
        program: Program,
        machine: Machine,
        schedule: Schedule,
        executed: Array,
        step_limit: int,
    ) -> None:
        self._program = program
        self._machine = machine
        self._executed = executed
        self._steps_left = step_limit
        self._step_limit = step_limit
        self._turns = turns_of(schedule, program.threads, machine.threads)
        self._turn_of = np.empty(machine.threads, np.int64)
        for number, threads in enumerate(self._turns):
            self._turn_of[threads] = number
        self._barrier = Barrier(machine)
        self._plan: list[_Step] = []
        for position, instruction in enumerate(program.instructions):
            try:
                self._plan.append(self._step_of(instruction, position))
            except PtxFault as fault:
                raise located(fault, program, instruction) from None

    def run(self) -> int:
        """Run to the end.

        Returns:
            The steps taken.

        Raises:
            PtxFault: Whatever the program did wrong, with the instruction.
        """
        standings = [Standing(threads, self._machine.threads) for threads in self._turns]
        while True:
            for standing in standings:
                while standing:
                    self._step(standing)
            released = self._barrier.release()
            if not released:
                return self._step_limit - self._steps_left
            for position, threads in released.items():
                turns = self._turn_of[threads]
                for number, standing in enumerate(standings):
                    chosen = threads[turns == number]
                    if len(chosen):
                        standing.put(position + 1, Active(chosen, self._machine.threads))

    def _step(self, standing: Standing) -> None:
        """Execute one instruction for the threads that stand lowest."""
        position, here = standing.take_lowest()
        if position == len(self._plan):
            return
        if not self._steps_left:
            raise Endless(f"{self._program.name}: no end after {self._step_limit} steps")
        self._steps_left -= 1
        guard, handler, control = self._plan[position]
        active = here
        if guard is not None:
            chosen = guard(here)
            if not chosen.all():
                active = Active(here.threads[chosen], self._machine.threads)
                if control is not None:
                    rest = Active(here.threads[~chosen], self._machine.threads)
                    standing.put(position + 1, rest)
        try:
            if handler is not None:
                if active.count:
                    handler(active)
                standing.put(position + 1, here)
            elif control is not None and active.count:
                following = control(active)
                if following is not None:
                    standing.put(following, active)
        except PtxFault as fault:
            raise located(fault, self._program, self._program.instructions[position]) from None
        self._executed[position] += active.count

    def _step_of(self, instruction: Instruction, position: int) -> _Step:
        guard = bind_guard(instruction, self._machine)
        if instruction.opcode in CONTROL and "warp" not in instruction.modifiers:
            return _Step(guard, None, self._control_of(instruction, position))
        return _Step(guard, bind(instruction, self._machine), None)

    def _control_of(self, instruction: Instruction, position: int) -> Control:
        if instruction.opcode == "bra":
            target = branch_target(instruction, self._program.labels)
            return lambda active: target
        if instruction.opcode in ("ret", "exit"):
            return lambda active: None
        if instruction.opcode == "trap":
            return _trap
        require_whole_block_barrier(instruction)

        def wait(active: Active) -> None:
            self._barrier.arrive(active, position, instruction)

        return wait


def _trap(active: Active) -> None:
    raise Trap("the program gave up")
