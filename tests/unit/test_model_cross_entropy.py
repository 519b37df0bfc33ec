"""Cross-entropy through a vocabulary in chunks: equal to torch's in value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from agentforge.model.cross_entropy import weighted_cross_entropy

torch.set_num_threads(1)


def tensors(n: int, vocab: int, rank: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, table, labels, weights."""
    g = torch.Generator().manual_seed(n * vocab)
    features = (3 * torch.randn(n, rank, generator=g)).requires_grad_()
    table = torch.randn(vocab, rank, generator=g).requires_grad_()
    labels = torch.randint(0, vocab, (n,), generator=g)
    weights = torch.rand(n, generator=g).requires_grad_()
    return features, table, labels, weights


@pytest.mark.parametrize(("n", "vocab"), [(1, 2), (29, 7), (13, 1000)])
@pytest.mark.parametrize("chunk", [0, 1, 6, 13, 100])
def test_value_and_gradients_equal_torchs(n: int, vocab: int, chunk: int) -> None:
    features, table, labels, weights = tensors(n, vocab)
    total, each = weighted_cross_entropy(features, table, labels, weights, chunk)
    expected = F.cross_entropy(features @ table.T, labels, reduction="none")
    torch.testing.assert_close(each, expected.detach(), rtol=1e-5, atol=1e-5)
    assert not each.requires_grad
    plain = (weights * expected).sum()
    torch.testing.assert_close(total, plain, rtol=1e-5, atol=1e-5)
    leaves = (features, table, weights)
    for a, b in zip(
        torch.autograd.grad(-2.5 * total, leaves),
        torch.autograd.grad(-2.5 * plain, leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


class LargestResult(TorchDispatchMode):
    """Notes the largest number of rows of any tensor as wide as the vocabulary."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.rows = vocab, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == self.vocab:
            self.rows = max(self.rows, result.shape[0])
        return result


@pytest.mark.parametrize("chunk", [1, 6])
def test_no_more_logits_than_a_chunk_exist_at_once(chunk: int) -> None:
    features, table, labels, weights = tensors(29, 7)
    with LargestResult(7) as largest:
        total, _ = weighted_cross_entropy(features, table, labels, weights, chunk)
        total.backward()
    # The transposed table is as wide: rank 5.
    assert largest.rows == max(chunk, 5)
    with LargestResult(7) as largest:
        weighted_cross_entropy(features, table, labels, weights, 0)
    assert largest.rows == 29


def test_extreme_logits_stay_finite() -> None:
    features = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True)
    table = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    labels, weights = torch.tensor([1, 1, 2]), torch.ones(3, requires_grad=True)
    total, each = weighted_cross_entropy(features, table, labels, weights, 2)
    assert each.tolist() == pytest.approx([2e4, 0.0, 1.0986123])
    total.backward()
    for leaf in (features, table, weights):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())


def test_no_positions_give_zero() -> None:
    features, table, _, _ = tensors(4, 5)
    none = torch.zeros(0, dtype=torch.int64)
    total, each = weighted_cross_entropy(features[:0], table, none, torch.zeros(0), 0)
    assert float(total.detach()) == 0.0
    assert each.shape == (0,)
    total.backward()
    assert table.grad is not None
    assert float(table.grad.abs().max()) == 0.0


def test_without_gradients_none_are_formed() -> None:
    features, table, labels, weights = tensors(9, 11)
    with torch.no_grad():
        total, _ = weighted_cross_entropy(features, table, labels, weights, 4)
    assert not total.requires_grad
    expected = (weights * F.cross_entropy(features @ table.T, labels, reduction="none")).sum()
    torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=1e-5)


def test_bf16_logits_give_single_precision_results() -> None:
    features, table, labels, weights = tensors(64, 50)
    exact = torch.autograd.grad(
        weighted_cross_entropy(features, table, labels, weights, 0)[0], (features, table)
    )
    with torch.autocast("cpu", torch.bfloat16):
        low = features.to(torch.bfloat16)
        total, each = weighted_cross_entropy(low, table, labels, weights, 10)
    found = torch.autograd.grad(total, (features, table))
    assert each.dtype == torch.float32
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32
        assert float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0)) > 0.99
