"""``data check`` over local folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentforge.config.schema import DataConfig
from agentforge.data.fetch import fetch_datasets
from agentforge.data.inventory import check_data
from agentforge.data.registry import NAMES
from agentforge.errors import DataError


def test_every_state_is_a_row(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": f"#### {n}"} for n in range(40)]
    for name, text in (
        ("gsm8k", "\n".join(json.dumps(row) for row in rows)),
        ("svamp", "{broken"),
        ("fineweb_edu_handwritten", '{"text": "a page"}\n{"text": ""}'),
        ("asdiv", '{"body": "b", "question": "q", "answer": "9 (apples)"}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(text)
    config = DataConfig(source="records", data_dir=str(tmp_path), use_hub=False)
    found = {row.name: row for row in check_data(config)}
    assert tuple(found) == NAMES
    gsm8k = found["gsm8k"]
    assert (gsm8k.status, gsm8k.chosen, gsm8k.records) == ("local", True, 40)
    assert gsm8k.train is not None
    assert 20 <= gsm8k.train < 40
    assert gsm8k.licence == "MIT"
    assert "openai/gsm8k (main) @ main" in gsm8k.hub
    assert found["svamp"].status == "broken"
    assert "train.jsonl:1" in found["svamp"].problem
    assert found["fineweb_edu"].stand_in
    assert found["fineweb_edu"].skipped == "1 blank"
    assert (found["asdiv"].status, found["asdiv"].chosen) == ("local", False)
    assert "non-commercial" in found["asdiv"].why_off
    assert found["drop"].status == "missing"
    assert str(tmp_path) in found["drop"].problem


def test_chosen_follows_the_configuration(tmp_path: Path) -> None:
    config = DataConfig(
        source="records", data_dir=str(tmp_path), use_hub=False, datasets=("asdiv",)
    )
    assert [row.name for row in check_data(config) if row.chosen] == ["asdiv"]


@pytest.mark.records
def test_the_real_samples_are_all_local(records_dir: Path) -> None:
    config = DataConfig(source="records", data_dir=str(records_dir), use_hub=False)
    rows = check_data(config)
    assert {row.status for row in rows} == {"local"}
    assert all(row.records and row.where and not row.problem for row in rows)


def test_fetch_without_a_network_says_so_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot fetch gsm8k: .*HF_HUB_OFFLINE"):
        fetch_datasets((), tmp_path)
    with pytest.raises(DataError, match="did you mean 'gsm8k'"):
        fetch_datasets(("gsm8",), tmp_path)
    assert list(tmp_path.iterdir()) == []
