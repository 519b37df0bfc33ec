"""TQ2_0 blocks: the bytes of the ``gguf`` package, and back."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import PackedTernary, pack, unpack
from agentforge_kernels.gguf import BLOCK_BYTES, from_tq2_0, to_tq2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor


def theirs(packed: PackedTernary) -> Tensor:
    """What the ``gguf`` package makes of the float32 weights, columns padded with zeros."""
    weight = unpack(packed) * packed.scale[:, None]
    width = math.ceil(packed.columns / 256) * 256
    padded = np.zeros((packed.rows, width), dtype=np.float32)
    padded[:, : packed.columns] = weight.numpy()
    return torch.from_numpy(gguf.quants.quantize(padded, gguf.GGMLQuantizationType.TQ2_0))


def matrix(rows: int, columns: int, seed: int, per_row: bool, zero_blocks: bool) -> PackedTernary:
    generator = torch.Generator().manual_seed(seed)
    trits = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
    if zero_blocks:
        kept = torch.rand(rows, -(-columns // 256), generator=generator) > 0.5
        trits *= kept.repeat_interleave(256, dim=1)[:, :columns]
    # Magnitudes 2^-10 to 2^3, some of them negative.
    scale = torch.rand(rows if per_row else 1, generator=generator) * 13 - 10
    return pack(trits, torch.exp2(scale) * torch.where(scale.frac() < -0.9, -1, 1))


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 1100),
    seed=st.integers(0, 2**31),
    per_row=st.booleans(),
    zero_blocks=st.booleans(),
)
def test_bytes_are_those_of_the_gguf_package(
    rows: int, columns: int, seed: int, per_row: bool, zero_blocks: bool
) -> None:
    packed = matrix(rows, columns, seed, per_row, zero_blocks)
    before = packed.codes.clone(), packed.scale.clone()
    data = to_tq2_0(packed)
    assert data.shape == (rows, -(-columns // 256) * BLOCK_BYTES)
    assert torch.equal(data, theirs(packed))
    assert torch.equal(packed.codes, before[0])
    assert torch.equal(packed.scale, before[1])

    kept = data.clone()
    back = from_tq2_0(data, columns)
    assert torch.equal(data, kept)
    weight = unpack(packed) * packed.scale[:, None].half().float()
    assert torch.equal(unpack(back) * back.scale[:, None], weight)
    assert torch.equal(to_tq2_0(back), data)
    if not per_row:
        assert back.scale.shape == (1,)


def test_a_positive_scale_comes_back_with_the_same_trits() -> None:
    packed = matrix(9, 300, 1, per_row=False, zero_blocks=False)
    packed = PackedTernary(packed.codes, torch.tensor([0.25]), 300)
    back = from_tq2_0(to_tq2_0(packed), 300)
    assert torch.equal(back.codes, packed.codes)
    assert torch.equal(back.scale, packed.scale)


def test_what_the_gguf_package_reads_is_the_weight() -> None:
    packed = matrix(5, 600, 2, per_row=True, zero_blocks=True)
    read = gguf.quants.dequantize(to_tq2_0(packed).numpy(), gguf.GGMLQuantizationType.TQ2_0)
    weight = (unpack(packed) * packed.scale.half().float()[:, None]).numpy()
    assert read.shape == (5, 768)
    np.testing.assert_array_equal(read[:, :600], weight)
    assert not read[:, 600:].any()


def test_a_zero_scale_or_matrix_is_a_matrix_of_zeros() -> None:
    zero_scale = pack(torch.ones(3, 10, dtype=torch.int8), 0.0)
    assert torch.equal(to_tq2_0(zero_scale), theirs(zero_scale))
    back = from_tq2_0(to_tq2_0(pack(torch.zeros(3, 10, dtype=torch.int8), 2.0)), 10)
    assert not unpack(back).any()
    assert back.scale.tolist() == [0.0]


@pytest.mark.parametrize("scale", [65_520.0, -1e30, 1e-8, -2.9e-8])
def test_a_scale_float16_cannot_hold_is_refused(scale: float) -> None:
    trits = torch.ones(2, 4, dtype=torch.int8)
    with pytest.raises(KernelInputError, match=r"^packed.scale: .*float16"):
        to_tq2_0(pack(trits, torch.tensor([1.0, scale])))


def test_blocks_with_scales_of_their_own_are_not_representable() -> None:
    weight = np.ones((2, 512), dtype=np.float32)
    weight[1, 256:] = 2.0
    data = torch.from_numpy(gguf.quants.quantize(weight, gguf.GGMLQuantizationType.TQ2_0))
    with pytest.raises(KernelInputError, match="scales 1.0 to 2.0 in row 1; .* cannot be repr"):
        from_tq2_0(data, 512)
    weight[1, 256:] = 0.0  # a block of zeros has scale 0 and fits any other
    data = torch.from_numpy(gguf.quants.quantize(weight, gguf.GGMLQuantizationType.TQ2_0))
    assert from_tq2_0(data, 512).scale.tolist() == [1.0]


GOOD = to_tq2_0(matrix(4, 300, 3, per_row=False, zero_blocks=False))


@pytest.mark.parametrize("fault", ["dtype", "shape", "empty", "columns", "code 3", "pad", "nan"])
def test_other_bytes_are_refused(fault: str) -> None:
    data, columns = GOOD.clone(), 300
    if fault == "dtype":
        data = data.to(torch.int8)
    elif fault == "shape":
        data = data.reshape(-1)
    elif fault == "empty":
        data = data[:0]
    elif fault == "columns":
        columns = 0
    elif fault == "code 3":
        data[2, 10] |= 3
    elif fault == "pad":
        data[2, BLOCK_BYTES + 50] = 0
    else:
        data[1, 64:66] = 0xFF
    with pytest.raises(KernelInputError, match="^data: .*allowed: "):
        from_tq2_0(data, columns)
    for wrong in (0, 256, 513, -3):
        with pytest.raises(KernelInputError, match="^data: "):
            from_tq2_0(GOOD, wrong)
