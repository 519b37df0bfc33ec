"""Our native kernels as contestants.

:class:`Ours` is timed inside the extension (``_extension.repeat_*``), without Python: it calls the
entry point Python calls, so many times. :class:`FromPython` times the same call made from Python,
with addresses or through the package's operation, which also checks and allocates.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.kernels import cases
from bench.kernels.cases import Case
from bench.kernels.contestant import (
    WEIGHT_SCALE,
    MissingPeerError,
    inputs,
    masked,
    relative_error,
    trits,
)

FLOAT32 = 0
EPSILON = 1e-5


def load_extension(path: str | None = None, isa: str | None = None) -> ModuleType:
    """The installed extension, or one built elsewhere; at a level of instruction set if asked.

    Raises:
        MissingPeerError: It is not there, or is too old, or this machine lacks the level.
    """
    if path is not None:
        name = "agentforge_kernels.native._extension"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise MissingPeerError(f"{path} is no extension")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    from agentforge_kernels.native import extension, unavailable_reason

    if extension is None:
        raise MissingPeerError(f"native: {unavailable_reason()}")
    if not hasattr(extension, "repeat_dense_linear_fused"):
        raise MissingPeerError("the installed extension is too old: build it again")
    if isa is not None:
        names = [extension.isa_name(level) for level in range(5)]
        if isa not in names or not extension.force_isa(names.index(isa)):
            raise MissingPeerError(f"this machine does not report {isa}")
    return extension


@dataclass(frozen=True, slots=True)
class Call:
    """An entry point of the extension with its arguments.

    Attributes:
        entry: Its name; ``repeat_<entry>`` repeats it.
        arguments: Addresses, sizes, threads.
        stride: Bytes from one copy of the weights to the next.
        output: Float32 ``[m, n]`` that it writes.
        owners: What lies at the addresses.
    """

    entry: str
    arguments: tuple[Any, ...]
    stride: int
    output: Tensor
    owners: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Quantised:
    """Tokens as the matmuls that do not quantise take them."""

    q: Tensor
    scale: Tensor
    total: Tensor

    @property
    def arguments(self) -> tuple[int, int, int, int, int]:
        return (
            self.q.data_ptr(),
            self.q.shape[1],
            self.scale.data_ptr(),
            self.total.data_ptr(),
            self.q.shape[0],
        )


class Ours:
    """The native backend.

    Args:
        extension: File of an extension built elsewhere; by default the installed one.
        isa: Level of instruction set; by default the best.
        dense: Do the sparse cases with the dense kernel.
    """

    def __init__(
        self, extension: str | None = None, isa: str | None = None, dense: bool = False
    ) -> None:
        self._extension = load_extension(extension, isa)
        from bench.kernels import package

        self._package = package
        self._dense = dense
        self._weights: tuple[tuple[Any, ...], tuple[Tensor, ...]] | None = None
        self._call: Call | None = None
        self.isa = self._extension.isa_name(self._extension.isa())
        self.versions = f"agentforge-tui {metadata.version('agentforge-tui')}"

    def supports(self, case: Case) -> bool:
        """Everything the extension has."""
        return hasattr(self._extension, f"repeat_{self._form(case)}")

    def prepare(self, case: Case) -> float | None:
        """Lay out the weights, unless they are there, and find the addresses of a call."""
        x = inputs(case.m, case.k)
        if case.op == cases.ACTIVATION_SPARSE:
            x = masked(x, case.zeros, blocks=(1, 1))
        self._call = self._make_call(case, torch.from_numpy(x))
        if case.op == cases.QUANTIZE:
            return None
        self._repeat(case, 1)
        return relative_error(self._call.output.numpy(), x, self._exact_weights(case))

    def run(self, case: Case, repeats: int) -> float:
        """Seconds of ``repeats`` calls."""
        return self._repeat(case, repeats)

    def _repeat(self, case: Case, repeats: int) -> float:
        assert self._call is not None
        repeat = getattr(self._extension, f"repeat_{self._call.entry}")
        seconds: float = repeat(*self._call.arguments, case.copies, self._call.stride, repeats)
        return seconds

    def _form(self, case: Case) -> str:
        """The entry point that does a case."""
        if case.op in (cases.DENSE, cases.COLD):
            return "dense_linear_fused"
        if self._dense:
            return "dense_linear"
        return {
            cases.BLOCK_SPARSE: "block_sparse_linear",
            cases.ACTIVATION_SPARSE: "activation_sparse_linear",
            cases.HEAD: "int8_linear",
            cases.QUANTIZE: "quantize",
        }[case.op]

    def _make_call(self, case: Case, x: Tensor) -> Call:
        form = self._form(case)
        y = torch.zeros(case.m, case.n)
        scale = torch.full((case.n if form == "int8_linear" else 1,), WEIGHT_SCALE)
        if form == "quantize":
            tokens = self._empty_tokens(case)
            out = (tokens.q, tokens.scale, tokens.total)
            q, scale_out, total = (tensor.data_ptr() for tensor in out)
            head = (x.data_ptr(), FLOAT32, 0, EPSILON, case.m, case.k)
            arguments: tuple[Any, ...] = (
                *head, q, tokens.q.shape[1], scale_out, total, case.threads,
            )  # fmt: skip
            return Call(form, arguments, 0, y, (x, tokens))
        weights = self._laid_out(case, form)
        addresses = tuple(tensor.data_ptr() for tensor in weights)
        sizes = (y.data_ptr(), case.n, case.k, case.threads)
        if form == "dense_linear_fused":
            fused = (x.data_ptr(), FLOAT32, 0, EPSILON, case.m, addresses[0])
            stride = addresses[1] - addresses[0] if case.copies > 1 else 0
            arguments = (*fused, scale.data_ptr(), False, 0, *sizes)
            return Call(form, arguments, stride, y, (x, scale, weights))
        tokens = self._quantise(case, x)
        count = (len(weights[0]),) if form == "block_sparse_linear" else ()
        per_row = () if form == "int8_linear" else (False,)
        weight_arguments = (*addresses, *count, scale.data_ptr(), *per_row)
        arguments = (*tokens.arguments, *weight_arguments, 0, *sizes)
        return Call(form, arguments, 0, y, (tokens, scale, weights))

    def _laid_out(self, case: Case, form: str) -> tuple[Tensor, ...]:
        """Weights in the order of the kernel; those of the last case when they are the same."""
        tile_zeros = case.zeros if case.op == cases.BLOCK_SPARSE else 0
        key = (form, case.n, case.k, case.copies, tile_zeros)
        if self._weights is None or self._weights[0] != key:
            self._weights = None
            self._weights = (key, self._lay_out(case, form))
        return self._weights[1]

    def _lay_out(self, case: Case, form: str) -> tuple[Tensor, ...]:
        package = self._package
        backend = package.NativeBackend()
        w = torch.from_numpy(_trits(case))
        if form == "int8_linear":
            return (backend.lay_out_int8(w)[0],)
        packed = package.pack(w, torch.tensor([WEIGHT_SCALE]))
        if form == "block_sparse_linear":
            blocks = package.to_block_sparse(packed)
            tiles = torch.empty_like(blocks.tiles)
            self._extension.pack_tiles(blocks.tiles.data_ptr(), blocks.count, tiles.data_ptr())
            return tiles, blocks.index, blocks.start
        if form == "activation_sparse_linear":
            return (backend.lay_out_columns(package.to_columns(packed).codes, case.n)[0],)
        panels, _ = backend.lay_out_dense(packed.codes, case.k)
        return tuple(package.place_consecutively([panels] * case.copies))

    def _exact_weights(self, case: Case) -> NDArray[np.float32]:
        return _trits(case).astype(np.float32) * np.float32(WEIGHT_SCALE)

    def _empty_tokens(self, case: Case) -> _Quantised:
        q = torch.empty(case.m, -(-case.k // 128) * 128, dtype=torch.int8)
        return _Quantised(q, torch.empty(case.m), torch.empty(case.m, dtype=torch.int32))

    def _quantise(self, case: Case, x: Tensor) -> _Quantised:
        tokens = self._empty_tokens(case)
        q, stride, scale, total, m = tokens.arguments
        self._extension.quantize(
            x.data_ptr(), FLOAT32, 0, EPSILON, m, case.k, q, stride, scale, total, 1
        )
        return tokens


def _trits(case: Case) -> NDArray[np.int8]:
    """The case's weights: block-sparse ones with zero tiles."""
    w = trits(case.n, case.k)
    return masked(w, case.zeros, blocks=(64, 16)) if case.op == cases.BLOCK_SPARSE else w


class FromPython(Ours):
    """The smallest matmuls, called from Python.

    Args:
        operation: Through the package's operation, else the extension's function with addresses.
    """

    def __init__(self, operation: bool, extension: str | None = None) -> None:
        super().__init__(extension)
        self._operation = operation
        self._function: Callable[..., Any] = self._extension.dense_linear_fused
        self._arguments: tuple[Any, ...] = ()

    def prepare(self, case: Case) -> float | None:
        """Find the function to call and what with."""
        error = super().prepare(case)
        assert self._call is not None
        self._arguments = self._call.arguments
        if self._operation:
            package = self._package
            torch.set_num_threads(case.threads)
            packed = package.pack(torch.from_numpy(_trits(case)), torch.tensor([WEIGHT_SCALE]))
            self._function = package.ternary_linear
            self._arguments = (torch.from_numpy(inputs(case.m, case.k)), package.prepare(packed))
        return error

    def run(self, case: Case, repeats: int) -> float:
        """Seconds of ``repeats`` calls."""
        function, arguments = self._function, self._arguments
        started = time.perf_counter()
        for _ in range(repeats):
            function(*arguments)
        return time.perf_counter() - started
