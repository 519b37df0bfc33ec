"""Pruning by tiles: which tiles go, edges, and what the block-sparse form then leaves out."""

from __future__ import annotations

import pytest
import torch
from agentforge_kernels import (
    KernelInputError,
    kept_tiles,
    pack,
    quantize_weights,
    to_block_sparse,
    weights_of_tiles,
    zero_tile_share,
)
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 200),
    columns=st.integers(1, 100),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 2**16),
)
def test_the_smallest_tiles_are_pruned(rows: int, columns: int, share: float, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    kept = kept_tiles(weight, share)
    assert int((~kept).sum()) == int(share * kept.numel() + 1e-9)
    means = torch.tensor(
        [
            [
                float(weight[r : r + 64, c : c + 16].abs().mean())
                for c in range(0, columns, 16)
            ]
            for r in range(0, rows, 64)
        ]
    )  # fmt: skip
    if (~kept).any():
        assert float(means[~kept].max()) <= float(means[kept].min()) + 1e-6


def test_pruned_tiles_are_not_stored() -> None:
    weight = torch.randn(200, 136, generator=torch.Generator().manual_seed(0))
    kept = kept_tiles(weight, 0.5)
    trits, scale = quantize_weights(weight, kept=weights_of_tiles(kept, 200, 136))
    packed = pack(trits, scale)
    assert to_block_sparse(packed).count == int(kept.sum())
    assert zero_tile_share(packed) == pytest.approx(float((~kept).double().mean()))


def test_equal_tiles_go_from_the_end() -> None:
    assert kept_tiles(torch.ones(64, 64), 0.5).tolist() == [[True, True, False, False]]


def test_bad_input_is_refused() -> None:
    with pytest.raises(KernelInputError, match=r"share.*1\.0"):
        kept_tiles(torch.ones(4, 4), 1.0)
    with pytest.raises(KernelInputError, match="weight"):
        kept_tiles(torch.ones(4, 4, dtype=torch.int8), 0.5)
    with pytest.raises(KernelInputError, match=r"tiles.*\[2, 3\]"):
        weights_of_tiles(torch.ones(2, 2, dtype=torch.bool), 128, 40)
