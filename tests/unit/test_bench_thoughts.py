"""The benchmark of thoughts runs and has every cell; no timings are judged."""

from __future__ import annotations

import csv

from bench import thoughts


def test_every_cell_is_measured():
    rows = thoughts.measure("smoke", (1, 2), (1, 2), 1)
    cells = {(row["form"], row["questions"], row["thoughts"]) for row in rows}
    assert cells == {
        *(("answer", b, c) for b in (1, 2) for c in (1, 2)),
        *(("text", 1, c) for c in (1, 2)),
    }
    for row in rows:
        assert set(row) == set(thoughts.COLUMNS)
        assert float(str(row["thoughts_per_s"])) > 0
        assert float(str(row["parallel_over_sequential"])) > 0


def test_the_results_in_the_repository_are_complete():
    with thoughts.RESULTS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"demo", "full"}
    assert {row["form"] for row in rows} == {"answer", "text"}
    assert set(rows[0]) == set(thoughts.COLUMNS)
