"""Five trits a byte: exact both ways, and no byte that stands for nothing is read."""

from __future__ import annotations

import pytest
import torch
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.trits import decode_trits, encode_trits
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_decoding_inverts_encoding(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    trits = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
    before = trits.clone()
    data = encode_trits(trits)
    assert data.dtype == torch.uint8
    assert data.shape == (rows, -(-columns // 5))
    assert torch.equal(decode_trits(data, columns), trits)
    assert torch.equal(encode_trits(trits.T.contiguous().T), data)
    assert torch.equal(trits, before)


def test_a_byte_is_a_number_to_base_three_first_trit_lowest() -> None:
    for number in range(243):
        trits = [number // 3**place % 3 - 1 for place in range(5)]
        data = torch.tensor([[number]], dtype=torch.uint8)
        assert decode_trits(data, 5).tolist() == [trits]
        assert encode_trits(torch.tensor([trits], dtype=torch.int8)).item() == number


def test_rows_are_padded_with_weight_0() -> None:
    data = encode_trits(torch.tensor([[-1]], dtype=torch.int8))
    assert data.item() == 0 + 3 + 9 + 27 + 81


@pytest.mark.parametrize("byte", range(243, 256))
def test_bytes_beyond_242_are_refused(byte: int) -> None:
    data = encode_trits(torch.zeros(3, 12, dtype=torch.int8))
    data[1, 1] = byte
    with pytest.raises(KernelInputError, match=f"^data: a byte {byte}; allowed: bytes below 243"):
        decode_trits(data, 12)


@pytest.mark.parametrize(
    ("data", "columns"),
    [
        (torch.zeros(2, 2, dtype=torch.int8), 10),
        (torch.zeros(4, dtype=torch.uint8), 20),
        (torch.zeros(0, 2, dtype=torch.uint8), 10),
        (torch.zeros(2, 2, dtype=torch.uint8), 5),
        (torch.zeros(2, 2, dtype=torch.uint8), 11),
        (torch.zeros(2, 2, dtype=torch.uint8), 0),
        (torch.zeros(2, 2, dtype=torch.uint8), 9),  # the tenth trit is -1
    ],
)
def test_other_bytes_are_refused(data: torch.Tensor, columns: int) -> None:
    with pytest.raises(KernelInputError, match="^data: .*allowed: "):
        decode_trits(data, columns)


@pytest.mark.parametrize(
    "trits", [torch.zeros(3, dtype=torch.int8), torch.zeros(2, 2), torch.full((2, 2), 2).char()]
)
def test_only_trits_are_encoded(trits: torch.Tensor) -> None:
    with pytest.raises(KernelInputError, match="^trits: "):
        encode_trits(trits)
