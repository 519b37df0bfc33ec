"""How many threads a native call uses: torch's own, when both share one OpenMP runtime.

Two OpenMP runtimes in a process keep two pools of threads that wait by spinning and take the
processors from each other: up to ten times slower than one thread. torch's wheels carry their own
runtime; an extension loaded after torch normally binds to it (same library name), which is checked
here by comparing where both find ``omp_get_num_threads``.
"""

from __future__ import annotations

import ctypes
import re
import warnings
from functools import cache
from pathlib import Path

import torch

from agentforge_kernels.native import extension

_RUNTIME = re.compile(r"/lib(?:gomp|omp|iomp5)(?:-[-.\w]*)?\.(?:so|dylib)(?:\.[.\w]*)?$")


def default_threads() -> int:
    """Threads for a call: ``torch.get_num_threads()``, or 1 when the runtime is not torch's."""
    return torch.get_num_threads() if shares_openmp() else 1


@cache
def shares_openmp() -> bool:
    """Whether the extension runs on torch's OpenMP runtime; warns once when it does not."""
    if extension is None:
        return False
    own = int(extension.openmp_address())
    if own == 0:
        return False
    torch_address = _openmp_address_of_torch()
    shared = own == torch_address if torch_address else len(mapped_runtimes()) < 2
    if not shared:
        warnings.warn(
            "agentforge_kernels runs on one thread: its OpenMP runtime is not the one of torch "
            f"(loaded: {', '.join(mapped_runtimes()) or 'unknown'}). Reinstall the package next to "
            "this torch, or set AGENTFORGE_KERNELS=reference to compute without the extension.",
            stacklevel=2,
        )
    return shared


def mapped_runtimes(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Files of the OpenMP runtimes mapped into this process (Linux; empty elsewhere)."""
    try:
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    files = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(file for file in files if _RUNTIME.search(file))


def _openmp_address_of_torch() -> int:
    """Where torch finds ``omp_get_num_threads``; 0 when it cannot be told."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(library)).omp_get_num_threads
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
