"""The oracle itself, against loops written out and against transformers."""

from __future__ import annotations

import os

import pytest
import torch
from agentforge_kernels import reference


def test_linear_equals_loops_over_python_integers() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-128, 128, (3, 7), generator=generator, dtype=torch.int8)
    trits = torch.randint(-1, 2, (5, 7), generator=generator, dtype=torch.int8)
    activation_scale = torch.rand(3, generator=generator)
    weight_scale = torch.rand(5, generator=generator)
    residual = torch.randn(3, 5, generator=generator)
    got = reference.linear(q, activation_scale, trits, weight_scale, residual)
    for token in range(3):
        for row in range(5):
            total = sum(int(q[token, k]) * int(trits[row, k]) for k in range(7))
            scale = activation_scale[token] * weight_scale[row]
            assert got[token, row] == torch.tensor(float(total)) * scale + residual[token, row]


@pytest.mark.parametrize("columns", [1, 17, 512])
def test_activations_quantise_as_transformers_does(columns: int) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    from transformers.integrations.bitnet import ActQuant

    x = torch.randn(9, columns, generator=torch.Generator().manual_seed(columns))
    x[4] = 0
    q, scale, total = reference.quantize_activations(x)
    inverse = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
    assert torch.equal(q / inverse, ActQuant.apply(x.clone()))
    assert torch.equal(scale, (1e-5 + torch.zeros(9)).maximum(x.abs().amax(-1)) / 127)
    assert torch.equal(total, q.int().sum(-1, dtype=torch.int32))


def test_norm_has_unit_mean_square_and_stays_in_range() -> None:
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(1)) * 50
    normed = reference.rms_norm(x, torch.ones(300), 0.0)
    assert torch.allclose(normed.square().mean(-1), torch.ones(4, dtype=torch.float64))
    q, scale, _ = reference.quantize_activations(x, torch.ones(300), 0.0)
    assert int(q.abs().max()) == 127
    assert (q * scale[:, None] - normed).abs().max() <= scale.max() / 2 + 1e-6
