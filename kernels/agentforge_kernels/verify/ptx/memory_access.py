"""ld, st, cp.async, and the instructions that only hint at memory."""

from __future__ import annotations

import numpy as np

from agentforge_kernels.verify.ptx.machine import (
    Binder,
    Machine,
    elements_of,
    kind_of,
    space_of,
    unsupported,
)
from agentforge_kernels.verify.ptx.program import Address, Immediate, Instruction, Program, Symbol
from agentforge_kernels.verify.ptx.registers import Active, Handler
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, low_bits


def bind_load(instruction: Instruction, machine: Machine) -> Handler:
    """``ld{.space}{.vec}.type d, [a]``; cache hints and memory orders change nothing here."""
    if "param" in instruction.modifiers:
        return _bind_parameter_load(instruction, machine)
    space, kind = space_of(instruction), kind_of(instruction)
    numpy_kind = NUMPY_TYPES[kind]
    read_address = machine.address_reader(instruction.operands[1])
    parts = elements_of(instruction.operands[0])
    writers = [machine.registers.writer(part, kind) for part in parts]

    def load(active: Active) -> None:
        addresses = read_address(active)
        if space == "global":
            values = machine.global_memory.load(addresses, numpy_kind, len(writers))
        else:
            values = machine.shared.load(addresses, active.index, numpy_kind, len(writers))
        for number, write in enumerate(writers):
            write(active, values[:, number])

    return load


def bind_store(instruction: Instruction, machine: Machine) -> Handler:
    """``st{.space}{.vec}.type [a], b``."""
    space, kind = space_of(instruction), kind_of(instruction)
    read_address = machine.address_reader(instruction.operands[0])
    parts = elements_of(instruction.operands[1])
    readers = [machine.registers.reader(part, kind) for part in parts]

    def store(active: Active) -> None:
        values = np.stack([read(active) for read in readers], axis=1)
        if space == "global":
            machine.global_memory.store(read_address(active), values)
        else:
            machine.shared.store(read_address(active), active.index, values)

    return store


def _bind_parameter_load(instruction: Instruction, machine: Machine) -> Handler:
    address, kind = instruction.operands[1], kind_of(instruction)
    parts = elements_of(instruction.operands[0])
    if (
        not isinstance(address, Address)
        or not isinstance(address.base, Symbol)
        or address.offset
        or len(parts) != 1
        or address.base.name not in machine.parameters
    ):
        raise unsupported(instruction, "only whole scalar parameters are known")
    bits = np.array([machine.parameters[address.base.name]], np.uint64)
    value = low_bits(bits, NUMPY_TYPES[kind])
    write = machine.registers.writer(parts[0], kind)
    return lambda active: write(active, value)


def bind_asynchronous_copy(instruction: Instruction, machine: Machine) -> Handler:
    """``cp.async.{ca,cg}.shared.global [dst], [src], size{, source size}`` and its group commands.

    A source size of 0 reads nothing, so its address may be anything, and fills with zeros.
    """
    mode = instruction.modifiers[:2]
    if mode == ("async", "commit_group"):
        return lambda active: machine.copies.commit(active.threads)
    if mode == ("async", "wait_group"):
        newest = instruction.operands[0]
        if not isinstance(newest, Immediate):
            raise unsupported(instruction, "the number of groups is no constant")
        return lambda active: machine.copies.wait(active.threads, newest.bits)
    if mode == ("async", "wait_all"):

        def wait_all(active: Active) -> None:
            machine.copies.commit(active.threads)
            machine.copies.wait(active.threads, 0)

        return wait_all
    if mode in (("async", "ca"), ("async", "cg")):
        return _bind_copy(instruction, machine)
    raise unsupported(instruction, "TMA and barriers in memory: load through plain pointers")


def _bind_copy(instruction: Instruction, machine: Machine) -> Handler:
    size = _copy_size(instruction)
    hinted = any("cache_hint" in modifier for modifier in instruction.modifiers)
    extra = instruction.operands[3 : len(instruction.operands) - hinted]
    read_destination = machine.address_reader(instruction.operands[0])
    read_source = machine.address_reader(instruction.operands[1])
    read_size = machine.registers.reader(extra[0] if extra else Immediate(size), "u32")

    def copy(active: Active) -> None:
        wanted = read_size(active)
        reading = wanted != 0
        if bool((wanted[reading] != size).any()):
            raise unsupported(instruction, "a source size other than 0 and the whole")
        data = np.zeros((active.count, size // 4), np.uint32)
        source = read_source(active)[reading]
        data[reading] = machine.global_memory.load(source, data.dtype, size // 4)
        machine.copies.issue(active.threads, read_destination(active), data.view(np.uint8))

    return copy


def _copy_size(instruction: Instruction) -> int:
    """Bytes a thread copies with a ``cp.async``."""
    sizes = [part.bits for part in instruction.operands[2:3] if isinstance(part, Immediate)]
    if not sizes or sizes[0] not in (4, 8, 16):
        raise unsupported(instruction, "the size is not 4, 8 or 16")
    return sizes[0]


def smallest_shared_access(program: Program) -> int:
    """Bytes of the smallest access to shared memory, 4 at most.

    Asynchronous copies and matrix instructions touch at least 4 bytes.
    """
    smallest = 4
    for instruction in program.instructions:
        in_shared = {"shared", "shared::cta"} & set(instruction.modifiers)
        if instruction.opcode in ("ld", "st") and in_shared:
            value = instruction.operands[0 if instruction.opcode == "ld" else 1]
            size = len(elements_of(value)) * NUMPY_TYPES[kind_of(instruction)].itemsize
            smallest = min(smallest, size)
    return smallest


def bind_nothing(instruction: Instruction, machine: Machine) -> Handler:
    """Fences: every access of this executor is in order already."""
    return lambda active: None


def bind_create_policy(instruction: Instruction, machine: Machine) -> Handler:
    """``createpolicy``: a cache policy; the register gets a value nothing interprets."""
    write = machine.registers.writer(instruction.operands[0], "b64")
    return lambda active: write(active, np.zeros(active.count, np.uint64))


BINDERS: dict[str, Binder] = {
    "ld": bind_load,
    "st": bind_store,
    "cp": bind_asynchronous_copy,
    "createpolicy": bind_create_policy,
    "fence": bind_nothing,
    "membar": bind_nothing,
}
