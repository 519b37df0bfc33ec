"""Token by token from a plan's executor: sampling with the usual knobs, streamed, cancellable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agentforge.thinking.sampling import draws

CHUNK = 64
"""Tokens of a prompt that are read in one call."""


class Executor(Protocol):
    """What runs a plan (`agentforge.runtime.reference` says how)."""

    def run(
        self, ids: Sequence[int], sequence: Sequence[int], position: Sequence[int],
        wanted: Sequence[int],
    ) -> Tensor:  # fmt: skip
        """Read tokens; logits of the wanted ones."""
        ...

    def reset(self, sequence: int) -> None:
        """Forget a sequence."""
        ...


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


class TokenSequence:
    """One sequence in an executor: what it has read, and where it is.

    Args:
        executor: Who runs the model.
        context: Positions at most.
        slot: Its number in the executor.
    """

    def __init__(self, executor: Executor, context: int, slot: int = 0) -> None:
        self.executor = executor
        self.context = context
        self.slot = slot
        self.ids: list[int] = []
        executor.reset(slot)

    @property
    def room(self) -> int:
        """Positions that are left."""
        return self.context - len(self.ids)

    def restart(self) -> None:
        """Forget everything."""
        self.executor.reset(self.slot)
        self.ids = []

    def read(self, ids: Sequence[int]) -> Tensor:
        """Read tokens, in calls of `CHUNK`; logits (vocabulary,) of what follows the last.

        Raises:
            ValueError: No token, or more than there is room for.
        """
        if not 0 < len(ids) <= self.room:
            raise ValueError(f"{len(ids)} tokens; allowed: 1 to {self.room}")
        logits: Tensor | None = None
        for start in range(0, len(ids), CHUNK):
            part = list(ids[start : start + CHUNK])
            first = len(self.ids)
            last = start + len(part) == len(ids)
            logits = self.executor.run(
                part,
                [self.slot] * len(part),
                list(range(first, first + len(part))),
                [len(part) - 1] if last else [],
            )
            self.ids += part
        assert logits is not None
        return logits[0]


def generate(
    sequence: TokenSequence,
    prompt: Sequence[int],
    options: SamplingOptions,
    *,
    stop_ids: Sequence[int],
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[int]:
    """Read a prompt and yield new tokens as they are chosen.

    The token that stops is not yielded. The last token that is yielded has not been read yet; the
    next prompt begins with it (`TokenSequence.ids` holds what was read).

    Args:
        sequence: Goes on where it is.
        prompt: Tokens to read first, one at least.
        options: How to choose.
        stop_ids: Tokens that end it.
        cancelled: Asked before every token.
    """
    logits = sequence.read(prompt)
    luck = draws(options.seed, [0], options.max_new_tokens)[0] if options.temperature else None
    for count in range(options.max_new_tokens):
        if cancelled is not None and cancelled():
            return
        uniform = None if luck is None else float(luck[count])
        token = choose(logits.double().numpy(), options, sequence.ids, uniform)
        if token in stop_ids:
            return
        yield token
        if not sequence.room:
            return
        logits = sequence.read([token])


def choose(
    logits: NDArray[np.float64],
    options: SamplingOptions,
    seen: Sequence[int],
    uniform: float | None,
) -> int:
    """The next token.

    Args:
        logits: (vocabulary,).
        options: How to choose.
        seen: Tokens that count as repeated.
        uniform: A number in [0, 1); None takes the most likely token.
    """
    scores = logits.copy()
    if options.repetition_penalty != 1 and len(seen):
        again = np.unique(np.asarray(seen))
        values = scores[again]
        penalty = options.repetition_penalty
        scores[again] = np.where(values > 0, values / penalty, values * penalty)
    if options.forbidden:
        scores[list(options.forbidden)] = -np.inf
    if uniform is None:
        return int(scores.argmax())
    scores /= options.temperature
    if options.top_k and options.top_k < len(scores):
        scores[scores < np.partition(scores, -options.top_k)[-options.top_k]] = -np.inf
    p = np.exp(scores - scores.max())
    p /= p.sum()
    if options.top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= options.top_p]] = 0.0
    cumulative = np.cumsum(p)
    found = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(found, len(p) - 1)
