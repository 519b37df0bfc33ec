"""Techniques work through large tensors in pieces: the results are those of the whole at once.

The plain code here is the formulas in torch over whole tensors; results are equal bit for bit, so
a recipe's child does not depend on how it was computed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentforge.merge.dare import dare, drop_mask
from agentforge.merge.linear import linear, weighted_deltas
from agentforge.merge.pieces import PIECE, pieces
from agentforge.merge.slerp import slerp
from agentforge.merge.ties import kth_smallest, ties, trim

SHAPES = [(1, 1), (3, 7), (257, 255), (2, PIECE), (3, PIECE - 1)]
"""Below a piece, exactly two, and three that end within one."""
WEIGHTS = (0.6, -0.3, 0.5)


def models_around(shape: tuple[int, ...], whole: bool) -> tuple[Tensor, list[Tensor]]:
    """A base and three models; `whole`: of small integers, so that most magnitudes are equal."""
    generator = torch.Generator().manual_seed(sum(shape))
    if whole:
        base, *models = (torch.randint(-2, 3, shape, generator=generator).float() for _ in range(4))
        return base, models
    base = torch.randn(shape, generator=generator)
    return base, [base + 0.3 * torch.randn(shape, generator=generator) for _ in range(3)]


def plain_trim(delta: Tensor, density: float) -> Tensor:
    count = max(1, int(density * delta.numel()))
    order = torch.argsort(delta.abs().flatten(), descending=True, stable=True)[:count]
    kept = torch.zeros(delta.numel(), dtype=torch.bool)
    kept[order] = True
    return delta * kept.view(delta.shape)


def plain_ties(base: Tensor, models: list[Tensor], density: float, scale: float) -> Tensor:
    deltas = torch.stack(
        [plain_trim(x - base, density) * w for x, w in zip(models, WEIGHTS, strict=True)]
    )
    elected = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    agrees = deltas.sign() == elected
    share = (agrees * torch.tensor(WEIGHTS).abs().view(3, 1, 1)).sum(0)
    mean = (deltas * agrees).sum(0) / torch.where(share > 0, share, torch.ones_like(share))
    return base + scale * mean


def plain_slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y = a.double().flatten(), b.double().flatten()
    cosine = float(x @ y) / (float(x.norm()) * float(y.norm()))
    angle = math.acos(cosine)
    return (
        math.sin((1 - t) * angle) / math.sin(angle) * a + math.sin(t * angle) / math.sin(angle) * b
    )


def test_pieces_are_views_in_order():
    x, y = torch.arange(2 * PIECE + 5), torch.zeros(2 * PIECE + 5)
    sizes = []
    for part, out in pieces(x, y):
        out.copy_(part)
        sizes.append(part.numel())
    assert sizes == [PIECE, PIECE, 5]
    assert torch.equal(x.float(), y)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("density", [0.05, 0.6, 1.0])
def test_ties(shape, whole, density):
    base, models = models_around(shape, whole)
    delta = models[0] - base
    trimmed = trim(delta, density)
    assert torch.equal(trimmed, plain_trim(delta, density))
    found = ties(base, models, WEIGHTS, density, 0.8)
    assert torch.equal(found, plain_ties(base, models, density, 0.8))


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_and_weighted_deltas(shape):
    base, models = models_around(shape, whole=False)
    total = sum(WEIGHTS)
    mean, moved = models[0].clone(), torch.zeros_like(base)
    for model, weight in zip(models[1:], WEIGHTS[1:], strict=True):
        mean.add_(model - models[0], alpha=weight / total)
    for model, weight in zip(models, WEIGHTS, strict=True):
        moved.add_(model - base, alpha=weight)
    assert torch.equal(linear(models, WEIGHTS), mean)
    assert torch.equal(weighted_deltas(base, models, WEIGHTS, 0.8), base + 0.8 * moved)


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(shape, t):
    _, (a, b, _) = models_around(shape, whole=False)
    b = b.flip(0)
    assert torch.equal(slerp(a, b, t), plain_slerp(a, b, t))
    near = a + 1e-4 * b
    assert torch.equal(slerp(a, near, t), a + t * (near - a))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_dare(shape, density):
    """Against float64 with the masks of whole tensors."""
    base, models = models_around(shape, whole=False)
    found = dare(base, models, WEIGHTS, density, 5, "a.weight", 0.8)
    wanted = base.double().numpy().copy()
    for place, (model, weight) in enumerate(zip(models, WEIGHTS, strict=True)):
        mask = drop_mask(base.shape, density, 5, "a.weight", place).numpy()
        delta = (model - base).double().numpy()
        wanted += 0.8 * weight * np.where(mask, delta / density, 0.0)
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("density", [0.05, 0.5, 0.95])
def test_masks_keep_their_share(density):
    mask = drop_mask(torch.Size((1001, 999)), density, 1, "a.weight", 2)
    error = math.sqrt(density * (1 - density) / mask.numel())
    assert abs(float(mask.double().mean()) - density) <= 5 * error + 2**-32
    for along, other in ((0, 1001), (1, 999)):
        spread = float(mask.double().mean(along).std())
        assert spread == pytest.approx(math.sqrt(density * (1 - density) / other), rel=0.15)


def test_masks_at_the_ends_of_density():
    shape = torch.Size((1001, 999))
    assert int(drop_mask(shape, 1e-12, 1, "a.weight", 0).sum()) == 0
    assert int(drop_mask(shape, 1 - 1e-12, 1, "a.weight", 0).sum()) == shape.numel()


def test_masks_of_neighbours_are_independent():
    """One seed to the next, one model to the next, one entry to the next: no correlation."""
    shape = torch.Size((100_001,))
    masks = [
        drop_mask(shape, 0.5, seed, "a.weight", place).double()
        for seed, place in [(1, 0), (2, 0), (1, 1)]
    ]
    masks.append(masks[0].roll(1))
    correlations = np.corrcoef(torch.stack(masks).numpy())[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(100_001)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 1e-40, 3e38]), min_size=1, max_size=200),
    st.data(),
)
def test_kth_smallest_is_what_a_sort_gives(values, data):
    sizes = np.array(values, dtype=np.float32)
    index = data.draw(st.integers(0, len(values) - 1))
    assert kth_smallest(sizes, index) == np.sort(sizes)[index]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_stay_what_they_are(dtype):
    base, models = models_around((33, 17), whole=True)
    base, models = base.to(dtype), [m.to(dtype) for m in models]
    for found in (
        linear(models, WEIGHTS),
        weighted_deltas(base, models, WEIGHTS),
        slerp(models[0], models[1], 0.5),
        dare(base, models, WEIGHTS, 0.5, 1, "x"),
        ties(base, models, WEIGHTS, 0.3),
    ):
        assert found.dtype == dtype
        assert found.shape == base.shape
    assert torch.equal(trim(models[0], 0.3), plain_trim(models[0], 0.3))


def test_tensors_that_lie_otherwise_in_memory():
    base, models = models_around((40, 30), whole=False)
    turned = [x.T for x in models]
    assert torch.equal(linear(turned, WEIGHTS), linear([x.contiguous() for x in turned], WEIGHTS))
    assert torch.equal(
        ties(base.T, turned, WEIGHTS, 0.3),
        ties(base.T.contiguous(), [x.contiguous() for x in turned], WEIGHTS, 0.3),
    )
    assert torch.equal(slerp(turned[0], turned[1], 0.4), slerp(models[0], models[1], 0.4).T)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(10, 10), (3, PIECE - 1)])
def test_no_technique_hides_a_value_that_is_not_finite(bad, shape):
    base, models = models_around(shape, whole=False)
    models[1][-1, -1] = bad
    for found in (
        linear(models, WEIGHTS),
        weighted_deltas(base, models, WEIGHTS),
        slerp(models[0], models[1], 0.5),
        dare(base, models, WEIGHTS, 0.5, 1, "x"),
        ties(base, models, WEIGHTS, 0.2),
        ties(base, models, WEIGHTS, 1.0),
    ):
        assert not bool(torch.isfinite(found[-1, -1]))


def test_dares_mean_over_seeds_of_three_copies_is_the_model():
    base, models = models_around((20, 20), whole=False)
    copies, thirds = [models[0]] * 3, (1 / 3,) * 3
    found = torch.stack([dare(base, copies, thirds, 0.7, s, "x") for s in range(400)]).double()
    error = found.std(0) / math.sqrt(400)
    assert float(((found.mean(0) - models[0]).abs() / error.clamp(min=1e-9)).max()) < 5.0
