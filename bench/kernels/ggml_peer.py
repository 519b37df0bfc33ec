"""ggml's matmul as a contestant.

A graph holds many independent ``ggml_mul_mat`` nodes over the same tokens, each of which quantises
them again, as the layers of a model do. All write to one output, so that ggml is not charged for
memory that a model would use again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.kernels import cases
from bench.kernels.cases import Case
from bench.kernels.contestant import MissingPeerError, inputs, relative_error, weights
from bench.kernels.ggml_library import GgmlLibrary

FLOAT32 = 0
TYPES = {"F16": 1, "Q4_0": 2, "Q2_K": 10, "TQ2_0": 35}
"""ggml's numbers of its types (``enum ggml_type``); part of its file format, so they stay."""
REPACKED = ("Q4_0",)
"""Types ggml has layouts for that are faster on this kind of processor."""
_ALIGNMENT = 64
_GRAPH_MULTIPLIES = 64_000_000
_MOST_NODES = 512


@dataclass(frozen=True, slots=True)
class _Weights:
    context: int
    buffer: int
    tensors: list[int]


@dataclass(frozen=True, slots=True)
class _Graph:
    context: int
    buffer: int
    graph: int
    output: int
    nodes: int


class GgmlPeer:
    """One of ggml's weight types."""

    isa = ""

    def __init__(self, weight_type: str) -> None:
        self._ggml = GgmlLibrary()
        self._weight_type = weight_type
        self._type = TYPES[weight_type]
        known = self._ggml.ggml_type_name(self._type).decode()
        if known.upper() != weight_type.upper():
            raise MissingPeerError(f"ggml's type {self._type} is {known}, not {weight_type}")
        self.versions = self._ggml.versions
        self._weights: tuple[tuple[int, int, int], _Weights] | None = None
        self._graph: _Graph | None = None

    def supports(self, case: Case) -> bool:
        """Dense matmuls whose columns fill ggml's blocks of 256."""
        return case.op in (cases.DENSE, cases.COLD) and case.k % 256 == 0

    def prepare(self, case: Case) -> float | None:
        """Quantise the shape's weights, unless they are there, and build a graph for the case."""
        ggml = self._ggml
        ggml.ggml_backend_cpu_set_n_threads(ggml.backend, case.threads)
        self._free_graph()
        w = weights(case.n, case.k)
        key = (case.n, case.k, case.copies)
        if self._weights is None or self._weights[0] != key:
            self._free_weights()
            self._weights = (key, self._store(case, w))
        x = inputs(case.m, case.k)
        self._graph = self._build(case, x)
        self.run(case, 1)
        y = np.zeros((case.m, case.n), np.float32)
        ggml.ggml_backend_tensor_get(self._graph.output, y.ctypes.data, 0, y.nbytes)
        return relative_error(y, x, w)

    def run(self, case: Case, repeats: int) -> float:
        """Seconds of ``repeats`` nodes, whole graphs at a time."""
        assert self._graph is not None
        runs = -(-repeats // self._graph.nodes)
        compute, backend, graph = (
            self._ggml.ggml_backend_graph_compute,
            self._ggml.backend,
            self._graph.graph,
        )
        started = time.perf_counter()
        for _ in range(runs):
            status = compute(backend, graph)
        taken = time.perf_counter() - started
        if status != 0:
            raise RuntimeError(f"ggml_backend_graph_compute returned {status}")
        return taken * repeats / (runs * self._graph.nodes)

    def _store(self, case: Case, w: NDArray[np.float32]) -> _Weights:
        ggml = self._ggml
        stored = np.empty(case.n * ggml.ggml_row_size(self._type, case.k), np.uint8)
        ggml.ggml_quantize_chunk(
            self._type, w.ctypes.data, stored.ctypes.data, 0, case.n, case.k, None
        )
        context = ggml.context(case.copies)
        tensors = [
            ggml.ggml_new_tensor_2d(context, self._type, case.k, case.n) for _ in range(case.copies)
        ]
        kinds = list(ggml.buffer_types())
        kind = kinds[0] if self._weight_type in REPACKED else kinds[-1]
        buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
        if not buffer:
            raise MemoryError(f"ggml: no memory for {case.copies} x {stored.nbytes} bytes")
        for tensor in tensors:
            ggml.ggml_backend_tensor_set(tensor, stored.ctypes.data, 0, stored.nbytes)
        return _Weights(context, buffer, tensors)

    def _build(self, case: Case, x: NDArray[np.float32]) -> _Graph:
        assert self._weights is not None
        ggml, matrices = self._ggml, self._weights[1].tensors
        nodes = min(_MOST_NODES, max(1, _GRAPH_MULTIPLIES // case.multiplies))
        nodes = -(-nodes // case.copies) * case.copies
        context = ggml.context(nodes + 1, graph_nodes=nodes + 1)
        graph = ggml.ggml_new_graph_custom(context, nodes + 1, False)
        tokens = ggml.ggml_new_tensor_2d(context, FLOAT32, case.k, case.m)
        outputs = [
            ggml.ggml_mul_mat(context, matrices[node % case.copies], tokens)
            for node in range(nodes)
        ]
        space = -(-x.nbytes // _ALIGNMENT) * _ALIGNMENT
        kind = ggml.ggml_backend_cpu_buffer_type()
        buffer = ggml.ggml_backend_buft_alloc_buffer(kind, space + 4 * case.m * case.n)
        base = ggml.ggml_backend_buffer_get_base(buffer)
        ggml.ggml_backend_tensor_alloc(buffer, tokens, base)
        for output in outputs:
            ggml.ggml_backend_tensor_alloc(buffer, output, base + space)
            ggml.ggml_build_forward_expand(graph, output)
        ggml.ggml_backend_tensor_set(tokens, x.ctypes.data, 0, x.nbytes)
        return _Graph(context, buffer, graph, outputs[-1], nodes)

    def _free_graph(self) -> None:
        if self._graph is not None:
            self._ggml.ggml_backend_buffer_free(self._graph.buffer)
            self._ggml.ggml_free(self._graph.context)
        self._graph = None

    def _free_weights(self) -> None:
        if self._weights is not None:
            self._ggml.ggml_backend_buffer_free(self._weights[1].buffer)
            self._ggml.ggml_free(self._weights[1].context)
        self._weights = None
