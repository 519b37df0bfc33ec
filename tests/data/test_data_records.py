"""Every record of the real samples goes through, and nothing held out is trained on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from agentforge.config.schema import DataConfig
from agentforge.data.records import Record, Skipped, read_jsonl
from agentforge.data.registry import NAMES, REGISTRY
from agentforge.data.sources import DataInventory, load_datasets
from agentforge.data.splits import SPLITS, split_key

pytestmark = pytest.mark.records

SKIPPED = {"blank", "heading", "docstring cannot be told from the code"}


@pytest.fixture(scope="module")
def inventory(records_dir: Path) -> DataInventory:
    config = DataConfig(
        source="records", data_dir=str(records_dir), datasets=NAMES, require_all=True
    )
    return load_datasets(config)


def test_all_sixteen_are_found_and_nothing_is_lost(inventory: DataInventory) -> None:
    assert tuple(part.entry.name for part in inventory.loaded) == NAMES
    assert not inventory.missing
    for part in inventory.loaded:
        placed = sum(len(items) for items in part.examples.values())
        assert placed + sum(part.skipped.values()) == part.records, part.entry.name
        if not part.stand_in:
            assert all(len(part.examples[split]) >= 20 for split in SPLITS), part.entry.name
    assert {p.entry.name for p in inventory.loaded if p.stand_in} == {"fineweb_edu", "openwebtext"}


@pytest.mark.parametrize("item", REGISTRY, ids=lambda item: item.name)
def test_every_record_formats(item: object, records_dir: Path) -> None:
    entry = next(e for e in REGISTRY if e is item)
    folders = [f for f in entry.folders if (records_dir / f).is_dir()]
    count = 0
    for folder in folders or [f"{entry.name}_handwritten"]:
        for path in sorted((records_dir / folder).glob("*.jsonl")):
            for record in read_jsonl(path, entry.name):
                made = entry.formatter(record)
                count += 1
                if isinstance(made, Skipped):
                    assert made.reason in SKIPPED, record.where
                    continue
                assert made.answer.strip() == made.answer != "", record.where
                assert (made.dataset, made.category) == (entry.name, entry.category)
                assert bool(made.prompt) == (entry.category != "language"), record.where
                assert "\r" not in made.prompt + made.answer
                if made.choices:
                    assert made.choices[made.gold] == made.answer
                else:
                    assert made.gold == -1
    assert count > (0 if entry.name in ("fineweb_edu", "openwebtext") else 200)


def test_few_records_are_skipped_except_blank_lines(inventory: DataInventory) -> None:
    for part in inventory.loaded:
        # BoolQ's two files share passages: those questions are dropped from training on purpose.
        meant = ("blank", "heading", "prompt or passage is in a held-out file")
        lost = {r: n for r, n in part.skipped.items() if r not in meant}
        assert part.skipped.get(meant[2], 0) <= 0.02 * part.records, part.entry.name
        assert sum(lost.values()) <= 0.01 * part.records, (part.entry.name, lost)


def test_splits_share_no_prompt_across_all_datasets(inventory: DataInventory) -> None:
    keys = {split: {split_key(e) for e in inventory.examples(split)} for split in SPLITS}
    for one in SPLITS:
        for other in SPLITS:
            if one != other:
                assert not keys[one] & keys[other], (one, other)


def test_no_record_of_a_held_out_file_is_trained_on(
    inventory: DataInventory, records_dir: Path
) -> None:
    train = {split_key(e) for e in inventory.examples("train")}
    for entry in REGISTRY:
        for folder in entry.folders:
            path = records_dir / folder / "test.jsonl"
            if not path.exists():
                continue
            made = [entry.formatter(record) for record in read_jsonl(path, entry.name)]
            held = {split_key(example) for example in made if not isinstance(example, Skipped)}
            assert held, entry.name
            assert not held & train, entry.name


def test_choice_tasks_carry_choices(inventory: DataInventory) -> None:
    sizes = {
        part.entry.name: {len(e.choices) for items in part.examples.values() for e in items}
        for part in inventory.loaded
    }
    assert sizes["piqa"] == sizes["boolq"] == sizes["strategy_qa"] == {2}
    assert sizes["hellaswag"] == {4}
    assert sizes["arc_easy"] <= {3, 4, 5}
    assert 4 in sizes["arc_challenge"]
    assert sizes["gsm8k"] == {0}


def test_the_traps_of_the_real_records_are_there_and_handled(
    inventory: DataInventory, records_dir: Path
) -> None:
    arc = (records_dir / "arc_easy" / "train.jsonl").read_text().splitlines()
    assert any(json.loads(line)["answerKey"].isdigit() for line in arc)
    parts = {part.entry.name: part for part in inventory.loaded}
    answers = {
        name: [e.answer for items in parts[name].examples.values() for e in items]
        for name in ("gsm8k", "svamp", "asdiv")
    }
    assert not any("<<" in text for text in answers["gsm8k"])
    assert all(text.splitlines()[-1].startswith("#### ") for text in answers["gsm8k"])
    assert not any(text.endswith(".0") or "e" in text for text in answers["svamp"])
    assert not any("(" in text for text in answers["asdiv"])


def test_loading_local_records_imports_neither_datasets_nor_torch(records_dir: Path) -> None:
    import subprocess

    code = (
        "import sys\n"
        "from agentforge.config.schema import DataConfig\n"
        "from agentforge.data.sources import load_datasets\n"
        f"c = DataConfig(source='records', data_dir={str(records_dir)!r}, datasets=('mbpp',))\n"
        "assert load_datasets(c).loaded\n"
        "assert not {'datasets', 'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_record_remembers_its_line(records_dir: Path) -> None:
    path = records_dir / "gsm8k" / "test.jsonl"
    records = read_jsonl(path, "gsm8k")
    assert isinstance(records[4], Record)
    assert records[4].where == f"{path}:5"


def test_no_passage_is_in_two_splits(records_dir: Path) -> None:
    """A held-out question must not come with a passage that was trained on."""
    config = DataConfig(
        source="records", data_dir=str(records_dir), use_hub=False, datasets=("drop", "boolq")
    )
    for loaded in load_datasets(config).loaded:
        where: dict[str, set[str]] = {}
        for split, examples in loaded.examples.items():
            for example in examples:
                where.setdefault(example.group, set()).add(split)
        assert len(where) > 20
        assert all(len(splits) == 1 for splits in where.values())
