"""Loading local folders: what is kept, what is refused and how it is said."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from agentforge.config.schema import DataConfig
from agentforge.data import hub, sources
from agentforge.data.sources import DataInventory, load_datasets
from agentforge.data.splits import SPLITS, split_key, split_of
from agentforge.errors import DataError


def gsm(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"question": f"What is {n} plus {n}?", "answer": f"Add.\n#### {2 * n}"}
        for n in range(start, start + count)
    ]


def write(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def load(folder: Path, *names: str, **settings: Any) -> DataInventory:
    settings = {"datasets": names or ("gsm8k",), "use_hub": False, **settings}
    return load_datasets(DataConfig(source="records", data_dir=str(folder), **settings))


def test_splits_are_disjoint_complete_and_repeatable(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "train.jsonl", gsm(300))
    write(tmp_path / "gsm8k" / "test.jsonl", gsm(60, start=1000))
    first = load(tmp_path).loaded[0]
    assert (first.found, first.records, dict(first.skipped)) == ("local", 360, {})
    assert sum(len(items) for items in first.examples.values()) == 360
    keys = [{split_key(e) for e in first.examples[split]} for split in SPLITS]
    assert sum(len(k) for k in keys) == len(set.union(*keys)) == 360
    assert load(tmp_path).loaded[0].examples == first.examples


def test_a_held_out_file_never_reaches_train(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "train.jsonl", gsm(100))
    write(tmp_path / "gsm8k" / "test.jsonl", gsm(300, start=1000))
    train = load(tmp_path).loaded[0].examples["train"]
    assert train
    assert all(int(e.answer.split()[-1]) < 2000 for e in train)


def test_a_training_record_that_is_also_held_out_is_dropped(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "train.jsonl", gsm(200))
    loud = [{**row, "question": row["question"].upper() + " "} for row in gsm(100)]
    write(tmp_path / "gsm8k" / "test.jsonl", loud)
    loaded = load(tmp_path).loaded[0]
    held = {split_key(e) for split in SPLITS[1:] for e in loaded.examples[split]}
    assert not held & {split_key(e) for e in loaded.examples["train"]}
    assert loaded.skipped["prompt or passage is in a held-out file"] > 40
    placed = sum(len(items) for items in loaded.examples.values())
    assert placed + sum(loaded.skipped.values()) == loaded.records


def test_leaks_are_found_across_datasets(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "test.jsonl", gsm(100))
    rows = [{"Body": "What is", "Question": f"{n} plus {n}?", "Answer": "1.0"} for n in range(200)]
    write(tmp_path / "svamp" / "train.jsonl", rows)
    svamp = load(tmp_path, "gsm8k", "svamp").loaded[1]
    numbers = [int(e.prompt.split()[2]) for e in svamp.examples["train"]]
    assert numbers
    assert min(numbers) >= 100


def test_repeated_records_are_counted_once(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "train.jsonl", gsm(20) * 3)
    loaded = load(tmp_path).loaded[0]
    assert loaded.skipped == {"repeated": 40}
    assert sum(len(items) for items in loaded.examples.values()) == 20


def test_caps_keep_a_part_and_say_so(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "train.jsonl", gsm(100))
    write(tmp_path / "gsm8k" / "test.jsonl", gsm(30, start=1000))
    loaded = load(tmp_path, max_records=25).loaded[0]
    assert loaded.skipped == {"over the cap": 75}
    assert loaded.records == 130


def test_blank_lines_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = write(tmp_path / "gsm8k" / "train.jsonl", [json.dumps(gsm(1)[0]), "", "  "])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(tmp_path).loaded[0].records == 1


def test_a_line_separator_inside_a_text_does_not_split_the_line(tmp_path: Path) -> None:
    row = {"question": "a\u2028b?", "answer": "#### 1"}
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "train.jsonl").write_text(json.dumps(row, ensure_ascii=False))
    assert load(tmp_path).loaded[0].records == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"question": "q", "ans', "is not JSON"),
        ("[1, 2]", "is a JSON list"),
        ("null", "is a JSON NoneType"),
        ('{"question": ' + "9" * 5000 + "}", "is not JSON we can read"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_corrupt_line_is_named_with_its_number(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path / "gsm8k" / "train.jsonl", [*gsm(3), line, *gsm(2)])
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert f"{path}:4:" in error.value.message
    assert problem in error.value.message
    assert "gsm8k" in error.value.message
    assert len(error.value.message) < 1000
    assert error.value.remedy


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "gsm8k" / "train.jsonl", gsm(1))
    path.write_bytes(path.read_bytes() + b'{"question": "\xff"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:2: .*not UTF-8"):
        load(tmp_path)


def test_a_wrong_column_names_file_line_and_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "gsm8k" / "train.jsonl", [*gsm(1), {"question": "q", "solution": "s"}])
    with pytest.raises(DataError) as error:
        load(tmp_path)
    for part in (f"{path}:2", "'answer'", "question, solution"):
        assert part in error.value.message


def test_empty_files_and_folders_are_errors(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    with pytest.raises(DataError, match=r"holds no \.jsonl file"):
        load(tmp_path)
    (tmp_path / "gsm8k" / "train.jsonl").touch()
    with pytest.raises(DataError, match=r"train\.jsonl of dataset gsm8k is empty"):
        load(tmp_path)


def test_a_dataset_without_a_usable_record_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "wikitext" / "train.jsonl", [{"text": ""}, {"text": " = A = "}])
    with pytest.raises(DataError, match="no usable record: 1 blank, 1 heading"):
        load(tmp_path, "wikitext")


def test_a_data_folder_that_is_missing_or_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is not a folder"):
        load(write(tmp_path / "file", []))


def test_a_file_or_a_folder_in_the_wrong_place_is_named(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k", [])
    with pytest.raises(DataError, match=r"cannot list .*gsm8k"):
        load(tmp_path)
    (tmp_path / "svamp" / "train.jsonl").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot read .*train\.jsonl"):
        load(tmp_path, "svamp")


def test_a_folder_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:  # root may read everything, so the refusal is made here
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        load(tmp_path)


def test_an_unknown_dataset_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'gsm8k'"):
        load(tmp_path, "gms8k")


def test_missing_datasets_are_stated(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "train.jsonl", gsm(5))
    inventory = load(tmp_path, "gsm8k", "boolq")
    assert [m.entry.name for m in inventory.missing] == ["boolq"]
    assert str(tmp_path) in inventory.missing[0].reason
    with pytest.raises(DataError, match="require_all"):
        load(tmp_path, "gsm8k", "boolq", require_all=True)
    with pytest.raises(DataError, match="nothing to train on"):
        load(tmp_path, "boolq", "piqa")


def test_hand_written_records_are_used_last_and_marked(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k_handwritten" / "train.jsonl", gsm(5))
    assert load(tmp_path).loaded[0].stand_in
    write(tmp_path / "gsm8k" / "train.jsonl", gsm(7))
    loaded = load(tmp_path).loaded[0]
    assert (loaded.stand_in, loaded.records) == (False, 7)


def test_both_folders_of_codexglue_are_one_dataset(tmp_path: Path) -> None:
    row = {"code": 'def f():\n    """Do."""\n    pass', "docstring": "Do."}
    write(tmp_path / "code_x_glue_ct_code_to_text" / "train.jsonl", [row])
    java = {"id": 1, "nl": "do it", "code": "void function ( ) { }"}
    write(tmp_path / "code_x_glue_tc_text_to_code" / "train.jsonl", [java])
    inventory = load(tmp_path, "code_x_glue")
    assert (len(inventory.loaded), inventory.loaded[0].records) == (1, 2)


def test_one_probe_for_all_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[str] = []

    def probe(self: hub.HubSession) -> str:
        probes.append("probe")
        return "no network today"

    monkeypatch.setattr(hub.HubSession, "_probe", probe)
    monkeypatch.setattr(hub, "_may_be_cached", lambda entry: False)
    write(tmp_path / "gsm8k" / "train.jsonl", gsm(5))
    inventory = load(tmp_path, *(item.name for item in sources.REGISTRY), use_hub=True)
    assert probes == ["probe"]
    assert len(inventory.missing) == 15
    assert all("no network today" in item.reason for item in inventory.missing)


def test_nothing_is_probed_when_everything_is_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.HubSession, "_probe", lambda self: pytest.fail("probed"))
    write(tmp_path / "gsm8k" / "train.jsonl", gsm(5))
    assert load(tmp_path, use_hub=True).loaded


def test_examples_come_in_registry_order(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "train.jsonl", gsm(20))
    rows = [{"Body": "b", "Question": f"q {n}", "Answer": "1"} for n in range(20)]
    write(tmp_path / "svamp" / "train.jsonl", rows)
    names = [e.dataset for e in load(tmp_path, "svamp", "gsm8k").examples("train")]
    assert names == sorted(names)
    assert {split_of(e) for e in load(tmp_path, "svamp").examples("search")} == {"search"}
