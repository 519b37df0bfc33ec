"""Multiple choice by likelihood: the continuation the model finds most probable is its answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from agentforge.evals.stats import Accuracy, accuracy

ScoreContinuations = Callable[[str, Sequence[str]], Sequence[tuple[float, int]]]
"""Prompt and continuations -> for each its summed log-probability (nats) and its tokens."""


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """One question.

    Attributes:
        prompt: Text before the choice.
        choices: The continuations, two or more, as they follow the prompt (leading space
            included).
        answer: Index of the right one.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or not 0 <= self.answer < len(self.choices):
            raise ValueError(
                f"answer {self.answer} must index two or more choices, got {len(self.choices)}"
            )


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """Accuracy of one task.

    Attributes:
        raw: By summed log-probability, which favours short choices.
        normalised: By log-probability per token.
        chance: Accuracy of guessing.
        raw_credits: Credit of each item under `raw`, for paired comparison.
        normalised_credits: The same under `normalised`.
    """

    raw: Accuracy
    normalised: Accuracy
    chance: float
    raw_credits: tuple[float, ...]
    normalised_credits: tuple[float, ...]


def credit(scores: Sequence[float], answer: int) -> float:
    """1 for the best score at `answer`; k choices that tie for it share the credit, 1/k each.

    Taking the first of a tie would give a model without any preference the share of records whose
    answer happens to stand first, instead of chance.
    """
    best = max(scores)
    return 1.0 / sum(s == best for s in scores) if scores[answer] == best else 0.0


def evaluate_choices(
    items: Iterable[ChoiceItem], score_continuations: ScoreContinuations
) -> ChoiceResult:
    """Score a task.

    Args:
        items: The questions.
        score_continuations: The model: log-probability in nats and number of tokens of each
            continuation after the prompt.

    Raises:
        ValueError: The scores do not fit the choices, or one is NaN, positive infinity or without
            tokens.
    """
    raw: list[float] = []
    normalised: list[float] = []
    guesses: list[float] = []
    for item in items:
        scores = score_continuations(item.prompt, item.choices)
        if len(scores) != len(item.choices):
            raise ValueError(f"{len(scores)} scores for {len(item.choices)} choices")
        for log_prob, tokens in scores:
            if math.isnan(log_prob) or log_prob == math.inf or tokens < 1:
                raise ValueError(f"continuation score ({log_prob}, {tokens}) is not usable")
        raw.append(credit([log_prob for log_prob, _ in scores], item.answer))
        normalised.append(credit([log_prob / tokens for log_prob, tokens in scores], item.answer))
        guesses.append(1.0 / len(item.choices))
    return ChoiceResult(
        raw=accuracy(raw),
        normalised=accuracy(normalised),
        chance=sum(guesses) / len(guesses) if guesses else float("nan"),
        raw_credits=tuple(raw),
        normalised_credits=tuple(normalised),
    )
