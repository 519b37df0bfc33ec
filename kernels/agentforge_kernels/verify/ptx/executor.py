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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agentforge_kernels.verify.ptx.asynchronous_copies import PendingCopies
from agentforge_kernels.verify.ptx.batch import Batch
from agentforge_kernels.verify.ptx.binding import require_known
from agentforge_kernels.verify.ptx.control import Schedule
from agentforge_kernels.verify.ptx.faults import PtxFault
from agentforge_kernels.verify.ptx.global_memory import GlobalMemory
from agentforge_kernels.verify.ptx.machine import WARP, Machine
from agentforge_kernels.verify.ptx.memory_access import smallest_shared_access
from agentforge_kernels.verify.ptx.program import Program
from agentforge_kernels.verify.ptx.registers import RegisterFile
from agentforge_kernels.verify.ptx.shared_memory import SharedMemory
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, UNSIGNED, Array

BATCH_THREADS = 8192
"""Threads executed side by side: beyond, numpy's time grows with their number anyway."""
STEP_LIMIT = 2_000_000
"""Steps after which a batch of blocks is taken to hang: half a minute and more."""

Argument = Array | int | float


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
    require_known(program)
    memory = GlobalMemory([part for part in arguments if isinstance(part, np.ndarray)])
    parameters = _parameters(program, arguments, memory)
    blocks = np.array(list(np.ndindex(grid[2], grid[1], grid[0])), np.uint32)[:, ::-1]
    per_batch = max(1, BATCH_THREADS // program.threads)
    counts = np.zeros(len(program.instructions), np.int64)
    steps = 0
    with np.errstate(all="ignore"):  # integers wrap, floats overflow: as on the device
        for first in range(0, len(blocks), per_batch):
            batch = blocks[first : first + per_batch]
            machine = _machine(program, batch, grid, memory, parameters, dynamic_shared, detect)
            steps += Batch(program, machine, schedule, counts, step_limit).run()
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
    shared = SharedMemory(block, warp_number, size, smallest_shared_access(program), detect)
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
