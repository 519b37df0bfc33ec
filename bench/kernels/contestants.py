"""Who takes part."""

from __future__ import annotations

from typing import Any

from bench.kernels import cases
from bench.kernels.cases import Case
from bench.kernels.process import Entry

GGML_TYPES = ("TQ2_0", "Q4_0", "Q2_K", "F16")
TORCH_FORMS = ("fp32", "bf16", "int8pack", "int_mm")
LEVELS = ("avx512vnni", "avxvnni", "avx2", "portable")
LEVEL_SHAPES = ((512, 512), (2560, 2560))
QUICK_PEERS = ("ggml TQ2_0", "torch fp32", "torch bf16", "torch int_mm")

_DENSE = (cases.DENSE, cases.COLD)
_SPARSE = (cases.BLOCK_SPARSE, cases.ACTIVATION_SPARSE)


def ours(options: dict[str, Any]) -> list[Entry]:
    """Our kernels and the machine's limits; ``options``: ``extension`` and ``isa``."""
    return [
        Entry("native", "", "bench.kernels.ours:Ours", options),
        Entry("machine", "read", "bench.kernels.limits:Read", options),
        Entry("machine", "multiply", "bench.kernels.limits:Multiply", options),
    ]


def peers(options: dict[str, Any]) -> list[Entry]:
    """Everything ours is compared with, other forms of ours included."""
    entries = [
        Entry("ggml", name, "bench.kernels.ggml_peer:GgmlPeer", {"weight_type": name}, _dense)
        for name in GGML_TYPES
    ]
    entries += [
        Entry("torch", form, "bench.kernels.torch_peers:TorchPeer", {"form": form}, _dense_or_head)
        for form in TORCH_FORMS
    ]
    entries += [
        Entry("torch", "eager", "bench.kernels.torch_peers:TorchQuantizer", {}, _quantize),
        Entry("native", "dense", "bench.kernels.ours:Ours", {**options, "dense": True}, _sparse),
        Entry(
            "native",
            "raw call",
            "bench.kernels.ours:FromPython",
            {**options, "operation": False},
            _smallest,
        ),
        Entry(
            "native",
            "operation",
            "bench.kernels.ours:FromPython",
            {**options, "operation": True},
            _smallest,
        ),
    ]
    entries += [
        Entry("native", level, "bench.kernels.ours:Ours", {**options, "isa": level}, _at_levels)
        for level in LEVELS
    ]
    return entries


def _dense(case: Case) -> bool:
    return case.op in _DENSE


def _dense_or_head(case: Case) -> bool:
    return case.op in (*_DENSE, cases.HEAD)


def _quantize(case: Case) -> bool:
    return case.op == cases.QUANTIZE


def _sparse(case: Case) -> bool:
    return case.op in _SPARSE


def _smallest(case: Case) -> bool:
    """Where Python's own time is the largest part."""
    return case.op == cases.DENSE and (case.n, case.k, case.m) == (512, 512, 1)


def _at_levels(case: Case) -> bool:
    return case.op == cases.DENSE and case.threads == 1 and (case.n, case.k) in LEVEL_SHAPES
