"""torch's matmuls as contestants, called as a program calls them: from Python, 1 to 2 us a call.

``int_mm`` multiplies int8 by int8 and does nothing else: no quantisation of activations, no scale.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.kernels import cases
from bench.kernels.cases import Case
from bench.kernels.contestant import (
    WEIGHT_SCALE,
    MissingPeerError,
    inputs,
    relative_error,
    weights,
)

Form = tuple[Callable[[Tensor], Any], Callable[[Tensor], Tensor], Callable[[Any, Any], Tensor]]
"""Weights from float32 ``[rows, columns]``, tokens from float32, and the product of the two."""


def _quantised(x: Tensor) -> Tensor:
    return torch.round(x * (127.0 / x.abs().amax(1, keepdim=True))).to(torch.int8)


def _int8pack_weights(w: Tensor) -> tuple[Tensor, Tensor]:
    return (w / WEIGHT_SCALE).round().to(torch.int8), torch.full(
        (w.shape[0],), WEIGHT_SCALE, dtype=torch.bfloat16
    )


FORMS: dict[str, Form] = {
    "fp32": (lambda w: w.clone(), lambda x: x, lambda x, w: functional.linear(x, w)),
    "bf16": (
        lambda w: w.to(torch.bfloat16),
        lambda x: x.to(torch.bfloat16),
        lambda x, w: functional.linear(x, w),
    ),
    "int_mm": (
        lambda w: (w / WEIGHT_SCALE).round().to(torch.int8).t(),
        _quantised,
        torch._int_mm,
    ),
    "int8pack": (
        _int8pack_weights,
        lambda x: x.to(torch.bfloat16),
        lambda x, w: torch.ops.aten._weight_int8pack_mm(x, *w),
    ),
}


class TorchQuantizer:
    """Activations to int8 by torch's operations, one after the other."""

    isa = ""

    def __init__(self) -> None:
        self.versions = f"torch {torch.__version__}"
        self._x = torch.empty(0)

    def supports(self, case: Case) -> bool:
        """The quantiser's cases."""
        return case.op == cases.QUANTIZE

    def prepare(self, case: Case) -> float | None:
        """Make the tokens."""
        torch.set_num_threads(case.threads)
        self._x = torch.from_numpy(inputs(case.m, case.k))
        return None

    def run(self, case: Case, repeats: int) -> float:
        """Seconds of ``repeats`` quantisations: codes, scales, sums."""
        x = self._x
        with torch.inference_mode():
            started = time.perf_counter()
            for _ in range(repeats):
                largest = x.abs().amax(1, keepdim=True).clamp_(min=1e-5)
                q = (x * (127.0 / largest)).round_().to(torch.int8)
                _ = largest / 127.0, q.sum(1, dtype=torch.int32)
            return time.perf_counter() - started


class TorchPeer:
    """One of torch's ways to multiply."""

    isa = ""

    def __init__(self, form: str) -> None:
        if form not in FORMS:
            raise MissingPeerError(f"torch {torch.__version__} has no {form}")
        self._form = form
        self.versions = f"torch {torch.__version__}"
        self._pack, self._tokens, self._multiply = FORMS[form]
        self._weights: tuple[tuple[int, int, int], list[Any]] | None = None
        self._x: Any = None

    def supports(self, case: Case) -> bool:
        """Dense matmuls and the head."""
        return case.op in (cases.DENSE, cases.COLD, cases.HEAD)

    def prepare(self, case: Case) -> float | None:
        """Make the shape's weights, unless they are there."""
        torch.set_num_threads(case.threads)
        w = torch.from_numpy(weights(case.n, case.k))
        key = (case.n, case.k, case.copies)
        if self._weights is None or self._weights[0] != key:
            self._weights = None
            self._weights = (key, [self._pack(w) for _ in range(case.copies)])
        x = torch.from_numpy(inputs(case.m, case.k))
        self._x = self._tokens(x)
        y = self._multiply(self._x, self._weights[1][0]).float()
        if self._form == "int_mm":
            y *= x.abs().amax(1, keepdim=True) / 127.0 * WEIGHT_SCALE
        return relative_error(y.numpy(), x.numpy(), w.numpy())

    def run(self, case: Case, repeats: int) -> float:
        """Seconds of ``repeats`` calls."""
        assert self._weights is not None
        multiply, x, copies = self._multiply, self._x, self._weights[1]
        if case.copies == 1:
            w = copies[0]
            with torch.inference_mode():
                started = time.perf_counter()
                for _ in range(repeats):
                    multiply(x, w)
                return time.perf_counter() - started
        with torch.inference_mode():
            started = time.perf_counter()
            for repeat in range(repeats):
                multiply(x, copies[repeat % case.copies])
            return time.perf_counter() - started
