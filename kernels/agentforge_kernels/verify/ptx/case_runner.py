"""Runs a kernel case's compiled code on the CPU and checks what it computed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from agentforge_kernels.verify.aot import compile_case
from agentforge_kernels.verify.cases import Arguments, KernelCase
from agentforge_kernels.verify.ptx.control import Schedule
from agentforge_kernels.verify.ptx.executor import launch
from agentforge_kernels.verify.ptx.faults import PtxFault
from agentforge_kernels.verify.ptx.parser import parse
from agentforge_kernels.verify.ptx.program import Program
from agentforge_kernels.verify.ptx.types import Array


def run_ptx(
    case: KernelCase,
    target: str,
    seed: int = 0,
    schedules: Iterable[Schedule] = tuple(Schedule),
) -> Arguments:
    """Compile a case for a target, execute its small launch, and check the results.

    Args:
        case: What to run.
        target: An NVIDIA target the case ships for.
        seed: Of the case's arguments.
        schedules: Orders in which the warps of a block run, one launch each.

    Returns:
        The arguments after the last launch.

    Raises:
        CompilationFailure: The case does not compile.
        PtxFault: The program misbehaved, or uses what the executor does not know.
        AssertionError: The results differ from the oracle's.
    """
    compiled = compile_case(case, target)
    return run_program(case, parse(compiled.ptx), compiled.shared_bytes, seed, schedules)


def run_program(
    case: KernelCase,
    program: Program,
    shared_bytes: int,
    seed: int = 0,
    schedules: Iterable[Schedule] = tuple(Schedule),
    detect: bool = True,
) -> Arguments:
    """The same for PTX that is at hand: what tests do that damage it.

    Args:
        case: Arguments, grid and oracle.
        program: The parsed kernel.
        shared_bytes: Dynamic shared memory.
        seed: Of the case's arguments.
        schedules: Orders in which the warps of a block run, one launch each.
        detect: Raise on races and reads of shared memory nobody wrote.

    Raises:
        PtxFault: The program misbehaved; the message names case and buffers.
        AssertionError: The results differ from the oracle's.
    """
    arguments = case.build_checked(seed)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    originals = {name: tensor.clone() for name, tensor in tensors.items()}
    values = [
        memory_of(value) if isinstance(value, Tensor) else value
        for value in arguments.values()
        if value is not None
    ]
    for schedule in schedules:
        for name, tensor in tensors.items():
            tensor.copy_(originals[name])
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
            named = ", ".join(f"{number} {name}" for number, name in enumerate(tensors))
            raise type(fault)(f"{case.name}: {fault}; buffers: {named}") from None
        case.check({**arguments, **originals}, arguments)
    return arguments


def memory_of(tensor: Tensor) -> Array:
    """The bytes of a contiguous CPU tensor, shared with it."""
    return tensor.view(-1).view(torch.uint8).numpy()
