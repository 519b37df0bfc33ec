"""Runs Triton kernels in Triton's interpreter, in a process that can also compile them.

Triton decides at import, by ``TRITON_INTERPRET``, whether ``@triton.jit`` builds compiled or
interpreted functions; a process is then one or the other. Verification needs both: interpret a
kernel, then compile *the same object*. Hence :func:`interpreted`, which for the time of a ``with``
block

* diverts ``JITFunction.run`` (``kernel[grid](...)``) and ``JITFunction.__call__`` (device
  functions) to the interpreted form of the same Python function;
* replaces the parts of ``triton.language`` the interpreter replaces, once for all launches;
* looks inline assembly, which the interpreter refuses, up in :data:`INLINE_ASSEMBLY`.

Checked with Triton 3.7.1 and 3.9.0; it leans on Triton's private names, and the tests say when one
moves. With ``TRITON_INTERPRET`` set the block works as well; compiling then does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime.jit import JITFunction

from agentforge_kernels.verify.byte_assembly import BYTE_ASSEMBLY
from agentforge_kernels.verify.cases import Arguments, KernelCase, copy_arguments

Int32Array = NDArray[np.int32]
Emulation = Callable[..., NDArray[Any]]

GUARD_BYTES = 256
"""Bytes kept before and after every tensor to see stray stores; the interpreter checks none."""
GUARD_VALUE = 0xA5


def dot_of_four_bytes(left_type: type, right_type: type) -> Emulation:
    """dp4a and its AMD kin: ``c + sum over the four bytes of a * b``, wrapping at 32 bits.

    Args:
        left_type: ``np.int8`` or ``np.uint8``, how the bytes of the first operand are read.
        right_type: The same for the second.
    """

    def emulate(a: Int32Array, b: Int32Array, c: Int32Array) -> Int32Array:
        a, b, c = (
            np.ascontiguousarray(value, dtype=np.int32) for value in np.broadcast_arrays(a, b, c)
        )
        # The trailing axis of length one is what a 32-bit word is split into bytes along.
        left = a.reshape(*a.shape, 1).view(left_type).astype(np.int32)
        right = b.reshape(*b.shape, 1).view(right_type).astype(np.int32)
        total = (left * right).sum(-1, dtype=np.int64) + c
        return np.asarray(total).astype(np.int32)

    return emulate


INLINE_ASSEMBLY: dict[str, Emulation] = {
    "dp4a.s32.s32 $0, $1, $2, $3": dot_of_four_bytes(np.int8, np.int8),
    "dp4a.s32.u32 $0, $1, $2, $3": dot_of_four_bytes(np.int8, np.uint8),
    "dp4a.u32.s32 $0, $1, $2, $3": dot_of_four_bytes(np.uint8, np.int8),
    "v_dot4_i32_i8 $0, $1, $2, $3": dot_of_four_bytes(np.int8, np.int8),
    "v_dot4_i32_iu8 $0, $1, $2, $3 neg_lo:[1,1,0]": dot_of_four_bytes(np.int8, np.int8),
    **BYTE_ASSEMBLY,
}
"""Numpy meaning of every inline assembly text the kernels use, white space and ``;`` normalised."""


class _Results:
    """What the interpreter expects of an inline assembly call: results by position."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def get_result(self, position: int) -> Any:
        return self._handles[position]


def _create_inline_asm(
    _builder: object,
    text: str,
    _constraints: str,
    values: list[Any],
    types: list[Any],
    _is_pure: bool,
    _pack: int,
) -> _Results:
    normalised = " ".join(text.split()).rstrip("; ")
    emulate = INLINE_ASSEMBLY.get(normalised)
    if emulate is None:
        raise NotImplementedError(
            f"inline assembly {text!r} has no numpy meaning; add it to {__name__}.INLINE_ASSEMBLY"
        )
    result = emulate(*[value.data for value in values])
    scalars = [getattr(kind, "scalar", kind) for kind in types]
    return _Results([triton_interpreter.TensorHandle(result, scalar) for scalar in scalars])


_interpreted_functions: dict[Callable[..., Any], Any] = {}


def _interpreted_function(kernel: Any) -> Any:
    # Keyed on the Python function: hash(JITFunction) reads its source's cache key, which cannot be
    # computed while triton.language is patched.
    if kernel.fn not in _interpreted_functions:
        _interpreted_functions[kernel.fn] = triton_interpreter.InterpretedFunction(kernel.fn)
    return _interpreted_functions[kernel.fn]


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    # Not InterpretedFunction.__call__: it patches triton.language anew for every call, which takes
    # most of the time, and leaves it so.
    return _interpreted_function(self).rewrite()(*args, **kwargs)


def _run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
    return _interpreted_function(self).run(*args, grid=grid, warmup=warmup, **kwargs)


class _EveryModule:
    """Stands for a function that sees all of ``triton.language``, whose parts are then patched."""

    __globals__ = {"tl": tl, "core": tl.core}


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Within the block, every Triton kernel launched runs in the interpreter on CPU tensors.

    Compilation works before and after, not within. Out-of-bounds accesses are not noticed (the
    interpreter follows raw pointers): :func:`run_interpreted` guards against stray stores,
    ``verify.ptx`` finds all.

    Raises:
        NotImplementedError: (from the launch, inside Triton's ``InterpreterError``) inline assembly
            that is not in :data:`INLINE_ASSEMBLY`.
    """
    builder = triton_interpreter.InterpreterBuilder
    saved = (JITFunction.__call__, JITFunction.run, builder.create_inline_asm)
    JITFunction.__call__, JITFunction.run = _call, _run
    builder.create_inline_asm = _create_inline_asm
    try:
        language = triton_interpreter._patch_lang(_EveryModule)
        try:
            yield
        finally:
            language.restore()
    finally:
        JITFunction.__call__, JITFunction.run, builder.create_inline_asm = saved


def run_interpreted(case: KernelCase, seed: int = 0, target: str | None = None) -> Arguments:
    """Run a case's small launch in the interpreter and check it.

    Args:
        case: What to run.
        seed: Of the case's arguments.
        target: Whose constexprs to use; the case's first by default.

    Returns:
        The arguments after the launch.

    Raises:
        AssertionError: The results differ from the oracle's, or a tensor's surroundings were
            overwritten.
    """
    before = case.build_checked(seed)
    guarded = {
        name: _Guarded(value) if isinstance(value, Tensor) else value
        for name, value in copy_arguments(before).items()
    }
    plain = {
        name: value.tensor if isinstance(value, _Guarded) else value
        for name, value in guarded.items()
    }
    constexprs = case.constexprs_for(target or case.targets[0])
    with interpreted():
        case.kernel[case.grid](**plain, **constexprs)
    for name, value in guarded.items():
        if isinstance(value, _Guarded):
            assert value.intact(), f"{case.name}: stored outside of {name}"
    case.check(before, plain)
    return plain


class _Guarded:
    """A copy of a tensor between two strips of known bytes."""

    def __init__(self, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        self._storage = torch.full((size + 2 * GUARD_BYTES,), GUARD_VALUE, dtype=torch.uint8)
        inner = self._storage[GUARD_BYTES : GUARD_BYTES + size]
        self.tensor = inner.view(tensor.dtype).view(tensor.shape)
        self.tensor.copy_(tensor)
        self._end = GUARD_BYTES + size

    def intact(self) -> bool:
        strips = torch.cat([self._storage[:GUARD_BYTES], self._storage[self._end :]])
        return bool((strips == GUARD_VALUE).all())
