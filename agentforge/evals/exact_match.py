"""Exact match of short answers, with a gentle normalisation of text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from agentforge.evals.stats import Accuracy, accuracy

_SPACE = re.compile(r"\s+")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_WRAPPERS = "\"'`“”‘’"


def normalise_answer(text: str) -> str:
    """Bring an answer to the form in which it is compared.

    Unicode NFKC, lower case, runs of white space to one space, thousands separators out of
    numbers, surrounding quotes and full stops, exclamation and question marks at the end off.
    Articles and inner punctuation stay: ``a.b`` is not ``ab``.
    """
    text = _SPACE.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold()
    text = _THOUSANDS.sub(lambda m: m.group().replace(",", ""), text)
    before = None
    while text != before:
        before = text
        text = text.strip(_WRAPPERS).rstrip(".!?").strip()
    return text


def exact_match(generated: str, gold: str) -> bool:
    """True when both are the same answer after `normalise_answer`; an empty answer never is."""
    answer = normalise_answer(generated)
    return answer != "" and answer == normalise_answer(gold)


def exact_match_accuracy(pairs: Iterable[tuple[str, str]]) -> Accuracy:
    """Exact match over (generated, gold) pairs."""
    return accuracy([float(exact_match(generated, gold)) for generated, gold in pairs])
