"""Validation of examples with its reasons, and sets on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentforge.errors import DataError
from agentforge.reasoning.builtin import all_examples
from agentforge.reasoning.dataset import (
    EXAMPLES,
    METADATA,
    SetMetadata,
    metadata_json,
    read_set,
)
from agentforge.reasoning.example import ReasoningExample
from agentforge.reasoning.validate import fault_of, thought_text

GOOD = ReasoningExample(
    id="a/1",
    prompt="What is 2 + 2?",
    reasoning="[thinking]<step> two and two [/endthinking]",
    answer="4",
    strategy="chain_of_thought",
    difficulty="easy",
    model_source="test",
    quality=1.0,
)


def changed(**fields: object) -> ReasoningExample:
    return ReasoningExample(**{**GOOD.model_dump(), **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({}, None),
        ({"reasoning": "  [thinking] <step> a [/endthinking]\n"}, None),
        ({"strategy": "guess"}, "unknown_strategy"),
        ({"reasoning": "<step> a [/endthinking]"}, "missing_thinking"),
        ({"reasoning": "so [thinking]<step> a [/endthinking]"}, "missing_thinking"),
        ({"reasoning": "[thinking]<step> a"}, "missing_end"),
        ({"reasoning": "[thinking]<step> a[/endthinking] b"}, "token_in_text"),
        ({"reasoning": "[thinking]<step> [thinking] a[/endthinking]"}, "repeated_token"),
        ({"reasoning": "[thinking] a[/endthinking]"}, "missing_strategy_token"),
        ({"reasoning": "[thinking]<mece> a[/endthinking]"}, "wrong_strategy"),
        ({"reasoning": "[thinking]a <step> b[/endthinking]"}, "wrong_strategy"),
        ({"reasoning": "[thinking]<step> a <mece> b[/endthinking]"}, "repeated_token"),
        ({"reasoning": "[thinking]<step> a <step> b[/endthinking]"}, "repeated_token"),
        ({"reasoning": "[thinking]<step>  [/endthinking]"}, "empty_reasoning"),
        ({"answer": "  "}, "empty_answer"),
        ({"answer": "4 <step>"}, "token_in_text"),
        ({"prompt": "[thinking] what?"}, "token_in_text"),
        ({"reasoning": f"[thinking]<step> {'a' * 5000}[/endthinking]"}, "too_long"),
        ({"answer": "4" * 1001}, "too_long"),
    ],
)
def test_every_fault_has_its_reason(fields: dict[str, object], fault: str | None) -> None:
    assert fault_of(changed(**fields)) == fault


@given(st.text(max_size=60), st.text(min_size=1, max_size=20))
def test_validation_never_raises(reasoning: str, answer: str) -> None:
    if not reasoning:
        return
    fault = fault_of(changed(reasoning=reasoning, answer=answer))
    assert fault is not None or thought_text(changed(reasoning=reasoning))


def test_schema_refuses_what_is_missing_or_unknown() -> None:
    with pytest.raises(ValidationError):
        changed(quality=1.5)
    with pytest.raises(ValidationError):
        changed(mood="good")
    with pytest.raises(ValidationError):
        changed(prompt="")


def write(folder: Path, rows: list[str], target: int, tried: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / EXAMPLES).write_text("\n".join(rows))
    metadata = SetMetadata(target=target, tried=tried or len(rows), source="test")
    (folder / METADATA).write_text(metadata_json(metadata))
    return folder


def ten(count: int) -> list[str]:
    return [e.model_dump_json() for e in all_examples("train", count, 1, 0.0, 1.0)]


def test_acceptance_needs_four_fifths_and_all_ten_strategies(tmp_path: Path) -> None:
    assert read_set(write(tmp_path / "a", ten(8), target=100)).accepted
    assert not read_set(write(tmp_path / "b", ten(8), target=101)).accepted
    lacking = [row for row in ten(12) if '"mece"' not in row]
    found = read_set(write(tmp_path / "c", lacking, target=100))
    assert len(found.examples) == 108
    assert not found.accepted
    with pytest.raises(DataError, match="none of mece"):
        found.require_accepted()


def test_under_nine_tenths_valid_needs_attention(tmp_path: Path) -> None:
    assert not read_set(write(tmp_path / "a", ten(9), target=90, tried=100)).needs_attention
    assert read_set(write(tmp_path / "b", ten(8), target=80, tried=100)).needs_attention


def test_faulty_lines_need_attention_whatever_the_metadata_says(tmp_path: Path) -> None:
    rows = ten(2)
    bad = [json.dumps(json.loads(rows[0]) | {"id": f"bad{i}", "answer": " "}) for i in range(5)]
    found = read_set(write(tmp_path / "a", [*rows, *bad], target=20, tried=20))
    assert found.valid_share == 0.8
    assert found.needs_attention


def test_faulty_and_repeated_lines_are_counted(tmp_path: Path) -> None:
    rows = ten(2)
    bad = json.loads(rows[0]) | {"id": "bad", "reasoning": "no thought"}
    found = read_set(write(tmp_path / "a", [*rows, rows[3], json.dumps(bad)], target=20))
    assert len(found.examples) == 20
    assert found.faults == {"duplicate": 1, "missing_thinking": 1}


def test_a_cut_last_line_is_left_out_and_a_damaged_one_named(tmp_path: Path) -> None:
    rows = ten(2)
    found = read_set(write(tmp_path / "a", [*rows, rows[0][:40]], target=20))
    assert len(found.examples) == 20
    with pytest.raises(DataError, match=r"line 3: "):
        read_set(write(tmp_path / "b", [*rows[:2], rows[2][:40], *rows[3:]], target=20))
    broken = json.dumps(json.loads(rows[0]) | {"quality": 7})
    folder = write(tmp_path / "c", [broken, *rows], target=20)
    with pytest.raises(DataError, match="line 1: quality"):
        read_set(folder)


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="metadata.json cannot be read"):
        read_set(tmp_path)
    (tmp_path / METADATA).write_text(metadata_json(SetMetadata(target=5, tried=0)))
    with pytest.raises(DataError, match="examples.jsonl cannot be read"):
        read_set(tmp_path)
