"""Token by token from a plan's executor: sampling with the usual knobs, streamed, cancellable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agentforge.runtime.sampling_options import SamplingOptions
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


@runtime_checkable
class SamplingExecutor(Executor, Protocol):
    """One that chooses tokens itself, without coming back to Python between two of them."""

    def generate(
        self, token: int, sequence: int, position: int, seen: Sequence[int],
        options: SamplingOptions, stop_ids: Sequence[int], uniforms: NDArray[np.float64],
    ) -> tuple[list[int], bool]:  # fmt: skip
        """Read a token, choose the next, and so on, one for every uniform number.

        Returns:
            The chosen tokens, and whether one of `stop_ids` ended them.
        """
        ...


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

    def read(self, ids: Sequence[int], *, wanted: bool = True) -> Tensor:
        """Read tokens, in calls of `CHUNK`; logits (vocabulary,) of what follows the last.

        Args:
            ids: One at least.
            wanted: Whether the logits are; else nothing meaningful is given back.

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
                [len(part) - 1] if last and wanted else [],
            )
            self.ids += part
        assert logits is not None
        return logits[0] if wanted else logits


def generate(
    sequence: TokenSequence,
    prompt: Sequence[int],
    options: SamplingOptions,
    *,
    stop_ids: Sequence[int],
    cancelled: Callable[[], bool] | None = None,
    burst: int = 1,
) -> Iterator[int]:
    """Read a prompt and yield new tokens as they are chosen.

    The token that stops is not yielded. The last token that is yielded has not been read yet; the
    next prompt begins with it (`TokenSequence.ids` holds what was read).

    Args:
        sequence: Goes on where it is.
        prompt: Tokens to read first, one at least.
        options: How to choose.
        stop_ids: Tokens that end it.
        cancelled: Asked before every burst.
        burst: Tokens chosen before any is yielded, where the executor chooses itself; who stops
            listening in the middle of one leaves the rest of it read.

    Raises:
        ValueError: No prompt, or more than there is room for.
    """
    if not 0 < len(prompt) <= sequence.room:
        raise ValueError(f"{len(prompt)} tokens; allowed: 1 to {sequence.room}")
    if len(prompt) > 1:
        sequence.read(prompt[:-1], wanted=False)
    pending = prompt[-1]
    luck = draws(options.seed, [0], options.max_new_tokens)[0]
    count = 0
    while count < options.max_new_tokens and sequence.room:
        if cancelled is not None and cancelled():
            break
        most = min(burst, sequence.room, options.max_new_tokens - count)
        chosen, ended = _next_tokens(sequence, pending, options, stop_ids, luck[count:][:most])
        yield from chosen
        if ended:
            return
        pending = chosen[-1]
        count += len(chosen)
    if not count and sequence.room:
        sequence.read([pending], wanted=False)


def _next_tokens(
    sequence: TokenSequence,
    pending: int,
    options: SamplingOptions,
    stop_ids: Sequence[int],
    uniforms: NDArray[np.float64],
) -> tuple[list[int], bool]:
    """Read what is pending and choose; one token where the executor only reads."""
    executor = sequence.executor
    if isinstance(executor, SamplingExecutor):
        position = len(sequence.ids)
        # A copy of the whole context a token costs as much as the token where the model is small.
        seen = sequence.ids if options.repetition_penalty != 1 else ()
        chosen, ended = executor.generate(
            pending, sequence.slot, position, seen, options, stop_ids, uniforms
        )
        # All but the last were read, and the last too when it led to a token that stops.
        sequence.ids += [pending, *chosen][: len(chosen) + ended]
        return chosen, ended
    logits = sequence.read([pending])
    token = choose(
        logits.double().numpy(),
        options,
        sequence.ids,
        float(uniforms[0]) if options.temperature else None,
    )
    return ([], True) if token in stop_ids else ([token], False)


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
