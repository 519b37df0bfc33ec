from __future__ import annotations

import pytest
from agentforge_kernels.thresholds import (
    ACTIVATION_SPARSE_BY_LEVEL,
    BLOCK_SPARSE_BY_LEVEL,
    CACHE,
    MEMORY,
    Table,
    Threshold,
    most_tokens,
    share_of_columns_left_out,
)

from tests.kernels.native_cases import extension

both_operations = pytest.mark.parametrize(
    "by_level", [BLOCK_SPARSE_BY_LEVEL, ACTIVATION_SPARSE_BY_LEVEL]
)


@both_operations
def test_every_level_and_size_has_thresholds(by_level: dict[str, Table]) -> None:
    assert set(by_level) == {extension.isa_name(level) for level in range(5)}
    for table in by_level.values():
        assert {row.most_bytes for row in table} == {CACHE, MEMORY}


@both_operations
def test_more_tokens_need_more_zeros(by_level: dict[str, Table]) -> None:
    for table in by_level.values():
        assert [row.most_bytes for row in table] == sorted(row.most_bytes for row in table)
        for size in (CACHE, MEMORY):
            rows = [row for row in table if row.most_bytes == size]
            assert [row.zero_share for row in rows] == sorted({row.zero_share for row in rows})
            assert [row.most_tokens for row in rows] == sorted({row.most_tokens for row in rows})
            assert all(0 < row.zero_share < 1 for row in rows)


def test_of_one_size_the_row_for_most_tokens_counts() -> None:
    table = (Threshold(1000, 0.2, 1), Threshold(1000, 0.5, 9), Threshold(5000, 0.1, 2))
    for size, share, most in [
        (1000, 0.19, 0),
        (1000, 0.2, 1),
        (1000, 0.49, 1),
        (1000, 0.5, 9),
        (1, 1.0, 9),
        (1001, 0.5, 2),
        (5001, 1.0, 0),
    ]:
        assert most_tokens(table, size, share) == most


def test_rows_filled_up_to_a_block_count() -> None:
    assert share_of_columns_left_out(0.75, 512) == 0.75
    assert share_of_columns_left_out(0.75, 64) == 0.0
    assert share_of_columns_left_out(0.5, 64) == -1.0
    assert share_of_columns_left_out(1.0, 1) == 1.0
    assert 0.8 < share_of_columns_left_out(0.9, 300) < 0.9
