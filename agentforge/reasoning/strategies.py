"""The ten ways of thinking: name, token, threshold, difficulty and words, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentforge.config.quietstar import STRATEGY_NAMES
from agentforge.data.thinking_tokens import THINKING_TOKENS

Difficulty = Literal["easy", "medium", "hard"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way of thinking.

    Attributes:
        name: Key in data, metrics (`baking/accuracy_<name>`) and reports.
        token: The inner token that opens a thought of this kind.
        threshold: Share of free generations that must keep to the form (mission's W&B table).
        difficulty: When the curriculum brings it: easy ones first.
        words: How a prompt asks for it.
        instruction: What it is, for a teacher model that writes examples.
    """

    name: str
    token: str
    threshold: float
    difficulty: Difficulty
    words: str
    instruction: str


STRATEGIES: tuple[Strategy, ...] = (
    Strategy(
        "chain_of_thought",
        "<step>",
        0.90,
        "easy",
        "step by step",
        "work through the problem one step after the other",
    ),
    Strategy(
        "mece",
        "<mece>",
        0.85,
        "medium",
        "split into parts",
        "split the problem into parts that do not overlap and leave nothing out, solve each part, "
        "then put them together",
    ),
    Strategy(
        "falsification",
        "<falsify>",
        0.80,
        "hard",
        "try to refute",
        "try to refute the most likely answer, and keep it only if that fails",
    ),
    Strategy(
        "expert",
        "<expert>",
        0.85,
        "medium",
        "as an expert",
        "name the expert who would know, and reason as that expert would",
    ),
    Strategy(
        "orthogonal",
        "<orthogonal>",
        0.75,
        "hard",
        "from another side",
        "look at the problem from an unexpected side that shares nothing with the usual approach",
    ),
    Strategy(
        "doubt",
        "<doubt>",
        0.85,
        "easy",
        "and doubt",
        "question each step: ask what could be wrong with it and check",
    ),
    Strategy(
        "bayesian",
        "<bayesian>",
        0.75,
        "hard",
        "weigh the evidence",
        "state what is likely beforehand, weigh each piece of evidence, and update",
    ),
    Strategy(
        "multidomain",
        "<multidomain>",
        0.85,
        "hard",
        "using two fields",
        "combine knowledge of at least two different fields",
    ),
    Strategy(
        "correction",
        "<correct>",
        0.85,
        "medium",
        "and correct",
        "make an attempt, find the mistake in it, and correct it",
    ),
    Strategy(
        "uncertainty",
        "<uncertain>",
        0.85,
        "medium",
        "say how sure",
        "say what is known and what is not, and how sure the conclusion is",
    ),
)
"""In the order of their tokens' ids."""

BY_NAME: dict[str, Strategy] = {s.name: s for s in STRATEGIES}
BY_TOKEN: dict[str, Strategy] = {s.token: s for s in STRATEGIES}

# The ids of the tokens are fixed by THINKING_TOKENS; a strategy out of order would train another's.
if tuple(s.token for s in STRATEGIES) != THINKING_TOKENS[2:] or tuple(BY_NAME) != STRATEGY_NAMES:
    raise AssertionError("strategies, thinking tokens and configuration are not in the same order")
