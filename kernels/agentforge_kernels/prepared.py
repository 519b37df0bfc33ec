"""Weights made ready for a backend: once, before the first call, in memory order when wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentforge_kernels import dispatch, layouts
from agentforge_kernels.arena import place_consecutively
from agentforge_kernels.backend import Backend
from agentforge_kernels.format import PackedTernary
from agentforge_kernels.layouts import LaidOut, dense_layout
from agentforge_kernels.native_call import DenseCall, bind_dense


@dataclass(frozen=True, slots=True, eq=False)
class PreparedTernary:
    """A ternary matrix with its layout for one backend; made by :func:`prepare`, never saved.

    Attributes:
        packed: The stored form (compiled graphs and gradients read it).
        backend: Who computes.
        laid_out: The weight in that backend's order.
        call: The short way into the native extension, where there is one.
    """

    packed: PackedTernary
    backend: Backend
    laid_out: LaidOut
    call: DenseCall | None = field(default=None, repr=False)


def prepare(packed: PackedTernary) -> PreparedTernary:
    """Lay a matrix out for the backend of its device.

    An operation given a :class:`PackedTernary` does the same at its first call; here the time is
    spent, and an unavailable backend reported, when the caller chooses.

    Raises:
        KernelInputError: ``AGENTFORGE_KERNELS`` has a value that means nothing.
        BackendUnavailableError: The forced backend cannot run here.
    """
    backend = dispatch.backend_for(packed.codes.device)
    laid_out = dense_layout(packed.codes, packed.columns, backend)
    call = None
    if laid_out.layout == "panels":
        call = bind_dense(laid_out.tensor, packed.scale, packed.rows, packed.columns)
    return PreparedTernary(packed, backend, laid_out, call)


def prepare_in_order(matrices: Sequence[PackedTernary]) -> list[PreparedTernary]:
    """Lay matrices out one after the other in one block of memory, in the order of execution.

    A matrix of 512 x 512 is read before the processor's prefetcher has understood the pattern; what
    is prefetched beyond its end is then the next matrix (:mod:`agentforge_kernels.arena`). Matrices
    that are not on the CPU are prepared where they are.

    Raises:
        KernelInputError: As :func:`prepare`.
        BackendUnavailableError: As :func:`prepare`.
    """
    first = [prepare(packed) for packed in matrices]
    movable = [item for item in first if item.laid_out.layout == "panels"]
    placed = place_consecutively([item.laid_out.tensor for item in movable])
    for item, tensor in zip(movable, placed, strict=True):
        laid_out = LaidOut(tensor, item.laid_out.layout)
        layouts.keep(item.packed.codes, item.packed.columns, item.backend, laid_out)
    return [prepare(packed) for packed in matrices]
