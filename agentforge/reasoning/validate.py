"""Whether a text is a usable reasoning example, and if not why: counted, never just dropped."""

from __future__ import annotations

from typing import Literal

from agentforge.data.thinking_tokens import THINKING_END, THINKING_START, THINKING_TOKENS
from agentforge.reasoning.example import ReasoningExample
from agentforge.reasoning.strategies import BY_NAME, BY_TOKEN

Fault = Literal[
    "bad_schema",
    "unknown_strategy",
    "missing_thinking",
    "missing_end",
    "repeated_token",
    "missing_strategy_token",
    "wrong_strategy",
    "empty_reasoning",
    "empty_answer",
    "token_in_text",
    "too_long",
    "duplicate",
]
LONGEST_REASONING = 4_000
"""Characters; the documents' mean is 127 tokens, some 500 characters."""
LONGEST_ANSWER = 1_000
LONGEST_PROMPT = 4_000


def fault_of(example: ReasoningExample) -> Fault | None:
    """Why an example cannot be used; None when it can.

    The form is `[thinking]`, the token of its strategy, text, `[/endthinking]`: each once, nothing
    before or behind, no thinking token in prompt or answer.
    """
    strategy = BY_NAME.get(example.strategy)
    if strategy is None:
        return "unknown_strategy"
    text = example.reasoning.strip()
    if not text.startswith(THINKING_START):
        return "missing_thinking"
    if THINKING_END not in text:
        return "missing_end"
    if text.count(THINKING_START) > 1 or text.count(THINKING_END) > 1:
        return "repeated_token"
    if not text.endswith(THINKING_END):
        return "token_in_text"
    body = text[len(THINKING_START) : -len(THINKING_END)].strip()
    found = [token for token in BY_TOKEN if token in body]
    if not found:
        return "missing_strategy_token"
    if strategy.token not in found or not body.startswith(strategy.token):
        return "wrong_strategy"
    if len(found) > 1 or body.count(strategy.token) > 1:
        return "repeated_token"
    if not body[len(strategy.token) :].strip():
        return "empty_reasoning"
    if not example.answer.strip():
        return "empty_answer"
    if any(token in example.answer or token in example.prompt for token in THINKING_TOKENS):
        return "token_in_text"
    if (
        len(text) > LONGEST_REASONING
        or len(example.answer) > LONGEST_ANSWER
        or len(example.prompt) > LONGEST_PROMPT
    ):
        return "too_long"
    return None


def thought_text(example: ReasoningExample) -> str:
    """The thought without its tokens, for people and for the model's text."""
    text = example.reasoning.strip()[len(THINKING_START) : -len(THINKING_END)].strip()
    return text[len(BY_NAME[example.strategy].token) :].strip()
