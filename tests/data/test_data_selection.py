"""Caps and held-out rules that need no files."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentforge.data.example import Example
from agentforge.data.selection import chosen_rows, held_out_split_of
from agentforge.data.splits import split_key, split_of


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_cap_keeps_that_many_rows_in_order(total: int, limit: int) -> None:
    rows = chosen_rows("set/train", total, limit)
    assert len(rows) == min(total, limit)
    assert rows == sorted(set(rows))
    assert all(0 <= row < total for row in rows)


@given(st.integers(1, 200), st.integers(1, 100), st.integers(0, 100))
def test_a_larger_cap_keeps_a_superset(total: int, limit: int, more: int) -> None:
    small, large = (set(chosen_rows("s", total, n)) for n in (limit, limit + more))
    assert small <= large


def test_a_cap_does_not_take_the_head() -> None:
    rows = chosen_rows("hellaswag/train", 10_000, 1_000)
    assert sum(row < 5_000 for row in rows) in range(400, 600)
    assert rows != chosen_rows("boolq/train", 10_000, 1_000)


@given(st.text(max_size=40))
def test_a_held_out_record_is_never_in_train(prompt: str) -> None:
    example = Example(prompt, "x", "gsm8k", "math")
    split = held_out_split_of(example)
    assert split in ("search", "rescore", "report")
    assert split_of(example) in ("train", split)


def test_equal_normalised_prompts_share_key_and_split() -> None:
    one = Example("What is 2 + 2?", "4", "gsm8k", "math")
    two = Example("what  is 2+2", "4", "svamp", "math")
    assert split_key(one) == split_key(two)
    assert held_out_split_of(one) == held_out_split_of(two)
