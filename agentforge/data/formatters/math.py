"""GSM8K, SVAMP, ASDiv: word problems whose answer is checked by its final number."""

from __future__ import annotations

import re
from decimal import Decimal

from agentforge.data.example import Example
from agentforge.data.records import Record, Skipped

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_UNIT = re.compile(r"\s*\([^()]*\)")
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)")


def gsm8k(record: Record) -> Example | Skipped:
    """Worked solution with its last line ``#### N``.

    The calculator annotations ``<<48/2=24>>`` are taken out: they are for a model that calls a
    calculator (Cobbe et al. 2021, arXiv 2110.14168) and are not text a person reads. The
    difficulty is the number of solution lines.
    """
    answer = _CALCULATOR.sub("", record.text("answer"))
    steps, mark, final = answer.rpartition("####")
    if not mark or not final.strip():
        raise record.wrong("answer", "a solution that ends in '#### NUMBER'")
    lines = [line.strip() for line in steps.splitlines() if line.strip()]
    text = "\n".join([*lines, f"#### {final.strip()}"])
    return Example(
        record.text("question"), text, record.dataset, "math", difficulty=max(1, len(lines))
    )


def svamp(record: Record) -> Example | Skipped:
    """Body and question; the answer column is a decimal as text, "51.0" becomes "51".

    Body and question are joined by a blank as in the hub's ``question_concat``: some bodies end
    in the middle of the sentence that the question continues.
    """
    prompt = f"{record.text('Body')} {record.text('Question')}".strip()
    return Example(prompt, number_text(record.number("Answer")), record.dataset, "math")


def asdiv(record: Record) -> Example | Skipped:
    """Body and question; units are taken off the answer: ``9 (apples)`` becomes ``9``.

    Several values stay several (``50 (years old); 20 (years old)`` becomes ``50; 20``); ratios,
    times and words (``7:4``, ``Red``) stay as they are.
    """
    parts = [_UNIT.sub("", part).strip() for part in record.text("answer").split(";")]
    parts = [number_text(Decimal(part)) if _NUMBER.fullmatch(part) else part for part in parts]
    answer = "; ".join(part for part in parts if part)
    if not answer:
        return Skipped("no answer")
    prompt = f"{record.text('body')} {record.text('question')}".strip()
    return Example(prompt, answer, record.dataset, "math")


def number_text(number: Decimal) -> str:
    """A number as a person writes it: no exponent, no trailing zeros, no ``-0``."""
    text = f"{number:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
