"""The stored form: exact both ways, validated, and equal to transformers' quantisers."""

from __future__ import annotations

import os

import pytest
import torch
from agentforge_kernels import format as stored
from agentforge_kernels.errors import KernelInputError
from hypothesis import given, settings
from hypothesis import strategies as st


def random_trits(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 700), seed=st.integers(0, 2**31))
def test_unpack_inverts_pack_for_any_shape(rows: int, columns: int, seed: int) -> None:
    trits = random_trits(rows, columns, seed)
    packed = stored.pack(trits, 0.5)
    assert packed.codes.shape == (rows, stored.padded(columns) // 4)
    assert torch.equal(stored.unpack(packed), trits)
    assert not stored.unpack_codes(packed.codes)[:, columns:].any()


def test_byte_order_is_that_of_tq2_0() -> None:
    trits = torch.zeros(1, 128, dtype=torch.int8)
    trits[0, 5], trits[0, 32 + 5], trits[0, 64 + 5], trits[0, 96 + 5] = 1, -1, 0, 1
    codes = stored.pack(trits, 1.0).codes[0]
    assert codes[5] == 2 | (0 << 2) | (1 << 4) | (2 << 6)
    assert codes[4] == 0b01010101


def test_packing_reads_any_strides_and_changes_nothing() -> None:
    base = random_trits(300, 40, seed=1)
    before = base.clone()
    packed = stored.pack(base.T, torch.full((40,), 0.25))
    assert torch.equal(stored.unpack(packed), before.T)
    assert torch.equal(base, before)
    scale = torch.tensor([2.0])
    kept = stored.pack(base, scale)
    scale.zero_()
    assert kept.scale.item() == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (33, 65), (128, 512)])
def test_weights_quantise_as_transformers_does(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    from transformers.integrations.bitnet import WeightQuant

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    theirs = WeightQuant.apply(weight.clone())
    trits, scale = stored.quantize_weights(weight)
    assert torch.equal((trits * scale).to(dtype), theirs)


@pytest.mark.parametrize(
    ("trits", "scale", "named"),
    [
        (torch.zeros(2, 2, dtype=torch.int32), 1.0, "trits"),
        (torch.zeros(4, dtype=torch.int8), 1.0, "trits"),
        (torch.zeros(0, 4, dtype=torch.int8), 1.0, "trits"),
        (torch.full((2, 2), 2, dtype=torch.int8), 1.0, "trits"),
        (torch.zeros(2, 2, dtype=torch.int8), float("nan"), "scale"),
        (torch.zeros(2, 2, dtype=torch.int8), torch.ones(3), "scale"),
        (torch.zeros(2, 2, dtype=torch.int8), torch.ones(2, dtype=torch.float64), "scale"),
    ],
)
def test_bad_trits_and_scales_are_named(
    trits: torch.Tensor, scale: float | torch.Tensor, named: str
) -> None:
    with pytest.raises(KernelInputError, match=f"^{named}: .*allowed: "):
        stored.pack(trits, scale)


@pytest.mark.parametrize("fault", ["code 3", "padding", "bytes", "dtype", "strides", "columns"])
def test_bad_codes_are_refused(fault: str) -> None:
    good = stored.pack(random_trits(3, 100, seed=2), 1.0)
    codes, columns = good.codes.clone(), 100
    if fault == "code 3":
        codes[1, 1] |= 3
    elif fault == "padding":
        columns = 40
    elif fault == "bytes":
        columns = 129
    elif fault == "dtype":
        codes = codes.to(torch.int8)
    elif fault == "strides":
        codes = codes.repeat(1, 2)[:, ::2]
    else:
        columns = 0
    with pytest.raises(KernelInputError, match="^codes: "):
        stored.PackedTernary(codes, good.scale, columns)


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int8)])
def test_only_finite_floating_matrices_are_quantised(weight: torch.Tensor) -> None:
    with pytest.raises(KernelInputError, match="^weight: "):
        stored.quantize_weights(weight)
    with pytest.raises(KernelInputError, match="NaN or infinity"):
        stored.quantize_weights(torch.tensor([[1.0, float("inf")]]))
