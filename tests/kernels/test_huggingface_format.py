"""Hugging Face BitNet weights: transformers' bytes, and what its layers take the scale for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agentforge_kernels import reference
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import pack, unpack
from agentforge_kernels.huggingface import (
    ScaleConvention,
    from_huggingface,
    pack_rows,
    scale_convention,
    to_huggingface,
    unpack_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BitNetQuantConfig
from transformers.integrations import bitnet

CLASSES: list[tuple[str, ScaleConvention]] = [
    ("bitlinear", "divisor"),
    ("autobitlinear", "multiplier"),
]


def random_trits(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 90), seed=st.integers(0, 2**31))
def test_bytes_are_those_of_transformers(rows: int, columns: int, seed: int) -> None:
    trits = random_trits(rows, columns, seed)
    before = trits.clone()
    weight = pack_rows(trits)
    assert torch.equal(trits, before)
    assert torch.equal(weight, bitnet.pack_weights(trits.clone()))
    kept = weight.clone()
    assert torch.equal(unpack_rows(weight, rows), trits)
    assert torch.equal(weight, kept)
    assert torch.equal(unpack_rows(weight, rows), bitnet.unpack_weights(weight, torch.int8)[:rows])


@pytest.mark.parametrize(("linear_class", "convention"), CLASSES)
@pytest.mark.parametrize("rows", [4, 64])
def test_the_layers_of_transformers_compute_with_the_exported_scale(
    linear_class: str, convention: ScaleConvention, rows: int
) -> None:
    """The scale's meaning is taken from what the layers do, not from what we say of them."""
    trits, scale = random_trits(rows, 48, seed=rows), torch.tensor([0.037])
    packed = pack(trits, scale)
    used = scale_convention(linear_class, "offline")
    assert used == convention
    weight, weight_scale = to_huggingface(packed, used, torch.float32)
    model = torch.nn.Sequential(torch.nn.Linear(48, rows, bias=False))
    config = BitNetQuantConfig(linear_class=linear_class, quantization_mode="offline")
    layer: Any = bitnet.replace_with_bitnet_linear(model, [], config)[0]
    if linear_class == "autobitlinear":
        layer.to_empty(device="cpu")
        layer.requires_grad_(False)
        layer.weight.copy_(bitnet.unpack_weights(weight, torch.float32))
    else:
        layer.weight = weight
    layer.weight_scale = weight_scale
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    q, activation_scale, _ = reference.quantize_activations(x)
    wanted = reference.linear(q, activation_scale, trits, scale)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-6)

    back = from_huggingface(weight, weight_scale, rows, used)
    assert torch.equal(back.codes, packed.codes)
    torch.testing.assert_close(back.scale, scale, rtol=1e-7, atol=0.0)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 20),
    value=st.floats(2**-14, 2**14),
    convention=st.sampled_from(["multiplier", "divisor"]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    per_row=st.booleans(),
)
def test_a_stored_scale_survives_reading_and_writing(
    rows: int, value: float, convention: ScaleConvention, dtype: torch.dtype, per_row: bool
) -> None:
    trits = random_trits(rows, 9, rows)
    stored = torch.tensor([value]).to(dtype)
    packed = from_huggingface(pack_rows(trits), stored, rows, convention)
    assert torch.equal(unpack(packed), trits)
    exact = stored.double() if convention == "multiplier" else 1.0 / stored.double()
    assert torch.equal(packed.scale, exact.float())
    if per_row:
        packed = pack(trits, packed.scale.expand(rows))
    weight, again = to_huggingface(packed, convention, dtype)
    assert torch.equal(weight, pack_rows(trits))
    assert again.dtype == dtype
    assert again.shape == (1,)
    # A divisor is rounded twice; in float32 itself that may move the last bit.
    if convention == "multiplier" or dtype != torch.float32:
        assert torch.equal(again, stored)
    else:
        torch.testing.assert_close(again, stored, rtol=2**-23, atol=0.0)


def test_a_scale_without_a_dimension_is_one_value() -> None:
    packed = from_huggingface(pack_rows(random_trits(4, 4, 0)), torch.tensor(0.5), 4, "divisor")
    assert packed.scale.tolist() == [2.0]


WEIGHT = pack_rows(random_trits(6, 5, seed=4))
ONE = torch.ones(1, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("named", "weight", "scale", "rows", "convention"),
    [
        ("weight", WEIGHT.to(torch.int8), ONE, 6, "divisor"),
        ("weight", WEIGHT[0], ONE, 6, "divisor"),
        ("weight", WEIGHT[:, :0], ONE, 6, "divisor"),
        ("weight", WEIGHT | 3, ONE, 6, "divisor"),
        ("rows", WEIGHT, ONE, 4, "divisor"),
        ("rows", WEIGHT, ONE, 9, "divisor"),
        ("rows", WEIGHT[:1], ONE, 0, "divisor"),
        ("weight_scale", WEIGHT, torch.ones(2), 6, "divisor"),
        ("weight_scale", WEIGHT, torch.ones(1, dtype=torch.int32), 6, "divisor"),
        ("weight_scale", WEIGHT, torch.zeros(1), 6, "divisor"),
        ("weight_scale", WEIGHT, torch.tensor([1e-40]), 6, "divisor"),
        ("weight_scale", WEIGHT, torch.tensor([float("nan")]), 6, "multiplier"),
        ("weight_scale", WEIGHT, torch.tensor([1e300]).double(), 6, "multiplier"),
        ("convention", WEIGHT, ONE, 6, "reciprocal"),
    ],
)
def test_bad_checkpoints_are_named(
    named: str, weight: torch.Tensor, scale: torch.Tensor, rows: int, convention: Any
) -> None:
    with pytest.raises(KernelInputError, match=f"^{named}: .*allowed: "):
        from_huggingface(weight, scale, rows, convention)


def test_unused_fields_of_the_last_rows_mean_nothing() -> None:
    weight = WEIGHT.clone()
    assert weight.shape[0] == 2  # rows 6 and 7 are fields 3 of both stored rows
    weight |= 0b11000000
    assert torch.equal(unpack_rows(weight, 6), unpack_rows(WEIGHT, 6))
    with pytest.raises(KernelInputError, match="^weight: a code 3"):
        unpack_rows(weight, 8)


@pytest.mark.parametrize(
    ("named", "scale", "convention", "dtype"),
    [
        ("packed.scale", torch.tensor([1.0, 2.0]), "divisor", torch.bfloat16),
        ("packed.scale", torch.zeros(1), "divisor", torch.bfloat16),
        ("packed.scale", torch.tensor([1e5]), "multiplier", torch.float16),
        ("packed.scale", torch.tensor([1e-9]), "multiplier", torch.float16),
        ("dtype", torch.ones(1), "multiplier", torch.int8),
        ("convention", torch.ones(1), "", torch.bfloat16),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named(
    named: str, scale: torch.Tensor, convention: Any, dtype: torch.dtype
) -> None:
    with pytest.raises(KernelInputError, match=f"^{named}: .*allowed: "):
        to_huggingface(pack(random_trits(2, 5, 0), scale), convention, dtype)


def test_the_configuration_names_the_convention() -> None:
    default = BitNetQuantConfig()
    assert scale_convention() == scale_convention(default.linear_class, default.quantization_mode)
    for linear_class, mode in (("linear", "offline"), ("bitlinear", "")):
        with pytest.raises(KernelInputError, match="allowed: "):
            scale_convention(linear_class, mode)
    with pytest.raises(KernelInputError, match=r"online.*quantize_weights"):
        scale_convention("autobitlinear", "online")
