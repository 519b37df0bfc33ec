"""Our merge techniques against mergekit's own functions.

``pip install mergekit==0.1.5`` (LGPL-3.0, 700 MB with what it needs: an environment of its own),
then ``pytest -m oracle tests/oracle``. Known differences, on purpose: mergekit's DARE matches the
L1 norm of a delta where the paper divides by the density, so of DARE its undivided mask is
compared; its SLERP takes each row of a matrix by itself, so it is given the flattened tensor.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from agentforge.merge.dare import dare
from agentforge.merge.franken import franken
from agentforge.merge.linear import linear, weighted_deltas
from agentforge.merge.slerp import slerp
from agentforge.merge.ties import ties, trim

try:
    import mergekit
    from mergekit.merge_methods.generalized_task_arithmetic import (
        ConsensusMethod,
        GeneralizedTaskArithmeticMerge,
    )
    from mergekit.merge_methods.linear import linear_merge
    from mergekit.merge_methods.passthrough import passthrough_merge_method
    from mergekit.merge_methods.slerp import slerp as their_slerp
    from mergekit.sparsify import SparsificationMethod, sparsify
except ModuleNotFoundError:  # deselected by default: no skip to be counted
    mergekit = None

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(mergekit is None, reason="mergekit is not installed"),
]

torch.set_num_threads(1)
SHAPES = [(1, 1), (7, 3), (64, 65), (200, 31)]
WEIGHTS = [(1 / 3, 1 / 3, 1 / 3), (0.7, 0.2, 0.4), (1.5, -0.4, 0.3)]


def four(shape: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(sum(shape))
    base = torch.randn(shape, generator=generator)
    return base, [base + 0.3 * torch.randn(shape, generator=generator) for _ in range(3)]


def their_arithmetic(
    base: Tensor,
    models: list[Tensor],
    weights: tuple[float, ...],
    *,
    density: float = 1.0,
    normalize: bool,
    consensus: bool,
    scale: float,
) -> Tensor:
    """`GeneralizedTaskArithmeticMerge.merge_group` of tensors that need no loader."""
    method = SimpleNamespace(
        sparsification_method=SparsificationMethod.magnitude if consensus else None,
        consensus_method=ConsensusMethod.sum if consensus else None,
    )
    entries = [SimpleNamespace(id=i, tensor=m) for i, m in enumerate(models)]
    group = SimpleNamespace(base=SimpleNamespace(tensor=base), non_base=entries)
    parameters = {
        "density": dict.fromkeys(range(len(models)), density),
        "weight": dict(enumerate(weights)),
        "rescale": False,
        "int8_mask": False,
        "normalize": normalize,
        "lambda": scale,
    }
    found: Tensor = GeneralizedTaskArithmeticMerge.merge_group(method, group, **parameters)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", WEIGHTS[:2])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_ties(shape, weights, density, scale):
    base, models = four(shape)
    wanted = their_arithmetic(
        base, models, weights, density=density, normalize=True, consensus=True, scale=scale
    )
    found = ties(base, models, weights, density, scale)
    assert float((found - wanted).abs().max()) <= 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_task_arithmetic(shape, weights, scale):
    base, models = four(shape)
    wanted = their_arithmetic(base, models, weights, normalize=False, consensus=False, scale=scale)
    found = weighted_deltas(base, models, weights, scale)
    assert float((found - wanted).abs().max()) <= 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_linear(shape, weights):
    _, models = four(shape)
    batch = SimpleNamespace(tensors=[m[None] for m in models])
    wanted = linear_merge.implementation(batch, torch.tensor([weights]), normalize=True)[0]
    assert float((linear(models, weights) - wanted).abs().max()) <= 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("apart", [0.001, 0.3, 3.0])
def test_slerp(shape, t, apart):
    base, models = four(shape)
    other = base + apart * (models[0] - base)
    flat = their_slerp(torch.tensor([t]), base.reshape(1, -1), other.reshape(1, -1))
    assert float((slerp(base, other, t) - flat.reshape(shape)).abs().max()) <= 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_passthrough(shape):
    base, models = four(shape)
    entry = SimpleNamespace(id=0, tensor=models[1])
    group = SimpleNamespace(entries=[entry])
    wanted = passthrough_merge_method.implementation(group, scale={0: None})
    assert torch.equal(franken([base, *models], 2), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9])
def test_trim_keeps_what_theirs_keeps(shape, density):
    base, models = four(shape)
    delta = models[0] - base
    wanted = sparsify(delta, density, SparsificationMethod.magnitude)
    assert torch.equal(trim(delta, density), wanted)


def test_dare_keeps_as_much_as_theirs_and_leaves_entries_as_they_are():
    base, models = four((200, 31))
    delta = models[0] - base
    torch.manual_seed(1)
    theirs = sparsify(delta, 0.4, SparsificationMethod.random)
    ours = (dare(base, [models[0]], [1.0], 0.4, 1, "x") - base) * 0.4
    for kept in (theirs, ours):
        share = float((kept.abs() > 1e-6).double().mean())
        assert abs(share - 0.4) < 5 * (0.24 / 6200) ** 0.5
        mask = kept.abs() > 1e-6
        assert float((kept - delta)[mask].abs().max()) <= 1e-6
