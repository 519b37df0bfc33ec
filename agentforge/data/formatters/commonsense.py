"""PIQA, HellaSwag, BoolQ: choices between two to four answers."""

from __future__ import annotations

import re

from agentforge.data.example import Example
from agentforge.data.formatters.qa import YES_NO
from agentforge.data.records import Record, Skipped

_MARKER = re.compile(r"\[(?:header|title|step|substeps)\]")


def piqa(record: Record) -> Example | Skipped:
    """PIQA: a goal and two ways to reach it; the hub's test split has label -1."""
    choices = (record.text("sol1"), record.text("sol2"))
    gold = record.index("label", len(choices))
    if gold is None:
        return Skipped("no label")
    return Example(record.text("goal"), choices[gold], record.dataset, "commonsense", choices, gold)


def hellaswag(record: Record) -> Example | Skipped:
    """HellaSwag: activity and context; one of four endings follows; the label is text.

    WikiHow's markers ([header], [title], [step], [substeps]) are taken out. The hub's test split
    has an empty label.
    """
    choices = tuple(_unmarked(ending) for ending in record.texts("endings"))
    gold = record.index("label", len(choices))
    if gold is None:
        return Skipped("no label")
    context = _unmarked(record.text("ctx"))
    prompt = f"{record.text('activity_label')}: {context}\nWhat comes next?"
    return Example(prompt, choices[gold], record.dataset, "commonsense", choices, gold)


def boolq(record: Record) -> Example | Skipped:
    """BoolQ: passage and yes/no question (the question column has no question mark)."""
    question = record.text("question").rstrip("?").rstrip() + "?"
    gold = 0 if record.flag("answer") else 1
    passage = record.text("passage")
    prompt = f"{passage}\n{question[:1].upper()}{question[1:]}"
    return Example(prompt, YES_NO[gold], record.dataset, "commonsense", YES_NO, gold, group=passage)


def _unmarked(text: str) -> str:
    return " ".join(_MARKER.sub(" ", text).split())
