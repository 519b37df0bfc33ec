"""ggml through ctypes: the shared libraries inside the package llama-cpp-python.

Only functions of ggml's public headers, all over opaque pointers; the one structure passed by value
is ``ggml_init_params``.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from bench.kernels.contestant import MissingPeerError

PACKAGE = "llama-cpp-python"
FEATURES = ("avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16")
"""Instruction sets ggml may have been compiled for; a build for fewer would be a weaker peer."""


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


_LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_ERROR = 4


def _print_errors(level: int, text: bytes, _: int) -> None:
    """What ggml says about itself; it announces every tensor it repacks."""
    if level == _ERROR:
        sys.stderr.write(text.decode(errors="replace"))


_POINTER, _SIZE = c_void_p, c_size_t
_BASE: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (_POINTER, [_InitParams]),
    "ggml_free": (None, [_POINTER]),
    "ggml_version": (c_char_p, []),
    "ggml_log_set": (None, [_POINTER, _POINTER]),
    "ggml_type_name": (c_char_p, [c_int]),
    "ggml_tensor_overhead": (_SIZE, []),
    "ggml_graph_overhead_custom": (_SIZE, [_SIZE, c_bool]),
    "ggml_row_size": (_SIZE, [c_int, c_int64]),
    "ggml_new_tensor_2d": (_POINTER, [_POINTER, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_new_graph_custom": (_POINTER, [_POINTER, _SIZE, c_bool]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_quantize_chunk": (
        _SIZE,
        [c_int, _POINTER, _POINTER, c_int64, c_int64, c_int64, _POINTER],
    ),
    "ggml_backend_cpu_buffer_type": (_POINTER, []),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, [_POINTER, _POINTER]),
    "ggml_backend_buft_alloc_buffer": (_POINTER, [_POINTER, _SIZE]),
    "ggml_backend_buft_name": (c_char_p, [_POINTER]),
    "ggml_backend_buffer_get_base": (_POINTER, [_POINTER]),
    "ggml_backend_buffer_free": (None, [_POINTER]),
    "ggml_backend_tensor_alloc": (c_int, [_POINTER, _POINTER, _POINTER]),
    "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_tensor_get": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_graph_compute": (c_int, [_POINTER, _POINTER]),
    "ggml_backend_get_device": (_POINTER, [_POINTER]),
    "ggml_backend_dev_backend_reg": (_POINTER, [_POINTER]),
    "ggml_backend_reg_get_proc_address": (_POINTER, [_POINTER, c_char_p]),
}
_CPU: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_cpu_init": (_POINTER, []),
    "ggml_backend_cpu_set_n_threads": (None, [_POINTER, c_int]),
    **{f"ggml_cpu_has_{name}": (c_int, []) for name in FEATURES},
}


class GgmlLibrary:
    """ggml's functions as attributes, and a CPU backend.

    Raises:
        MissingPeerError: The package is not installed, or lacks a library or a function.
    """

    def __init__(self) -> None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or not spec.submodule_search_locations:
            raise MissingPeerError(f"{PACKAGE} is not installed (pip install '.[bench]')")
        folder = Path(spec.submodule_search_locations[0]) / "lib"
        try:
            self._load(folder / "libggml-base.so", _BASE)
            self._load(folder / "libggml-cpu.so", _CPU)
        except (OSError, AttributeError) as error:
            raise MissingPeerError(f"no usable ggml in {PACKAGE}: {error}") from None
        self._log = _LOG(_print_errors)
        self.ggml_log_set(ctypes.cast(self._log, c_void_p), None)
        self.backend = self.ggml_backend_cpu_init()

    def _load(self, path: Path, functions: dict[str, tuple[Any, list[Any]]]) -> None:
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for name, (result, arguments) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        """Functions are set when the library is loaded; anything else is not bound."""
        raise AttributeError(name)

    @property
    def versions(self) -> str:
        """ggml, its package and the instruction sets it was compiled for."""
        features = [name for name in FEATURES if getattr(self, f"ggml_cpu_has_{name}")()]
        package = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
        return f"ggml {self.ggml_version().decode()} ({package}; {' '.join(features)})"

    def context(self, tensors: int, graph_nodes: int = 0) -> int:
        """A context for descriptions of so many tensors, their memory elsewhere."""
        size = self.ggml_tensor_overhead() * (tensors + 1)
        if graph_nodes:
            size += self.ggml_graph_overhead_custom(graph_nodes, False)
        created: int = self.ggml_init(_InitParams(size, None, True))
        return created

    def buffer_types(self) -> Iterator[int]:
        """Kinds of memory for weights: those that repack them for this processor, then plain."""
        device = self.ggml_backend_get_device(self.backend)
        register = self.ggml_backend_dev_backend_reg(device)
        address = self.ggml_backend_reg_get_proc_address(
            register, b"ggml_backend_dev_get_extra_bufts"
        )
        if address:
            extra = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(device)
            index = 0
            while extra and extra[index]:
                if b"REPACK" in self.ggml_backend_buft_name(extra[index]):
                    yield extra[index]
                index += 1
        yield self.ggml_backend_cpu_buffer_type()
