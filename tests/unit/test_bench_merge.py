"""The merge benchmarks run and report every technique, combo and limit; no timings are judged."""

from __future__ import annotations

import csv

from agentforge.merge.combo import COMBOS
from agentforge.merge.techniques import TECHNIQUES
from bench import merge_evaluations, merge_throughput


def test_every_technique_and_combo_is_measured():
    rows = merge_throughput.measure("smoke", 1, 1, 1 << 16)
    wanted = {t.name for t in TECHNIQUES} | {f"combo {c.digits}" for c in COMBOS} | {"copy"}
    assert {row["op"] for row in rows} == wanted
    for row in rows:
        assert set(row) == set(merge_throughput.COLUMNS)
        assert float(str(row["gb_per_s"])) > 0
    (copy,) = [row for row in rows if row["op"] == "copy"]
    assert copy["share_of_limit"] == 1.0


def test_the_results_in_the_repository_are_complete():
    for module in (merge_throughput, merge_evaluations):
        with module.RESULTS.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {row["model"] for row in rows} == {"demo", "full"}
        assert set(rows[0]) == set(module.COLUMNS)
