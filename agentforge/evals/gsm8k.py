"""GSM8K answers scored by the two rules of the common evaluation harness (gsm8k task, v3).

Strict takes the first ``#### number``; flexible takes the last thing in the text that looks like a
number. What is extracted is compared as a string after both sides lost commas, dollar signs,
everything up to ``#### `` and one final full stop: ``18.0`` is not ``18``, there as here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from agentforge.errors import DataError
from agentforge.evals.stats import Accuracy, accuracy

STOPS = ("Question:", "</s>", "<|im_end|>")
"""Generation ends before the first of these."""

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_REASONING = re.compile(r".*#### ", re.DOTALL)
_NUMBER = re.compile(r"-?\d*\.?\d+")
_FINAL_STOP = re.compile(r"\.$")


@dataclass(frozen=True, slots=True)
class GsmScore:
    """Whether one generated solution has the right final number.

    Attributes:
        strict: By the ``####`` line.
        flexible: By the last number of the text.
    """

    strict: bool
    flexible: bool


@dataclass(frozen=True, slots=True)
class GsmResult:
    """Accuracy under both rules over the same items."""

    strict: Accuracy
    flexible: Accuracy


def until_stop(generated: str) -> str:
    """The text before the first stop string."""
    ends = [generated.find(stop) for stop in STOPS]
    return generated[: min((end for end in ends if end >= 0), default=len(generated))]


def extract_strict(text: str) -> str | None:
    """The number of the first ``#### number``; None without one."""
    found = _STRICT.search(text)
    return found.group(1).strip() if found else None


def extract_flexible(text: str) -> str | None:
    """The last match of two or more of ``$0-9.,`` or of an integer; None without one.

    The rule is taken as it is: a final ``...`` or ``, .`` run of two or more counts as a match and
    spoils the answer.
    """
    last = None
    for found in _FLEXIBLE.finditer(text):
        last = found.group().strip()
    return last


def clean(number: str) -> str:
    """Drop commas, dollar signs, reasoning up to ``#### `` and one final full stop; lower case."""
    number = number.replace(",", "").replace("$", "")
    return _FINAL_STOP.sub("", _REASONING.sub("", number)).lower()


def score(generated: str, gold: str) -> GsmScore:
    """Score one generated solution.

    Args:
        generated: The model's text; cut at the first stop string.
        gold: The record's answer, whole (``... #### 18``) or only its number.

    Raises:
        DataError: The gold answer does not end in a number.
    """
    target = clean(gold.strip())
    if not _NUMBER.fullmatch(target):
        raise DataError(
            f"GSM8K answer {gold[-60:]!r} does not end in '#### number'",
            remedy="check the file's 'answer' column",
        )
    text = until_stop(generated)
    strict, flexible = extract_strict(text), extract_flexible(text)
    return GsmScore(
        strict=strict is not None and clean(strict) == target,
        flexible=flexible is not None and clean(flexible) == target,
    )


def score_all(pairs: Iterable[tuple[str, str]]) -> GsmResult:
    """Accuracy over (generated, gold) pairs.

    Raises:
        DataError: As `score`.
    """
    scores = [score(generated, gold) for generated, gold in pairs]
    return GsmResult(
        strict=accuracy([float(s.strict) for s in scores]),
        flexible=accuracy([float(s.flexible) for s in scores]),
    )
