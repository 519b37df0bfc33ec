"""Executes a PTX kernel on the CPU: every thread of every block, in numpy.

    launch(parse(compiled.asm["ptx"]), grid=(8, 1, 1), arguments=[x, y, 128])

Blocks run in batches side by side, an instruction being one numpy operation over all their threads;
so a launch costs about as much as one block's instructions, 10 to 30 microseconds each. The
executor raises (``faults``) where hardware would corrupt memory, hang, or give a result that
depends on luck.

It is not a timing model, and it runs PTX, not the SASS that ptxas makes of it. It knows no wgmma,
no tensor memory accelerator and no mbarrier: such a kernel raises ``UnsupportedInstruction`` before
it starts, so sm_90 ships configurations that compile to ``mma.sync``. Races between warps are
watched in shared memory only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    require_whole_block_barrier,
    turns_of,
)
from agentforge_kernels.verify.ptx.faults import Endless, PtxFault, Trap
from agentforge_kernels.verify.ptx.global_memory import GlobalMemory
from agentforge_kernels.verify.ptx.machine import WARP, Binder, Machine, kind_of, unsupported
from agentforge_kernels.verify.ptx.memory_access import shared_access_size
from agentforge_kernels.verify.ptx.program import Instruction, Program
from agentforge_kernels.verify.ptx.registers import Active, Handler, Reader, RegisterFile
from agentforge_kernels.verify.ptx.shared_memory import SharedMemory
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, UNSIGNED, Array, is_float

BATCH_THREADS = 8192
"""Threads executed side by side: beyond, numpy's time grows with their number anyway."""
STEP_LIMIT = 2_000_000
"""Steps after which a batch of blocks is taken to hang: half a minute and more."""

BINDERS: dict[str, Binder] = {
    **floats.BINDERS,
    **integers.BINDERS,
    **bits.BINDERS,
    **moves.BINDERS,
    **conversions.BINDERS,
    **memory_access.BINDERS,
    **atomics.BINDERS,
    **warp.BINDERS,
    **tensor_core.BINDERS,
}
REFUSED = {
    "wgmma": "warp-group matrix multiply: choose smaller tiles or fewer warps for sm_90, for which"
    " Triton emits mma.sync",
    "tcgen05": "tensor memory of sm_100: execute the sm_80 or sm_90 code of this kernel",
    "mbarrier": "barriers in memory, which come with TMA: load through pointers",
    "cp.async.bulk": "TMA: load through pointers, not tensor descriptors",
    "cp.async.mbarrier": "barriers in memory, which come with TMA: load through pointers",
    "tensormap": "TMA: load through pointers, not tensor descriptors",
}
"""Why some instructions are not executed, and what to do about it, by the mnemonic's beginning."""

CONTROL = ("bra", "ret", "exit", "trap", "bar", "barrier")

Argument = Array | int | float
Control = Callable[[Active], int | None]
"""Executes a control instruction; returns where the threads stand next, ``None`` if nowhere yet."""


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
    step_limit: int = STEP_LIMIT,
) -> Execution:
    """Run a kernel; buffers are changed in place.

    Args:
        program: A parsed kernel.
        grid: Blocks along x, y, z.
        arguments: In the kernel's order; contiguous arrays for pointers, a read-only one (numpy's
            ``flags.writeable``) may only be read. Parameters beyond the last argument (Triton's
            scratch pointers) are null.
        dynamic_shared: Bytes of shared memory given at launch (``compiled.metadata.shared``).
        schedule: Order in which a block's warps run.
        detect: Raise on races and on reads of shared memory nobody wrote; without, results show.
        step_limit: Steps a batch of blocks may take.

    Raises:
        PtxFault: Whatever the program did wrong, or the executor does not know; the message names
            the instruction.
    """
    if program.threads % WARP:
        raise PtxFault(f"{program.name}: {program.threads} threads are no whole warps")
    for instruction in program.instructions:
        _require_known(instruction, program)
    memory = GlobalMemory([part for part in arguments if isinstance(part, np.ndarray)])
    parameters = _parameters(program, arguments, memory)
    blocks = np.array(list(np.ndindex(grid[2], grid[1], grid[0])), np.uint32)[:, ::-1]
    per_batch = max(1, BATCH_THREADS // program.threads)
    counts = np.zeros(len(program.instructions), np.int64)
    steps = 0
    for first in range(0, len(blocks), per_batch):
        batch = blocks[first : first + per_batch]
        machine = _machine(program, batch, grid, memory, parameters, dynamic_shared, detect)
        steps += _Run(program, machine, schedule, counts, step_limit).to_the_end()
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
    found = dict.fromkeys((parameter.name for parameter in program.parameters), 0)
    pointers = 0
    for parameter, argument in zip(program.parameters, arguments, strict=False):
        if isinstance(argument, np.ndarray):
            found[parameter.name] = memory.pointer(pointers)
            pointers += 1
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
    """A machine about to run the blocks ``batch`` ``[blocks, 3]``."""
    number = np.arange(len(batch) * program.threads)
    within = number % program.threads
    block, warp_number, lane = number // program.threads, number // WARP, within % WARP
    special: dict[str, Array] = {
        "%tid.x": within.astype(np.uint32),
        "%laneid": lane.astype(np.uint32),
        "%warpid": (within // WARP).astype(np.uint32),
        "%ntid.x": np.full(len(number), program.threads, np.uint32),
    }
    for axis, letter in enumerate("xyz"):
        special[f"%ctaid.{letter}"] = batch[block, axis]
        special[f"%nctaid.{letter}"] = np.full(len(number), grid[axis], np.uint32)
        special.setdefault(f"%tid.{letter}", np.zeros(len(number), np.uint32))
        special.setdefault(f"%ntid.{letter}", np.ones(len(number), np.uint32))
    symbols, size = _place_shared(program, dynamic_shared)
    accesses = (shared_access_size(instruction) for instruction in program.instructions)
    cell = min((size for size in accesses if size is not None), default=4)
    shared = SharedMemory(block, warp_number, size, min(cell, 4), detect)
    return Machine(
        registers=RegisterFile(program.registers, special, symbols, len(number)),
        global_memory=memory,
        shared=shared,
        copies=PendingCopies(len(number), shared),
        parameters=parameters,
        threads=len(number),
        block=block,
        warp=warp_number,
        lane=lane,
    )


def _place_shared(program: Program, dynamic_shared: int) -> tuple[dict[str, int], int]:
    """Address of every shared variable, sized ones first, and the bytes in all."""
    symbols: dict[str, int] = {}
    position = 0
    for name, size in sorted(program.shared.items(), key=lambda item: item[1] == 0):
        symbols[name] = position
        position = -(-(position + size) // 16) * 16
    return symbols, position + dynamic_shared


class _Run:
    """One batch of blocks, from the first instruction to the last ``ret``."""

    def __init__(
        self,
        program: Program,
        machine: Machine,
        schedule: Schedule,
        counts: Array,
        step_limit: int,
    ) -> None:
        self._program = program
        self._machine = machine
        self._counts = counts
        self._step_limit = step_limit
        self._steps = 0
        self._turns = turns_of(schedule, program.threads, machine.threads)
        self._turn_of = np.empty(machine.threads, np.int64)
        for number, threads in enumerate(self._turns):
            self._turn_of[threads] = number
        self._barrier = Barrier(machine)
        self._guards: list[Reader | None] = []
        self._controls: list[Control | None] = []
        self._handlers: list[Handler | None] = []
        for position, instruction in enumerate(program.instructions):
            try:
                self._guards.append(_guard_reader(instruction, machine))
                control = self._bind_control(instruction, position)
                self._controls.append(control)
                self._handlers.append(None if control else _bind(instruction, machine))
            except PtxFault as fault:
                raise _located(fault, program, instruction) from None

    def to_the_end(self) -> int:
        """Run; returns the steps taken."""
        standings = [Standing(threads, self._machine.threads) for threads in self._turns]
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
                    there = Active(threads[turns == number], self._machine.threads)
                    standing.put(position + 1, there)

    def _step(self, standing: Standing) -> None:
        """Execute one instruction for the threads that stand lowest."""
        position, standing_there = standing.take_lowest()
        if position >= len(self._program.instructions):
            return
        self._steps += 1
        if self._steps > self._step_limit:
            raise Endless(f"{self._program.name}: no end after {self._step_limit} steps")
        active, read_guard = standing_there, self._guards[position]
        if read_guard is not None:
            chosen = read_guard(standing_there)
            if not chosen.all():
                active = Active(standing_there.threads[chosen], self._machine.threads)
        self._counts[position] += len(active)
        handler, control = self._handlers[position], self._controls[position]
        try:
            if handler is not None:
                if len(active):
                    handler(active)
                standing.put(position + 1, standing_there)
            elif control is not None:
                if active is not standing_there:
                    rest = Active(standing_there.threads[~chosen], self._machine.threads)
                    standing.put(position + 1, rest)
                following = control(active) if len(active) else None
                if following is not None:
                    standing.put(following, active)
        except PtxFault as fault:
            raise _located(fault, self._program, self._program.instructions[position]) from None

    def _bind_control(self, instruction: Instruction, position: int) -> Control | None:
        """The function of a control instruction; ``None`` for any other."""
        opcode = instruction.opcode
        if opcode == "bra":
            target = branch_target(instruction, self._program.labels)
            return lambda active: target
        if opcode in ("ret", "exit"):
            return lambda active: None
        if opcode == "trap":
            return _trap
        if opcode in ("bar", "barrier") and "warp" not in instruction.modifiers:
            require_whole_block_barrier(instruction)

            def wait(active: Active) -> None:
                self._barrier.arrive(active, position, instruction)

            return wait
        return None


def _located(fault: PtxFault, program: Program, instruction: Instruction) -> PtxFault:
    """The same fault, saying where."""
    return type(fault)(f"{fault} ({program.name}, {instruction})")


def _trap(active: Active) -> None:
    raise Trap("the program gave up")


def _require_known(instruction: Instruction, program: Program) -> None:
    """Raise ``UnsupportedInstruction`` for an opcode the executor does not know, saying why."""
    for beginning, why in REFUSED.items():
        if f"{instruction.mnemonic}.".startswith(f"{beginning}."):
            raise _located(unsupported(instruction, why), program, instruction)
    if instruction.opcode not in BINDERS and instruction.opcode not in CONTROL:
        raise _located(unsupported(instruction), program, instruction)


def _bind(instruction: Instruction, machine: Machine) -> Handler:
    """The numpy function of an instruction that is no control instruction.

    Raises:
        UnsupportedInstruction: A form of it that the executor does not know.
    """
    opcode = instruction.opcode
    try:
        # Some opcodes, such as add, exist for integers and for floats.
        if opcode in floats.BINDERS and is_float(kind_of(instruction)):
            return floats.BINDERS[opcode](instruction, machine)
        return BINDERS[opcode](instruction, machine)
    except (LookupError, ValueError) as error:
        raise unsupported(instruction, "operands or types do not fit") from error


def _guard_reader(instruction: Instruction, machine: Machine) -> Reader | None:
    if instruction.guard is None:
        return None
    words = machine.registers.words(instruction.guard.register)
    if instruction.guard.negated:
        return lambda active: ~words[active.index]
    return lambda active: words[active.index]
