"""Where thoughts begin: the most uncertain positions, apart from each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentforge.thinking.places import APART, hard_places


def test_the_most_uncertain_positions_that_are_apart() -> None:
    entropy = torch.tensor([[0.0, 9.0, 8.0, 1.0, 2.0, 7.0, 3.0, 6.0]])
    assert hard_places(entropy, 2, last=7).tolist() == [[1, 5]]
    assert hard_places(entropy, 2, last=4).tolist() == [[1, 4]]


@given(st.integers(1, 6), st.integers(0, 30), st.integers(0, 99))
def test_places_are_different_rising_and_in_range(count: int, spare: int, seed: int) -> None:
    last = count - 1 + spare
    entropy = torch.rand(3, last + 4, generator=torch.Generator().manual_seed(seed))
    found = hard_places(entropy, count, last)
    assert found.shape == (3, count)
    assert int(found.max()) <= last
    gaps = found.diff(dim=1)
    assert count == 1 or int(gaps.min()) >= 1
    if spare >= 2 * APART * count:
        assert count == 1 or int(gaps.min()) >= APART


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="2 positions, 3 wanted"):
        hard_places(torch.rand(1, 9), 3, last=1)
