"""Every technique against plain float64 code; identities, exact counts, what depends on what."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from agentforge.merge.dare import dare, drop_mask
from agentforge.merge.franken import first_slots, franken
from agentforge.merge.importance import importance_merge, importances
from agentforge.merge.linear import linear, weighted_deltas
from agentforge.merge.slerp import slerp, slerp_all
from agentforge.merge.ties import ties, trim

SHAPES = [(1, 1), (1, 7), (5, 3), (33, 17), (64, 64)]
WEIGHTS = [(1 / 3, 1 / 3, 1 / 3), (0.7, 0.2, 0.1), (1.5, -0.4, 0.3), (0.0, 1.0, 0.0)]


def four(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """A base and three models around it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base, [base + 0.3 * torch.randn(shape, generator=generator) for _ in range(3)]


def f64(x: Tensor) -> NDArray[np.float64]:
    return x.double().numpy()


def close(found: Tensor, wanted: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(f64(found), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_linear_and_weighted_deltas(shape, weights):
    base, models = four(shape)
    x, b = [f64(m) for m in models], f64(base)
    close(
        linear(models, weights), sum(w * m for w, m in zip(weights, x, strict=True)) / sum(weights)
    )
    close(
        weighted_deltas(base, models, weights, 0.8),
        b + 0.8 * sum(w * (m - b) for w, m in zip(weights, x, strict=True)),
    )


def test_linear_refuses_what_has_no_mean():
    _, models = four((2, 2))
    for tensors, weights in (([], []), (models, [1.0, 1.0]), (models, [1.0, -2.0, 1.0])):
        with pytest.raises(ValueError, match="tensors with weights"):
            linear(tensors, weights)
    with pytest.raises(ValueError, match="3 tensors with 2 weights"):
        weighted_deltas(models[0], models, [1.0, 1.0])


@pytest.mark.parametrize("shape", [(1, 7), (5, 3), (33, 17)])
@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0, 1.2])
def test_slerp(shape, t):
    a, b = four(shape)[1][:2]
    b = b + 0.7 * torch.randn(shape, generator=torch.Generator().manual_seed(9))
    x, y = f64(a).ravel(), f64(b).ravel()
    angle = np.arccos(x @ y / np.sqrt(x @ x) / np.sqrt(y @ y))
    assert np.cos(angle) < 0.9995
    wanted = (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)
    close(slerp(a, b, t), wanted.reshape(shape))


def test_slerp_of_parallel_opposite_and_zero_tensors_is_a_line():
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for b in (1.7 * a, -a, torch.zeros_like(a), a + 1e-3):
        close(slerp(a, b, 0.3), f64(a) + 0.3 * (f64(b) - f64(a)))
    zero = torch.zeros(2, 2)
    assert torch.equal(slerp(zero, zero, 0.5), zero)


def test_slerp_keeps_the_length_of_orthogonal_tensors():
    a, b = torch.eye(2)[:1], torch.eye(2)[1:]
    for t in (0.1, 0.5, 0.9):
        assert float(slerp(a, b, t).norm()) == pytest.approx(1.0, abs=1e-6)
    assert float(linear([a, b], [0.5, 0.5]).norm()) == pytest.approx(0.5**0.5)


def test_slerp_all_goes_from_one_to_the_next():
    _, models = four((5, 4))
    wanted = slerp(slerp(models[0], models[1], 0.5), models[2], 1 / 3)
    assert torch.equal(slerp_all(models, (0.5, 1 / 3)), wanted)
    with pytest.raises(ValueError, match="3 tensors need 2 places"):
        slerp_all(models, (0.5,))


def _ties_by_loops(
    b: NDArray[np.float64], models: list[NDArray[np.float64]], weights, density: float, scale: float
) -> NDArray[np.float64]:
    """Entry by entry, as section 4 of the paper says it."""
    flat = []
    for model, weight in zip(models, weights, strict=True):
        delta = (model - b).ravel()
        count = max(1, int(density * delta.size))
        kept = sorted(range(delta.size), key=lambda i: (-abs(delta[i]), i))[:count]
        flat.append([weight * delta[i] if i in set(kept) else 0.0 for i in range(delta.size)])
    merged = np.zeros(b.size)
    for i in range(b.size):
        values = [row[i] for row in flat]
        sign = 1.0 if sum(values) >= 0 else -1.0
        agreeing = [j for j, v in enumerate(values) if v * sign > 0]
        if agreeing:
            merged[i] = sum(values[j] for j in agreeing) / sum(abs(weights[j]) for j in agreeing)
    return b + scale * merged.reshape(b.shape)


@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 1.0])
def test_ties(shape, weights, density):
    base, models = four(shape)
    wanted = _ties_by_loops(f64(base), [f64(m) for m in models], weights, density, 0.9)
    close(ties(base, models, weights, density, 0.9), wanted)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    st.floats(0.01, 1.0),
)
def test_trim_keeps_exactly_the_largest_and_of_equal_ones_the_first(values, density):
    delta = torch.tensor(values, dtype=torch.float32)
    count = max(1, int(density * len(values)))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    wanted = [v if i in order[:count] else 0 for i, v in enumerate(values)]
    assert trim(delta, density).tolist() == wanted
    assert delta.tolist() == values


def test_density_out_of_range_is_refused():
    base, models = four((3, 3))
    for density in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=f"density {density}"):
            ties(base, models, (1, 1, 1), density)
        with pytest.raises(ValueError, match=f"density {density}"):
            dare(base, models, (1, 1, 1), density, 0, "x")


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_the_right_share_and_rescales_it(density):
    base = torch.zeros(200, 200)
    delta = torch.rand(200, 200) + 1.0
    kept = dare(base, [delta], [1.0], density, 3, "x")
    share = float((kept != 0).double().mean())
    assert abs(share - density) < 5 * (density * (1 - density) / 40_000) ** 0.5
    np.testing.assert_allclose(
        f64(kept[kept != 0]), f64(delta[kept != 0]) / density, rtol=1e-6, atol=0
    )


def test_dares_mean_over_seeds_is_the_weighted_deltas():
    base, models = four((20, 20))
    weights, density, seeds = (0.5, 0.3, 0.4), 0.5, 400
    found = torch.stack([dare(base, models, weights, density, s, "x") for s in range(seeds)])
    wanted = weighted_deltas(base, models, weights)
    error = found.double().std(0) / seeds**0.5
    away = (found.double().mean(0) - wanted.double()).abs() / error.clamp(min=1e-9)
    # 400 entries of about one standard error: the largest is below 5 with probability .9998.
    assert float(away.max()) < 5.0
    assert float((found[0] - wanted).abs().max()) > 0.05


def test_dares_masks_depend_on_seed_name_and_place_and_on_nothing_else():
    shape = torch.Size((50, 50))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drop_mask(shape, 0.5, 7, "a.weight", 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(drop_mask(shape, 0.5, 7, "a.weight", 0), first)
    for other in ((8, "a.weight", 0), (7, "b.weight", 0), (7, "a.weight", 1)):
        assert 0.4 < float((drop_mask(shape, 0.5, *other) != first).double().mean()) < 0.6
    digest = hashlib.sha256(first.numpy().tobytes()).hexdigest()
    assert digest == MASK_SHA256, "masks must be the same on every machine and for ever"


MASK_SHA256 = "299e7c5dc59b41809b0ed26d81a1d8103dc1f1170a4f6b29a5a7b64cec2ca39c"


def test_franken_copies_whole_tensors():
    base, models = four((4, 4))
    found = franken([base, *models], 2)
    assert torch.equal(found, models[1])
    assert found.data_ptr() != models[1].data_ptr()
    with pytest.raises(IndexError, match="source 4 of 4"):
        franken([base, *models], 4)
    assert first_slots(5) == (1, 2, 3, 1, 2)


def test_dfs_weighs_by_inverse_variance_and_is_not_the_mean():
    generator = torch.Generator().manual_seed(0)
    sources = [s * torch.randn(40, 30, generator=generator) for s in (1.0, 2.0, 4.0)]
    variances = [float(f64(s).var()) for s in sources]
    inverse = np.array([1 / v for v in variances])
    np.testing.assert_allclose(importances(sources), inverse / inverse.sum(), rtol=1e-9)
    found = importance_merge(sources)
    close(found, sum(w * f64(s) for w, s in zip(inverse / inverse.sum(), sources, strict=True)))
    mean = torch.stack(sources).mean(0)
    assert float((found - mean).norm() / mean.norm()) > 0.3


def test_dfs_of_constant_tensors_is_the_mean():
    sources = [torch.full((3, 3), float(v)) for v in (1, 2, 6)]
    assert importances(sources) == [1 / 3] * 3
    close(importance_merge(sources), np.full((3, 3), 3.0))


@pytest.mark.parametrize("shape", SHAPES)
def test_three_copies_come_back(shape):
    model = four(shape)[0]
    copies = [model] * 3
    for weights in WEIGHTS:
        assert torch.equal(linear(copies, weights), model)
        assert torch.equal(weighted_deltas(model, copies, weights), model)
        assert torch.equal(ties(model, copies, weights, 0.3), model)
        assert torch.equal(dare(model, copies, weights, 0.3, 1, "x"), model)
    assert torch.equal(slerp_all(copies, (0.5, 1 / 3)), model)
    assert torch.equal(franken(copies, 1), model)
    assert torch.equal(importance_merge(copies), model)


@pytest.mark.parametrize("shape", SHAPES)
def test_three_copies_of_a_model_come_back_from_deltas_at_density_1(shape):
    base, models = four(shape)
    copies = [models[0]] * 3
    thirds = (1 / 3, 1 / 3, 1 / 3)
    close(ties(base, copies, thirds, 1.0), f64(models[0]))
    close(dare(base, copies, thirds, 1.0, 1, "x"), f64(models[0]))


def test_nothing_is_changed():
    base, models = four((6, 6))
    before = [t.clone() for t in (base, *models)]
    linear(models, (1, 1, 1))
    weighted_deltas(base, models, (1, 1, 1))
    slerp_all(models, (0.5, 0.3))
    dare(base, models, (1, 1, 1), 0.5, 0, "x")
    ties(base, models, (1, 1, 1), 0.5)
    importance_merge(models)
    assert all(torch.equal(a, b) for a, b in zip(before, (base, *models), strict=True))
