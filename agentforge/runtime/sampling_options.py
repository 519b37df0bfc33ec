"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: Only so many of the most likely tokens; 0: all.
        top_p: Only the most likely tokens that together reach this probability (arXiv 1904.09751).
        repetition_penalty: What the logits of tokens seen before are divided by when positive and
            multiplied by when negative (CTRL, arXiv 1909.05858); 1: nothing.
        seed: Of the draws; equal seeds give equal text.
        max_new_tokens: Tokens at most.
        forbidden: Tokens never chosen.

    Raises:
        ValueError: A value that means nothing.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_new_tokens: int = 40
    forbidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
        ):
            if not good:
                raise ValueError(f"{name} {getattr(self, name)}; allowed: {allowed}")
