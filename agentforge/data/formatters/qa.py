"""ARC, HotpotQA, DROP, StrategyQA: question answering (science counts as qa)."""

from __future__ import annotations

from agentforge.data.example import Example
from agentforge.data.records import Record, Skipped

YES_NO = ("yes", "no")
_LEVELS = {"easy": 1, "medium": 2, "hard": 3}


def arc(record: Record) -> Example | Skipped:
    """ARC: the bare question; candidates are scored by likelihood, so they are not in the prompt.

    Some records label their choices 1 to 4 and not A to D, with 3 or 5 of them; key and labels
    may even differ in kind, so both are compared as positions in A, B, C, ... or 1, 2, 3, ...
    """
    texts = record.nested_texts("choices", "text")
    labels = record.nested_texts("choices", "label")
    key = record.text("answerKey")
    if not key:
        return Skipped("no label")
    if len(texts) != len(labels) or len(texts) < 2:
        raise record.wrong("choices", "as many labels as texts, at least two")
    if key in labels:
        gold = labels.index(key)
    else:
        places = [_place(label) for label in labels]
        if _place(key) < 0 or _place(key) not in places:
            raise record.wrong("answerKey", f"one of the labels {', '.join(labels)}")
        gold = places.index(_place(key))
    return Example(record.text("question"), texts[gold], record.dataset, "qa", texts, gold)


def hotpot_qa(record: Record) -> Example | Skipped:
    """HotpotQA with only the supporting paragraphs (nearly always two) as context.

    All ten paragraphs are some 1,300 tokens, five times our training sequence; cutting them would
    most often cut the answer. This is the "gold paragraphs" setting: easier than the distractor
    benchmark, and its figures must not be compared with that. When no supporting title is among
    the context's titles, all paragraphs stay.
    """
    titles = record.nested_texts("context", "title")
    sentences = record.nested_lists("context", "sentences")
    if len(titles) != len(sentences):
        raise record.wrong("context", "as many sentence lists as titles")
    wanted = set(record.nested_texts("supporting_facts", "title"))
    paragraphs = [
        f"{title}: {' '.join(lines)}"
        for title, lines in zip(titles, sentences, strict=True)
        if title in wanted or not wanted.intersection(titles)
    ]
    answer = record.text("answer")
    if not answer:
        return Skipped("no answer")
    prompt = "\n".join([*paragraphs, record.text("question")])
    level = _LEVELS.get(record.text("level"), 0) if record.has("level") else 0
    return Example(prompt, answer, record.dataset, "qa", difficulty=level)


def drop(record: Record) -> Example | Skipped:
    """DROP: passage and question; the answer spans become one text.

    ``spans`` holds the parts of one answer in the train split, but several annotators' answers in
    the validation split. So: a number or date answer is its first entry; spans are listed once
    each, without those that are part of another one, joined by a comma.
    """
    spans = record.nested_texts("answers_spans", "spans")
    kinds = record.nested_texts("answers_spans", "types")
    if len(kinds) != len(spans):
        raise record.wrong("answers_spans", "as many types as spans")
    if not any(spans):
        return Skipped("no answer")
    if kinds[0] != "span":
        answer = next(span for span in spans if span)
    else:
        distinct = list(
            dict.fromkeys(s for s, kind in zip(spans, kinds, strict=True) if kind == "span" and s)
        )
        whole = [s for s in distinct if not any(s in other and s != other for other in distinct)]
        answer = ", ".join(whole)
    passage = record.text("passage")
    prompt = f"{passage}\n{record.text('question')}"
    return Example(prompt, answer, record.dataset, "qa", group=passage)


def strategy_qa(record: Record) -> Example | Skipped:
    """StrategyQA without its facts: a yes/no question that needs implicit steps."""
    gold = 0 if record.flag("answer") else 1
    return Example(record.text("question"), YES_NO[gold], record.dataset, "qa", YES_NO, gold)


def _place(label: str) -> int:
    """0 for A, a or 1, 1 for B or 2, ...; -1 for anything else."""
    if label.isascii() and label.isdecimal():
        return int(label) - 1
    return ord(label.upper()) - ord("A") if len(label) == 1 and label.isascii() else -1
