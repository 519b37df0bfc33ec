"""What the tests of the native backend share: instruction-set levels, weights, odd addresses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from agentforge_kernels import native, reference
from agentforge_kernels.backend import Activations
from agentforge_kernels.format import padded
from torch import Tensor

if native.extension is None:
    pytest.skip(f"{native.unavailable_reason()}", allow_module_level=True)

extension = native.extension
LEVELS = [level for level in range(5) if extension.isa_reported(level)]
LEVEL_NAMES = [extension.isa_name(level) for level in LEVELS]


@contextmanager
def level_in_use(level: int) -> Iterator[None]:
    """Run a block at one level of instruction set."""
    assert extension.force_isa(level)
    try:
        yield
    finally:
        extension.force_isa(-1)


def random_trits(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Trits int8 ``[rows, columns]``."""
    generator = torch.Generator().manual_seed(seed + rows * 131071 + columns)
    return torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)


def activations_of(q: Tensor, scale: Tensor | None = None) -> Activations:
    """Activations around given int8 ``[tokens, columns]``."""
    tokens, columns = q.shape
    stored = torch.zeros(tokens, padded(columns), dtype=torch.int8)
    stored[:, :columns] = q
    if scale is None:
        scale = torch.linspace(0.01, 0.02, tokens)
    return Activations(stored, scale, q.sum(dim=1, dtype=torch.int32))


def unaligned(tensor: Tensor) -> Tensor:
    """The same contents at an address one element beyond a 64-byte boundary."""
    memory = torch.zeros(tensor.numel() + 128, dtype=tensor.dtype)
    start = (-memory.data_ptr() % 64) // tensor.element_size() + 1
    moved = memory[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)
    assert moved.data_ptr() % 64 == tensor.element_size() % 64
    return moved


def expected(
    activations: Activations, trits: Tensor, scale: Tensor, residual: Tensor | None = None
) -> Tensor:
    """The reference's output for these activations."""
    q = activations.q[:, : trits.shape[1]]
    return reference.linear(q, activations.scale, trits, scale, residual)
