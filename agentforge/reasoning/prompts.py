"""How a teacher model is asked for examples."""

from __future__ import annotations

from agentforge.data.thinking_tokens import THINKING_END, THINKING_START
from agentforge.reasoning.strategies import Strategy

TOPICS = (
    "arithmetic word problems",
    "everyday planning",
    "reading a short table",
    "cause and effect",
    "money and change",
    "time and calendars",
    "simple physics of daily life",
    "comparing two options",
    "short logic puzzles",
    "finding an error in an argument",
)
"""Told to the teacher in turn, so that calls do not repeat each other."""


def request_text(strategy: Strategy, count: int, number: int) -> str:
    """The request for `count` examples of one strategy.

    Args:
        strategy: The strategy.
        count: Examples wanted.
        number: Number of the call: chooses the topic.
    """
    topic = TOPICS[number % len(TOPICS)]
    return (
        f"Write {count} reasoning examples on {topic}. In every one the reasoning must "
        f"{strategy.instruction}.\n"
        "Reply with a JSON array only. Each element is an object with the keys "
        '"prompt" (the question), "reasoning", "answer" (short, and not part of the reasoning), '
        '"difficulty" ("easy", "medium" or "hard") and "topic".\n'
        f'"reasoning" starts with {THINKING_START}{strategy.token}, then has 20 to 120 words, then '
        f"ends with {THINKING_END}. Use each of these tokens exactly once and no other token in "
        "square or angle brackets. All questions differ from each other. "
        f"This is call {number + 1}: do not repeat common examples."
    )
