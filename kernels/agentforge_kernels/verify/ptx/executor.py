"""Executes a PTX kernel on the CPU: every thread of every block, in numpy.

    launch(parse(compiled.asm["ptx"]), grid=(8, 1, 1), arguments=[Buffer(x), Buffer(y), 128])

Blocks run in batches side by side, an instruction being one numpy operation over all their threads; so a
launch costs about as much as one block's instructions, 10 to 50 microseconds each. The executor raises
(``faults``) where hardware would corrupt memory, hang, or give a result that depends on luck.

It is not a timing model, runs PTX and not the SASS that ptxas makes of it, and knows no wgmma, TMA or
mbarrier: such a kernel raises ``UnsupportedInstruction`` before it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agentforge_kernels.verify.ptx import (
    atomics,
    bits,
    conversions,
    floats,
    integers,
    memory_access,
    moves,
    tensor_core,
    warp,
)
from agentforge_kernels.verify.ptx.asynchronous_copies import PendingCopies
from agentforge_kernels.verify.ptx.control import (
    Barrier,
    Schedule,
    Standing,
    branch_target,
    turns_of,
)
from agentforge_kernels.verify.ptx.faults import PtxFault, Trap
from agentforge_kernels.verify.ptx.global_memory import Buffer, GlobalMemory
from agentforge_kernels.verify.ptx.machine import WARP, Binder, Machine, kind_of, unsupported
from agentforge_kernels.verify.ptx.program import Instruction, Program
from agentforge_kernels.verify.ptx.registers import Active, Handler, Reader, RegisterFile
from agentforge_kernels.verify.ptx.shared_memory import SharedMemory
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, UNSIGNED, Array

BATCH_THREADS = 8192
"""Threads executed side by side: beyond, numpy's time grows with their number anyway."""
INSTRUCTION_LIMIT = 20_000_000
"""Steps after which a batch is taken to hang."""

BINDERS: dict[str, Binder] = {
    **integers.BINDERS,
    **bits.BINDERS,
    **moves.BINDERS,
    **conversions.BINDERS,
    **memory_access.BINDERS,
    **atomics.BINDERS,
    **warp.BINDERS,
    **tensor_core.BINDERS,
}
FLOAT_KINDS = ("f16", "f16x2", "bf16", "bf16x2", "f32", "f64")
CONTROL = ("bra", "ret", "exit", "bar", "barrier", "trap")

Argument = Buffer | int | float


@dataclass(frozen=True, slots=True)
class Execution:
    """What a launch did.

    Attributes:
        executed: Threads that ran each instruction, summed, by mnemonic.
        steps: Instructions executed, all active threads of a batch counting as one.
    """

    executed: dict[str, int]
    steps: int


def launch(
    program: Program,
    grid: tuple[int, int, int],
    arguments: Sequence[Argument],
    *,
    dynamic_shared: int = 0,
    schedule: Schedule = Schedule.TOGETHER,
    detect: bool = True,
) -> Execution:
    """Run a kernel; buffers are changed in place.

    Args:
        program: A parsed kernel.
        grid: Blocks along x, y, z.
        arguments: In the kernel's order. Parameters beyond (Triton's scratch pointers) are null.
        dynamic_shared: Bytes of shared memory given at launch (``compiled.metadata.shared``).
        schedule: Order in which a block's warps run.
        detect: Raise on races and on reads of shared memory nobody wrote; without, results show.

    Raises:
        PtxFault: Whatever the program did wrong, or the executor does not know; the message names
            the instruction.
    """
    if program.threads % WARP:
        raise PtxFault(f"{program.name}: {program.threads} threads are no whole warps")
    buffers = [argument for argument in arguments if isinstance(argument, Buffer)]
    memory = GlobalMemory(buffers)
    parameters = _parameters(program, arguments, memory)
    blocks = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    per_batch = max(1, BATCH_THREADS // program.threads)
    counts = np.zeros(len(program.instructions), np.int64)
    steps = 0
    for first in range(0, len(blocks), per_batch):
        batch = np.array(blocks[first : first + per_batch], np.uint32)
        machine = _machine(program, batch, grid, memory, parameters, dynamic_shared, detect)
        steps += _Run(program, machine, schedule, counts).to_the_end()
    memory.copy_back()
    executed: dict[str, int] = {}
    for instruction, count in zip(program.instructions, counts.tolist(), strict=True):
        executed[instruction.mnemonic] = executed.get(instruction.mnemonic, 0) + count
    return Execution({name: count for name, count in executed.items() if count}, steps)


def _parameters(
    program: Program, arguments: Sequence[Argument], memory: GlobalMemory
) -> dict[str, int]:
    """Bits of every parameter by name."""
    if len(arguments) > len(program.parameters):
        raise PtxFault(f"{len(arguments)} arguments for {len(program.parameters)} parameters")
    found: dict[str, int] = dict.fromkeys((p.name for p in program.parameters), 0)
    number = 0
    for parameter, argument in zip(program.parameters, arguments, strict=False):
        if isinstance(argument, Buffer):
            found[parameter.name] = memory.pointer(number)
            number += 1
        elif parameter.kind.startswith("f"):
            value = np.array([argument], NUMPY_TYPES[parameter.kind])
            found[parameter.name] = int(value.view(UNSIGNED[value.dtype.itemsize])[0])
        else:
            found[parameter.name] = int(argument) & (2**64 - 1)
    return found


def _machine(
    program: Program,
    batch: Array,
    grid: tuple[int, int, int],
    memory: GlobalMemory,
    parameters: dict[str, int],
    dynamic_shared: int,
    detect: bool,
) -> Machine:
    threads = len(batch) * program.threads
    number = np.arange(threads)
    within = number % program.threads
    block, warp_number, lane = number // program.threads, number // WARP, within % WARP
    special: dict[str, Array] = {
        "%tid.x": within.astype(np.uint32),
        "%laneid": lane.astype(np.uint32),
        "%warpid": (within // WARP).astype(np.uint32),
        "%ntid.x": np.full(threads, program.threads, np.uint32),
    }
    for name, value in (("%tid.y", 0), ("%tid.z", 0), ("%ntid.y", 1), ("%ntid.z", 1)):
        special[name] = np.full(threads, value, np.uint32)
    for axis, letter in enumerate("xyz"):
        special[f"%ctaid.{letter}"] = batch[block, axis]
        special[f"%nctaid.{letter}"] = np.full(threads, grid[axis], np.uint32)
    symbols, size = _place_shared(program, dynamic_shared)
    shared = SharedMemory(len(batch), size, detect)
    return Machine(
        RegisterFile(program.registers, special, symbols, threads),
        memory,
        shared,
        PendingCopies(threads, shared, warp_number, block),
        parameters,
        threads,
        block,
        warp_number,
        lane,
    )


def _place_shared(program: Program, dynamic_shared: int) -> tuple[dict[str, int], int]:
    """Address of every shared variable, sized ones first, and the bytes in all."""
    symbols: dict[str, int] = {}
    position = 0
    for name, size in program.shared.items():
        symbols[name] = position
        position = -(-(position + size) // 16) * 16
    for name in program.shared_symbols:
        symbols.setdefault(name, position)
    return symbols, position + dynamic_shared


class _Run:
    """One batch of blocks, from the first instruction to the last ``ret``."""

    def __init__(
        self, program: Program, machine: Machine, schedule: Schedule, counts: Array
    ) -> None:
        self._program = program
        self._machine = machine
        self._counts = counts
        self._turns = turns_of(schedule, program.threads, machine.threads)
        self._turn_of = np.empty(machine.threads, np.int64)
        for number, threads in enumerate(self._turns):
            self._turn_of[threads] = number
        self._barrier = Barrier(machine)
        self._handlers = [bind(instruction, machine) for instruction in program.instructions]
        self._guards = [_guard_reader(part, machine) for part in program.instructions]
        self._steps = 0

    def to_the_end(self) -> int:
        """Run; returns the steps taken."""
        standings = [Standing(threads) for threads in self._turns]
        while True:
            for standing in standings:
                while standing:
                    self._step(standing)
            released = self._barrier.release()
            if not released:
                return self._steps
            for position, threads in released.items():
                turns = self._turn_of[threads]
                for number, standing in enumerate(standings):
                    standing.put(position + 1, threads[turns == number])

    def _step(self, standing: Standing) -> None:
        position, threads = standing.take_lowest()
        if position >= len(self._program.instructions):
            return
        instruction = self._program.instructions[position]
        self._steps += 1
        if self._steps > INSTRUCTION_LIMIT:
            raise PtxFault(f"{self._program.name}: no end after {INSTRUCTION_LIMIT} instructions")
        active = Active(threads, self._machine.threads)
        read_guard = self._guards[position]
        if read_guard is not None:
            chosen = read_guard(active)
            if not chosen.all():
                standing.put(position + 1, threads[~chosen])
                active = Active(threads[chosen], self._machine.threads)
                if not len(active):
                    return
        self._counts[position] += len(active)
        try:
            following = self._execute(instruction, position, active)
        except PtxFault as fault:
            if f"line {instruction.line}" in str(fault):
                raise
            where = f"{self._program.name}, line {instruction.line}: {instruction.text}"
            raise type(fault)(f"{fault} ({where})") from None
        if following is not None:
            standing.put(following, active.threads)

    def _execute(self, instruction: Instruction, position: int, active: Active) -> int | None:
        """Execute; returns where the active threads stand next, ``None`` if nowhere yet."""
        opcode = instruction.opcode
        if opcode == "bra":
            return branch_target(instruction, self._program.labels)
        if opcode in ("ret", "exit"):
            return None
        if opcode in ("bar", "barrier") and "warp" not in instruction.modifiers:
            self._barrier.arrive(active, position, instruction)
            return None
        if opcode == "trap":
            raise Trap("the program gave up")
        self._handlers[position](active)
        return position + 1


def bind(instruction: Instruction, machine: Machine) -> Handler:
    """The numpy function of an instruction.

    Raises:
        UnsupportedInstruction: Naming the instruction that the executor does not know.
    """
    opcode = instruction.opcode
    if opcode in CONTROL:
        if opcode == "bar" and "warp" in instruction.modifiers:
            return warp.bind_barrier_of_warp(instruction, machine)
        if opcode in ("bar", "barrier") and "sync" not in instruction.modifiers:
            raise unsupported(instruction)
        return memory_access.bind_nothing(instruction, machine)
    if opcode in floats.OPERATIONS and kind_of(instruction) in FLOAT_KINDS:
        return floats.bind_float(instruction, machine)
    if opcode not in BINDERS:
        raise unsupported(instruction)
    return BINDERS[opcode](instruction, machine)


def _guard_reader(instruction: Instruction, machine: Machine) -> Reader | None:
    if instruction.guard is None:
        return None
    words = machine.registers.words(instruction.guard.register)
    if instruction.guard.negated:
        return lambda active: ~words[active.index]
    return lambda active: words[active.index]
