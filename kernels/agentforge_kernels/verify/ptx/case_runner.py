"""Runs a kernel case's compiled code on the CPU and checks what it computed."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from agentforge_kernels.verify.aot import compile_case
from agentforge_kernels.verify.cases import Arguments, KernelCase, copy_arguments
from agentforge_kernels.verify.ptx.control import Schedule
from agentforge_kernels.verify.ptx.executor import launch
from agentforge_kernels.verify.ptx.faults import PtxFault
from agentforge_kernels.verify.ptx.parser import parse
from agentforge_kernels.verify.ptx.program import Program
from agentforge_kernels.verify.ptx.types import Array

parse_once = functools.lru_cache(maxsize=8)(parse)
"""A case is run several times on end, with other seeds and schedules."""


def run_ptx(
    case: KernelCase, target: str, seed: int = 0, schedule: Schedule = Schedule.TOGETHER
) -> Arguments:
    """Compile a case for a target, execute its small launch, and check the results.

    Args:
        case: What to run.
        target: An NVIDIA target the case ships for.
        seed: Of the case's arguments.
        schedule: Order in which the warps of a block run.

    Returns:
        The arguments after the launch.

    Raises:
        CompilationFailure: The case does not compile.
        PtxFault: The program misbehaved, or uses what the executor does not know.
        AssertionError: The results differ from the oracle's.
    """
    compiled = compile_case(case, target)
    return run_program(case, parse_once(compiled.ptx), compiled.shared_bytes, seed, schedule)


def run_program(
    case: KernelCase,
    program: Program,
    shared_bytes: int,
    seed: int = 0,
    schedule: Schedule = Schedule.TOGETHER,
    detect: bool = True,
) -> Arguments:
    """The same for PTX that is at hand: what tests do that damage it.

    Args:
        case: Arguments, grid and oracle.
        program: The parsed kernel.
        shared_bytes: Dynamic shared memory.
        seed: Of the case's arguments.
        schedule: Order in which the warps of a block run.
        detect: Raise on races and reads of shared memory nobody wrote.

    Raises:
        PtxFault: The program misbehaved; the message names the case.
        AssertionError: The results differ from the oracle's.
    """
    arguments = case.build_checked(seed)
    before = copy_arguments(arguments)
    values = [
        memory_of(value) if isinstance(value, Tensor) else value
        for value in arguments.values()
        if value is not None
    ]
    try:
        launch(
            program,
            case.grid,
            values,
            dynamic_shared=shared_bytes,
            schedule=schedule,
            detect=detect,
        )
    except PtxFault as fault:
        buffers = [name for name, value in arguments.items() if isinstance(value, Tensor)]
        named = ", ".join(f"{number} {name}" for number, name in enumerate(buffers))
        raise type(fault)(f"{case.name}: {fault}; buffers: {named}") from None
    case.check(before, arguments)
    return arguments


def memory_of(tensor: Tensor) -> Array:
    """The bytes of a contiguous CPU tensor, shared with it."""
    return tensor.view(-1).view(torch.uint8).numpy()
