"""One training or evaluation item, before it becomes token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Category = Literal["math", "code", "qa", "commonsense", "language", "world"]


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer, or plain text.

    Attributes:
        prompt: What a person would type; empty for plain text.
        answer: What the model shall say, or the plain text.
        dataset: Registry name, or the skill of the built-in world.
        category: What the curriculum's mixes count.
        choices: Candidate answers of a choice task (ARC, PIQA, ...), the gold one included.
        gold: Index of the right choice; -1 when there are none.
        difficulty: Size of the problem where known (numbers to add, digits to recall); 0: unknown.
        group: What other examples share with this one, such as a passage with many questions;
            a group falls into one split as a whole. Empty: the example stands alone.
    """

    prompt: str
    answer: str
    dataset: str
    category: Category
    choices: tuple[str, ...] = ()
    gold: int = -1
    difficulty: int = 0
    group: str = ""


def prompt_text(prompt: str) -> str:
    """The one chat template, for both tokenizers; plain text has an empty prompt."""
    return f"Q: {prompt}\nA:" if prompt else ""


def answer_text(example: Example) -> str:
    """What follows the prompt; the end-of-text token comes behind it."""
    return f" {example.answer}" if example.prompt else example.answer
