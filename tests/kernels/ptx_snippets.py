"""Small hand-written PTX programs around a few instructions, and edge values to feed them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from agentforge_kernels.verify.ptx import Schedule, launch, parse
from agentforge_kernels.verify.ptx.types import NUMPY_TYPES
from numpy.typing import NDArray

Array = NDArray[Any]

WARP = 32


def module(
    body: str, parameters: str = "", threads: int = WARP, declarations: str = "", shared: str = ""
) -> str:
    """A PTX module with one kernel.

    Args:
        body: Its statements; it ends with ``ret``.
        parameters: Declarations of its parameters.
        threads: Of a block.
        declarations: Registers.
        shared: Variables in shared memory, at the module's level.
    """
    return f"""
.version 8.7
.target sm_90a
.address_size 64
{shared}
.visible .entry snippet({parameters})
.reqntid {threads}
{{
    {declarations}
    {body}
    ret;
}}
"""


def register_of(kind: str) -> str:
    """Type of the register that holds a value of PTX type ``kind``: there are none of 8 bits."""
    return f"b{max(16, 8 * NUMPY_TYPES[kind].itemsize)}"


def evaluate(
    instructions: str,
    inputs: Mapping[str, tuple[str, Array]],
    outputs: Mapping[str, str],
    declarations: str = "",
) -> dict[str, Array]:
    """Run instructions in one thread for each element of the inputs.

    Every register named in ``inputs`` holds the thread's element before, every one in ``outputs``
    is stored after. Predicates travel as 0 and 1.

    Args:
        instructions: PTX statements.
        inputs: PTX type and values by register; all of one length, padded to whole warps with
            their last element.
        outputs: PTX type by register.
        declarations: More registers.

    Returns:
        The outputs' values, of as many elements as the inputs had.
    """
    length = len(next(iter(inputs.values()))[1])
    threads = -(-length // WARP) * WARP
    buffers: list[Array] = []
    lines = ["mov.u32 %thread, %tid.x;"]
    names = [".reg .b32 %thread, %flag;", ".reg .b64 %place;", declarations]
    for name in inputs.keys() | outputs.keys():
        kind = inputs[name][0] if name in inputs else outputs[name]
        names.append(f".reg .{'pred' if kind == 'pred' else register_of(kind)} {name};")

    def address(number: int, size: int) -> list[str]:
        return [
            f"ld.param.u64 %place, [p{number}];",
            f"mad.wide.u32 %place, %thread, {size}, %place;",
        ]

    for name, (kind, values) in inputs.items():
        stored = np.uint32 if kind == "pred" else NUMPY_TYPES[kind]
        padded = np.concatenate([values, np.repeat(values[-1:], threads - length)])
        buffers.append(np.ascontiguousarray(padded.astype(stored)))
        lines += address(len(buffers) - 1, buffers[-1].itemsize)
        if kind == "pred":
            lines += ["ld.global.b32 %flag, [%place];", f"setp.ne.b32 {name}, %flag, 0;"]
        else:
            lines.append(f"ld.global.{_memory(kind)} {name}, [%place];")
    lines.append(instructions)
    for name, kind in outputs.items():
        stored = np.uint32 if kind == "pred" else NUMPY_TYPES[kind]
        buffers.append(np.zeros(threads, stored))
        lines += address(len(buffers) - 1, buffers[-1].itemsize)
        if kind == "pred":
            lines += [f"selp.b32 %flag, 1, 0, {name};", "st.global.b32 [%place], %flag;"]
        else:
            lines.append(f"st.global.{_memory(kind)} [%place], {name};")
    parameters = ", ".join(f".param .u64 .ptr .global .align 1 p{n}" for n in range(len(buffers)))
    text = module("\n".join(lines), parameters, threads, "\n".join(names))
    launch(parse(text), (1, 1, 1), buffers)
    results = buffers[len(inputs) :]
    return {
        name: buffer[:length].astype(bool) if kind == "pred" else buffer[:length]
        for (name, kind), buffer in zip(outputs.items(), results, strict=True)
    }


def _memory(kind: str) -> str:
    """The type by which values of ``kind`` are loaded and stored: memory knows no float pairs."""
    return kind if kind[0] in "us" else f"b{8 * NUMPY_TYPES[kind].itemsize}"


def run_block(
    body: str,
    buffers: list[Array],
    threads: int = WARP,
    declarations: str = "",
    shared: str = "",
    grid: tuple[int, int, int] = (1, 1, 1),
    dynamic_shared: int = 0,
    schedule: Schedule = Schedule.TOGETHER,
    detect: bool = True,
) -> None:
    """Run statements that see buffers as ``%p0``, ``%p1``, ... and their number as ``%thread``."""
    pointers = [f"ld.param.u64 %p{n}, [p{n}];" for n in range(len(buffers))]
    registers = f".reg .b64 %p<{len(buffers) + 1}>; .reg .b32 %thread; {declarations}"
    parameters = ", ".join(f".param .u64 p{n}" for n in range(len(buffers)))
    statements = "\n".join(["mov.u32 %thread, %tid.x;", *pointers, body])
    text = module(statements, parameters, threads, registers, shared)
    launch(
        parse(text),
        grid,
        buffers,
        dynamic_shared=dynamic_shared,
        schedule=schedule,
        detect=detect,
    )


def integer_edges(kind: str) -> list[int]:
    """Values of an integer type where mistakes show."""
    limits = np.iinfo(NUMPY_TYPES[kind])
    low, high = int(limits.min), int(limits.max)
    found = {0, 1, 2, 3, 7, high, high - 1, high // 2, high // 3, low, low + 1, -1, -2, -7}
    return sorted(value for value in found if low <= value <= high)


def pairs_of(kind: str, extra: int = 150) -> tuple[list[int], list[int]]:
    """All pairs of edges, and random pairs."""
    edges = integer_edges(kind)
    generator = np.random.default_rng(7)
    limits = np.iinfo(NUMPY_TYPES[kind])
    drawn = generator.integers(limits.min, limits.max, (2, extra), limits.dtype, endpoint=True)
    first = [a for a in edges for _ in edges] + drawn[0].tolist()
    second = [b for _ in edges for b in edges] + drawn[1].tolist()
    return first, second


def wrapped(value: int, kind: str) -> int:
    """``value`` modulo the type's range."""
    bits = 8 * NUMPY_TYPES[kind].itemsize
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def as_array(values: list[int], kind: str) -> Array:
    """Integers as an array of a PTX type."""
    return np.array(values, NUMPY_TYPES[kind])
