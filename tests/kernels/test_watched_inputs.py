"""Inputs whose meaning is not in their memory alone: negated views and forward-mode tangents."""

from __future__ import annotations

import pytest
import torch
from agentforge_kernels import KernelInputError, TernaryLinear, ops, pack
from torch.autograd import forward_ad


@pytest.fixture
def layer() -> TernaryLinear:
    """Four rows of +1 over eight columns."""
    return TernaryLinear.from_packed(pack(torch.ones(4, 8, dtype=torch.int8), 1.0))


def test_a_negated_view_counts_as_what_it_shows(layer: TernaryLinear) -> None:
    x = torch._neg_view(torch.ones(2, 8))
    assert x.is_neg()
    assert torch.allclose(layer(x), torch.full((2, 4), -8.0))
    assert torch.allclose(ops.ternary_linear(x, layer.packed), torch.full((2, 4), -8.0))
    imaginary = torch.full((1, 8), 1 + 2j).conj().imag
    assert torch.allclose(layer(imaginary), torch.full((1, 4), -16.0))


def test_a_negated_residual_is_subtracted(layer: TernaryLinear) -> None:
    residual = torch._neg_view(torch.full((1, 4), 3.0))
    assert torch.allclose(layer(torch.ones(1, 8), residual), torch.full((1, 4), 5.0))


def test_a_forward_tangent_is_refused_and_not_dropped(layer: TernaryLinear) -> None:
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.ones(1, 8), torch.ones(1, 8))
        with pytest.raises((RuntimeError, NotImplementedError, KernelInputError)):
            layer(x)
