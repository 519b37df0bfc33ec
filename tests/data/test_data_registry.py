"""The table of datasets is complete, consistent, and easy to search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentforge.data.registry import NAMES, REGISTRY, STAGE_NAMES, entry
from agentforge.errors import DataError


def test_there_are_sixteen_and_fourteen_are_on() -> None:
    assert len(REGISTRY) == len(set(NAMES)) == 16
    off = {item.name for item in REGISTRY if not item.default_on}
    assert off == {"asdiv", "openwebtext"}
    assert "non-commercial" in entry("asdiv").off_reason
    assert "size" in entry("openwebtext").off_reason


def test_every_entry_is_filled_in() -> None:
    for item in REGISTRY:
        assert item.hub_id.count("/") == 1, "bare ids are aliases that come and go"
        assert item.config
        assert item.revision
        assert item.columns
        assert item.licence
        assert item.stage in STAGE_NAMES
        assert item.cap > 0
        assert item.train_splits
        assert not set(item.train_splits) & set(item.held_out_splits)
        assert bool(item.off_reason) != item.default_on


def test_every_stage_and_category_is_served_and_science_is_qa() -> None:
    assert {item.stage for item in REGISTRY} == {1, 2, 3}
    assert {item.category for item in REGISTRY} == {
        "math",
        "code",
        "qa",
        "commonsense",
        "language",
    }
    assert entry("arc_easy").category == entry("arc_challenge").category == "qa"
    assert any(item.category == "language" and item.stage == 1 for item in REGISTRY)
    assert (entry("hellaswag").cap, entry("hellaswag").max_share) == (10_000, 0.2)


def test_ids_that_were_scripts_are_read_elsewhere() -> None:
    assert entry("piqa").revision == "refs/convert/parquet"
    assert entry("piqa").config == "default"
    assert entry("strategy_qa").hub_id != "wics/strategy-qa"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'hellaswag'"):
        entry("helaswag")
    with pytest.raises(DataError, match="did you mean 'arc_easy'"):
        entry("ARC-Easy")
    with pytest.raises(DataError) as error:
        entry("zzz")
    assert "did you mean" not in error.value.message
    assert "gsm8k" in error.value.remedy


@pytest.mark.records
def test_ids_configs_and_columns_agree_with_the_hubs(records_dir: Path) -> None:
    schema = json.loads((records_dir / "schema.json").read_text())
    for item in REGISTRY:
        known = schema.get(item.folders[0]) or schema[f"{item.folders[0]}_handwritten"]
        assert set(item.columns) <= set(known["features"]), item.name
        if item.name == "strategy_qa":  # the documented id is a script
            continue
        assert item.hub_id == known["hf_id"]
        if item.name != "piqa":  # the parquet branch has one config, default
            assert item.config == known["hf_config"]
