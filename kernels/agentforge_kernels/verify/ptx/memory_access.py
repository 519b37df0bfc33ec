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
from agentforge_kernels.verify.ptx.program import Address, Immediate, Instruction, Symbol
from agentforge_kernels.verify.ptx.registers import Active, Handler
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES, UNSIGNED, Array, reinterpret


def bind_load(instruction: Instruction, machine: Machine) -> Handler:
    """``ld{.space}{.vec}.type d, [a]``; cache hints and memory orders change nothing here."""
    if "param" in instruction.modifiers:
        return _bind_parameter_load(instruction, machine)
    space, kind = space_of(instruction), kind_of(instruction)
    numpy_kind = NUMPY_TYPES[kind]
    read_address = machine.address_reader(instruction.operands[1])
    writers = [
        machine.registers.writer(part, kind) for part in elements_of(instruction.operands[0])
    ]
    size = numpy_kind.itemsize * len(writers)

    def load(active: Active) -> None:
        addresses = read_address(active)
        if space == "global":
            offsets = machine.global_memory.locate(addresses, size)
            values = [
                machine.global_memory.load(offsets + number * numpy_kind.itemsize, numpy_kind)
                for number in range(len(writers))
            ]
        else:
            blocks = machine.block[active.index]
            offsets = machine.shared.locate(addresses, blocks, size)
            machine.shared.before_read(offsets, machine.warp[active.index], blocks, size)
            values = [
                machine.shared.load(offsets + number * numpy_kind.itemsize, numpy_kind)
                for number in range(len(writers))
            ]
        for write, value in zip(writers, values, strict=True):
            write(active, value)

    return load


def bind_store(instruction: Instruction, machine: Machine) -> Handler:
    """``st{.space}{.vec}.type [a], b``."""
    space, kind = space_of(instruction), kind_of(instruction)
    numpy_kind = NUMPY_TYPES[kind]
    read_address = machine.address_reader(instruction.operands[0])
    readers = [
        machine.registers.reader(part, kind) for part in elements_of(instruction.operands[1])
    ]
    size = numpy_kind.itemsize * len(readers)

    def store(active: Active) -> None:
        values = [np.ascontiguousarray(read(active)) for read in readers]
        if space == "global":
            offsets = machine.global_memory.locate(read_address(active), size)
            for number, value in enumerate(values):
                machine.global_memory.store(offsets + number * numpy_kind.itemsize, value)
            return
        store_shared(machine, active, read_address(active), values)

    return store


def store_shared(machine: Machine, active: Active, addresses: Array, values: list[Array]) -> None:
    """Checked store of consecutive ``values`` (one array an element) to shared memory."""
    size = values[0].dtype.itemsize
    blocks = machine.block[active.index]
    offsets = machine.shared.locate(addresses, blocks, size * len(values))
    data = np.stack(values, axis=1).view(np.uint8).reshape(len(active), -1)
    machine.shared.before_write(
        offsets, machine.warp[active.index], blocks, size * len(values), data
    )
    for number, value in enumerate(values):
        machine.shared.store(offsets + number * size, value)


def _bind_parameter_load(instruction: Instruction, machine: Machine) -> Handler:
    kind = kind_of(instruction)
    address = instruction.operands[1]
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
    numpy_kind = NUMPY_TYPES[kind]
    value = reinterpret(bits.view(UNSIGNED[8]), numpy_kind)
    write = machine.registers.writer(parts[0], kind)
    return lambda active: write(active, np.repeat(value, len(active)))


def bind_asynchronous_copy(instruction: Instruction, machine: Machine) -> Handler:
    """``cp.async.{ca,cg}.shared.global [dst], [src], size{, source size}`` and its group commands.

    With a source size below ``size`` the rest of the destination is zero; a source size of 0 reads
    nothing, so its address may be anything.
    """
    modifiers = instruction.modifiers
    if not modifiers or modifiers[0] != "async" or "bulk" in modifiers or "mbarrier" in modifiers:
        raise unsupported(instruction)
    if modifiers[1] == "commit_group":
        return lambda active: machine.copies.commit(active.threads)
    if modifiers[1] in ("wait_group", "wait_all"):
        newest = 0
        if modifiers[1] == "wait_group":
            operand = instruction.operands[0]
            if not isinstance(operand, Immediate):
                raise unsupported(instruction, "the number of groups is no constant")
            newest = operand.bits

        def wait(active: Active) -> None:
            if modifiers[1] == "wait_all":
                machine.copies.commit(active.threads)
            machine.copies.wait(active.threads, newest)

        return wait
    return _bind_copy(instruction, machine)


def _bind_copy(instruction: Instruction, machine: Machine) -> Handler:
    size_operand = instruction.operands[2]
    if not isinstance(size_operand, Immediate) or size_operand.bits not in (4, 8, 16):
        raise unsupported(instruction, "the size is not 4, 8 or 16")
    size = size_operand.bits
    hinted = any("cache_hint" in modifier for modifier in instruction.modifiers)
    extra = instruction.operands[3 : len(instruction.operands) - hinted]
    read_destination = machine.address_reader(instruction.operands[0])
    read_source = machine.address_reader(instruction.operands[1])
    read_size = machine.registers.reader(extra[0] if extra else size_operand, "u32")

    def copy(active: Active) -> None:
        offsets = machine.shared.locate(read_destination(active), machine.block[active.index], size)
        wanted = read_size(active)
        data = np.zeros((len(active), size), np.uint8)
        reading = wanted > 0
        if bool((wanted[reading] != size).any()):
            raise unsupported(instruction, "a source size other than 0 and the whole")
        source = machine.global_memory.locate(read_source(active)[reading], size)
        for byte in range(0, size, 4):
            words = machine.global_memory.load(source + byte, np.dtype(np.uint32))
            data[reading, byte : byte + 4] = words.view(np.uint8).reshape(-1, 4)
        machine.copies.issue(active.threads, offsets, data)

    return copy


def bind_nothing(instruction: Instruction, machine: Machine) -> Handler:
    """Hints and fences: every access of this executor is in order already."""
    return lambda active: None


def bind_create_policy(instruction: Instruction, machine: Machine) -> Handler:
    """``createpolicy``: a cache policy; the register gets a value nothing interprets."""
    write = machine.registers.writer(instruction.operands[0], "b64")
    return lambda active: write(active, np.zeros(len(active), np.uint64))


def bind_convert_address(instruction: Instruction, machine: Machine) -> Handler:
    """``cvta.to.global`` and ``cvta.global``: generic and global addresses are the same numbers."""
    if "global" not in instruction.modifiers:
        raise unsupported(instruction, "only global addresses have a generic form here")
    kind = kind_of(instruction)
    read = machine.registers.reader(instruction.operands[1], kind)
    write = machine.registers.writer(instruction.operands[0], kind)
    return lambda active: write(active, read(active))


BINDERS: dict[str, Binder] = {
    "ld": bind_load,
    "st": bind_store,
    "cp": bind_asynchronous_copy,
    "cvta": bind_convert_address,
    "createpolicy": bind_create_policy,
    "prefetch": bind_nothing,
    "fence": bind_nothing,
    "membar": bind_nothing,
    "griddepcontrol": bind_nothing,
}
