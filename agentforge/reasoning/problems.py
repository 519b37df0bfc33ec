"""The built-in world's reasoning problems: short questions over digits whose answers are certain.

    sum       add 3 5 9 2.                     -> 9        (last digit, as everywhere here)
    trade     add 3 5 9 cows.                  -> 7
    claim     add 3 5 9 2, is it 4?            -> no
    weather   rain 3 4 sun 2 1.                -> rain     (the side whose marks sum to more)
    animals   3 dogs 5 cats 4 dogs. count dogs.-> 7
    gap       add 3 5 x 2.                     -> open     (one number is not known)

A problem allows several strategies; a prompt may name one in words or leave it to the model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from agentforge.reasoning.strategies import BY_NAME

Topic = Literal["sum", "trade", "claim", "weather", "animals", "gap"]

EXPERTS: dict[str, str] = {"coins": "clerk", "cakes": "baker", "cows": "farmer"}
"""Goods of a trade problem and who knows about them."""
SIDES = ("rain", "sun")
ANIMALS = ("dogs", "cats")
UNKNOWN = "x"
LEAST, MOST = 3, 5
"""Numbers in a sum."""

STRATEGIES_OF: dict[Topic, tuple[str, ...]] = {
    "sum": (
        "chain_of_thought",
        "mece",
        "orthogonal",
        "doubt",
        "correction",
        "uncertainty",
    ),
    "trade": ("expert",),
    "claim": ("falsification",),
    "weather": ("bayesian",),
    "animals": ("multidomain",),
    "gap": ("uncertainty",),
}
"""Strategies that lead to the answer of a topic's problems."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question.

    Attributes:
        topic: Its kind.
        question: Its text, without a strategy.
        numbers: Its digits in order (-1: unknown).
        words: Its words that matter: goods, sides, animals and the one asked for.
    """

    topic: Topic
    question: str
    numbers: tuple[int, ...]
    words: tuple[str, ...] = ()

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names of the strategies it can be solved with."""
        return STRATEGIES_OF[self.topic]

    def prompt(self, strategy: str | None) -> str:
        """The question, with a strategy asked for in words or none."""
        return f"{BY_NAME[strategy].words}: {self.question}" if strategy else self.question


def draw_problem(topic: Topic, rng: random.Random) -> Problem:
    """One problem of a topic."""
    if topic == "weather":
        while True:
            # Each side's marks sum to one digit, and no side wins by nothing.
            marks = tuple(rng.randint(0, 9) for _ in range(4))
            first, second = marks[0] + marks[1], marks[2] + marks[3]
            if first != second and max(first, second) <= 9:
                break
        text = f"rain {marks[0]} {marks[1]} sun {marks[2]} {marks[3]}."
        return Problem(topic, text, marks, SIDES)
    if topic == "animals":
        found = tuple(rng.choice(ANIMALS) for _ in range(3))
        asked = rng.choice(found)
        counts = _digits(rng, 3)
        text = " ".join(f"{n} {a}" for n, a in zip(counts, found, strict=True))
        return Problem(topic, f"{text}. count {asked}.", counts, (*found, asked))
    if topic == "claim":
        numbers = _digits(rng, rng.randint(LEAST, MOST - 1))
        total = sum(numbers) % 10
        claim = total if rng.random() < 0.5 else (total + rng.randint(1, 9)) % 10
        return Problem(topic, f"add {_join(numbers)}, is it {claim}?", (*numbers, claim))
    numbers = _digits(rng, rng.randint(LEAST, MOST))
    if topic == "trade":
        goods = rng.choice(tuple(EXPERTS))
        return Problem(topic, f"add {_join(numbers)} {goods}.", numbers, (goods,))
    if topic == "gap":
        place = rng.randrange(1, len(numbers))
        numbers = (*numbers[:place], -1, *numbers[place + 1 :])
    return Problem(topic, f"add {_join(numbers)}.", numbers)


def topic_of(strategy: str, rng: random.Random) -> Topic:
    """A topic that a strategy solves; uncertainty meets sums with a gap and without by halves."""
    topics = [topic for topic, names in STRATEGIES_OF.items() if strategy in names]
    return rng.choice(topics)


def _digits(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(10) for _ in range(count))


def _join(numbers: tuple[int, ...]) -> str:
    return " ".join(UNKNOWN if n < 0 else str(n) for n in numbers)
