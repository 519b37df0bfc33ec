"""The device tests' bodies in the interpreter, tiny: they run, and reach every kernel there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from agentforge_kernels import dispatch
from agentforge_kernels.triton.backend import TritonBackend
from agentforge_kernels.triton.devices import Family
from agentforge_kernels.verify import interpreter
from agentforge_kernels.verify.all_cases import CASES

from tests.gpu.bodies import BODIES, Place, check_operation, used_operations

# numpy warns of NaN times anything; one body has it on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

FAMILIES: tuple[Family, ...] = ("turing", "ampere")
"""One without and one with matrix units: between them they use every kernel."""
KERNELS: dict[str, set[str]] = {
    "gemv": {"ternary_gemv"},
    "small_batch": {"ternary_small_batch"},
    "quantize": {"quantize_tokens"},
    "fused": {"fused_linear"},
    "block_sparse": {"block_sparse_gemv"},
    "block_sparse_gemm": {"block_sparse_gemm"},
    "activation_sparse": {"gather_nonzero", "multiply_columns", "add_chunks"},
    "int8_gemv": {"int8_gemv"},
    "int8_gemm": {"int8_gemm"},
}
DENSE_GEMM: dict[Family, set[str]] = {
    "turing": {"ternary_gemm_float32"},
    "ampere": {"ternary_gemm_int8"},
}
SPLIT = {"ternary_gemv_split", "finish_split"}


def place_of(family: Family) -> Place:
    @contextmanager
    def public() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatch, "backend_for", lambda _: TritonBackend(family))
            yield

    return Place(torch.device("cpu"), family, tiny=True, capture=lambda call: call, public=public)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the kernels that a test has launched."""
    names: set[str] = set()
    run = interpreter._run

    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        names.add(self.fn.__name__)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter, "_run", recording)
    return names


@pytest.mark.parametrize(
    ("family", "operation"),
    [(family, operation) for family in FAMILIES for operation in used_operations(family)],
)
def test_operation(launched: set[str], family: Family, operation: str) -> None:
    with interpreter.interpreted():
        check_operation(place_of(family), operation)
    # The table may hold split matvecs; sparse calls launch nothing but their own.
    expected = DENSE_GEMM[family] if operation == "gemm" else KERNELS[operation]
    assert expected <= launched <= expected | (SPLIT if operation == "gemv" else set())


@pytest.mark.parametrize("name", BODIES)
def test_body(launched: set[str], name: str) -> None:
    with interpreter.interpreted():
        BODIES[name](place_of("ampere"))
    assert launched
    if name == "split":
        assert launched == SPLIT


def test_bodies_reach_every_kernel() -> None:
    reached = set().union(*KERNELS.values(), *DENSE_GEMM.values(), SPLIT)
    assert reached == {case.kernel.fn.__name__ for case in CASES}
    assert set().union(*map(used_operations, FAMILIES)) == {*KERNELS, "gemm"}


def test_a_wrong_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bodies compare: a backend that is off by one fails them."""
    right = TritonBackend.ternary_linear

    def wrong(self: TritonBackend, *args: Any) -> torch.Tensor:
        output = right(self, *args)
        output[0, 0] += 1.0
        return output

    monkeypatch.setattr(TritonBackend, "ternary_linear", wrong)
    with interpreter.interpreted(), pytest.raises(AssertionError):
        check_operation(place_of("turing"), "gemv")
