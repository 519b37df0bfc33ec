"""A teacher's reply as examples: whole JSON, JSON in a code fence, or JSON that was cut."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from agentforge.reasoning.example import ReasoningExample
from agentforge.reasoning.strategies import Strategy
from agentforge.reasoning.validate import Fault, fault_of


@dataclass(frozen=True, slots=True)
class Read:
    """What a reply held.

    Attributes:
        examples: Valid ones, with ids of their own.
        faults: The others by reason.
        cut: The text ended inside an object, or held no JSON.
    """

    examples: tuple[ReasoningExample, ...]
    faults: dict[Fault, int]
    cut: bool


def read_reply(
    text: str,
    strategy: Strategy,
    teacher: str,
    call: str,
    most: int,
    timestamp: str,
    seen_prompts: set[str],
) -> Read:
    """The valid examples of a reply; a prompt that is known already is a duplicate.

    Args:
        text: The reply.
        strategy: What was asked for.
        teacher: Who wrote it.
        call: Id of the call; an example's id is this and its place.
        most: Examples that were asked for; more are ignored.
        timestamp: ISO 8601.
        seen_prompts: Normalised prompts so far; those of this reply are added.
    """
    rows, cut = _objects(text)
    faults: Counter[Fault] = Counter()
    found: list[ReasoningExample] = []
    for place, row in enumerate(rows[:most]):
        try:
            example = ReasoningExample(
                id=f"{call}/{place:02d}",
                prompt=_text(row, "prompt"),
                reasoning=_text(row, "reasoning"),
                answer=_text(row, "answer"),
                strategy=strategy.name,
                difficulty=row.get("difficulty", strategy.difficulty),
                topic=str(row.get("topic", ""))[:100],
                model_source=teacher,
                timestamp=timestamp,
                quality=1.0,
            )
        except ValidationError:
            faults["bad_schema"] += 1
            continue
        fault = fault_of(example)
        key = " ".join(example.prompt.lower().split())
        if fault is None and key in seen_prompts:
            fault = "duplicate"
        if fault is not None:
            faults[fault] += 1
            continue
        seen_prompts.add(key)
        found.append(example)
    return Read(tuple(found), dict(faults), cut)


def _text(row: Mapping[str, object], key: str) -> str:
    value = row.get(key, "")
    return str(value) if isinstance(value, str | int | float) else ""


def _objects(text: str) -> tuple[list[Mapping[str, object]], bool]:
    """All complete objects of the first array in a text, and whether it did not end properly.

    Models wrap arrays in prose, code fences or an object; replies are cut at the token limit.
    """
    start = text.find("[{")
    if start < 0:
        start = next((i for i in _places(text, "[") if text[i + 1 :].lstrip()[:1] == "{"), -1)
    place = text.find("{") if start < 0 else start + 1
    if place < 0:
        return [], True
    decoder = json.JSONDecoder()
    found: list[Mapping[str, object]] = []
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        if place >= len(text):
            return found, start >= 0
        if text[place] != "{":
            return found, start >= 0 and text[place] != "]"
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return found, True
        if isinstance(row, dict):
            found.append(row)


def _places(text: str, what: str) -> list[int]:
    return [i for i, c in enumerate(text) if c == what]
