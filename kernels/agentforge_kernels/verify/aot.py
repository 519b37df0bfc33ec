"""Compiles a kernel case for a GPU this machine does not have, exactly as a launch on it would.

Triton's wheel carries everything needed: the compiler, NVIDIA's ptxas, AMD's code generator. What a
launch knows and the kernel's source does not is reproduced here: types and 16-byte alignment of the
arguments (the just-in-time path "specialises" on them, and without the promise no load is 128 bits
wide), and on AMD that every tensor is smaller than 2 GB, which allows buffer instructions. Not
reproduced: integers that happen to be 1 become constants in a launch; code compiled here must hold
for every value.

Results are kept on disk by Triton (1 to 6 ms to read one back, 0.1 to 1.3 s to make it), in one
temporary directory for this process and its workers; a ``TRITON_CACHE_DIR`` that is set already is
used instead.

Checked with Triton 3.7.1 and 3.9.0.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from agentforge_kernels.verify.cases import Argument, KernelCase
from agentforge_kernels.verify.targets import TARGETS, Target

TRITON_VERSION: str = triton.__version__

TYPE_NAMES: dict[torch.dtype, str] = {
    torch.bool: "u1",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
"""Triton's names of what a pointer argument may point to."""

ALIGNED = "D"
BELOW_TWO_GIGABYTES = "S"
"""Letters by which Triton's back ends describe what a launch found out about an argument."""


class CompilationFailure(RuntimeError):
    """A case does not compile for a target; names both, the configuration and the cause."""


@dataclass(frozen=True, slots=True)
class CompiledCase:
    """One case compiled for one target.

    Attributes:
        case: Name of the case.
        target: Name of the target.
        symbol: Name of the kernel in the machine code.
        threads: Threads of a program.
        shared_bytes: Shared memory a launch asks for, beyond what the code declares itself.
        ptx: NVIDIA's virtual assembly; empty for AMD.
        cubin: NVIDIA's machine code, an ELF file; empty for AMD.
        amdgcn: AMD's assembly; empty for NVIDIA.
    """

    case: str
    target: str
    symbol: str
    threads: int
    shared_bytes: int
    ptx: str = ""
    cubin: bytes = b""
    amdgcn: str = ""


_cache_directory: Path | None = None


def cache_directory() -> Path:
    """Where Triton keeps results: ``TRITON_CACHE_DIR``, or a temporary one removed at exit."""
    global _cache_directory
    if _cache_directory is None:
        if given := os.environ.get("TRITON_CACHE_DIR"):
            _cache_directory = Path(given)
        else:
            _cache_directory = Path(tempfile.mkdtemp(prefix="agentforge-triton-"))
            atexit.register(_remove, _cache_directory, os.getpid())
    return _cache_directory


def _remove(directory: Path, owner: int) -> None:
    # A forked child runs its parent's exit functions too; the directory is not the child's.
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)


def share_cache_directory(directory: str) -> None:
    """Use another process's directory: called in a worker before it compiles."""
    global _cache_directory
    _cache_directory = Path(directory)


def compile_case(case: KernelCase, target: str) -> CompiledCase:
    """Compile one case for one target.

    Args:
        case: The case; its small launch is built (seed 0) for the arguments' types.
        target: Name from ``targets.TARGETS``.

    Raises:
        CompilationFailure: Triton, LLVM or ptxas refuse; says kernel, configuration, target, cause.
        ValueError: The case's arguments do not fit its kernel.
    """
    _refuse_vain_promises(case)
    described = TARGETS[target]
    gpu = gpu_target(described)
    constexprs = case.constexprs_for(target)
    arguments = case.build_checked(seed=0)
    # None is a compile-time constant in a launch as well.
    constants = {**constexprs, **{name: None for name, value in arguments.items() if value is None}}
    signature = {
        name: "constexpr" if name in constants else type_name(name, arguments[name])
        for name in case.kernel.arg_names
    }
    backend = make_backend(gpu)
    attributes = {
        (case.kernel.arg_names.index(name),): backend.parse_attr(letters)
        for name, value in arguments.items()
        if name not in constants
        and (letters := specialisation(described, value, name in case.aligned))
    }
    source = ASTSource(case.kernel, signature, constexprs=constants, attrs=attributes)
    try:
        with knobs.cache.scope():
            knobs.cache.dir = str(cache_directory())
            compiled = triton.compile(source, target=gpu, options=case.options())
    except Exception as error:
        raise CompilationFailure(
            f"{case.name} ({case.kernel.fn.__name__}, {constants}, {case.options()}) does not "
            f"compile "
            f"for {target} with Triton {TRITON_VERSION}: {_causes(error)}"
        ) from error
    return CompiledCase(
        case=case.name,
        target=target,
        symbol=str(compiled.metadata.name),
        threads=int(compiled.metadata.num_warps) * described.warp_size,
        shared_bytes=int(compiled.metadata.shared),
        ptx=str(compiled.asm.get("ptx", "")),
        cubin=bytes(compiled.asm.get("cubin", b"")),
        amdgcn=str(compiled.asm.get("amdgcn", "")),
    )


def _causes(error: BaseException) -> str:
    """An error and what led to it: Triton's own message is the kernel's line, not the reason."""
    found = []
    cause: BaseException | None = error
    while cause is not None:
        found.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__
    return "; because of ".join(found)


def type_name(name: str, value: Argument) -> str:
    """Triton's name of an argument's type, as a launch with this value would have it.

    Raises:
        ValueError: A tensor of a dtype no kernel takes, or an integer beyond 64 bits.
    """
    if isinstance(value, Tensor):
        if value.dtype not in TYPE_NAMES:
            raise ValueError(f"{name}: no kernel takes a pointer to {value.dtype}")
        return "*" + TYPE_NAMES[value.dtype]
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        for bits in (32, 64):
            if -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
                return f"i{bits}"
        raise ValueError(f"{name}: {value} does not fit into 64 bits")
    if isinstance(value, float):
        return "fp32"
    raise ValueError(f"{name}: {value!r} is no kernel argument")


def gpu_target(target: Target) -> Any:
    """Triton's own description of a target."""
    if target.family == "cuda":
        return GPUTarget("cuda", target.capability, target.warp_size)
    return GPUTarget("hip", target.name, target.warp_size)


def specialisation(target: Target, value: Argument, aligned: bool) -> str:
    """What a launch would note about an argument, in the letters of Triton's back ends."""
    letters = ALIGNED if aligned else ""
    if isinstance(value, Tensor) and target.family != "cuda" and knobs.amd.use_buffer_ops:
        letters += BELOW_TWO_GIGABYTES
    return letters


def _refuse_vain_promises(case: KernelCase) -> None:
    fixed = {parameter.name for parameter in case.kernel.params if parameter.do_not_specialize}
    if promised := sorted(case.aligned & fixed):
        raise ValueError(
            f"{case.name}: {promised} are promised to be aligned, but the kernel's "
            f"do_not_specialize "
            f"keeps a launch from using that"
        )
