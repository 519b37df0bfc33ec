"""How long a token takes, side by side: models take turns, so that the machine's mood cancels."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from agentforge.model.language_model import CognateLM
from agentforge.model.linear import Projection
from agentforge.model.packed_linear import DequantisedProjection

BURST = 8
"""Tokens one model decodes before the next takes its turn."""
Step = Callable[[int, int], None]
"""Reads a token at a position."""


@dataclass(frozen=True, slots=True)
class TokenTime:
    """Microseconds of one token.

    Attributes:
        median: Over all timed tokens.
        low, high: Tenth and ninetieth percentile.
        n: Timed tokens.
    """

    median: float
    low: float
    high: float
    n: int


def time_tokens(
    starts: Mapping[str, Callable[[], Step]],
    tokens: int,
    vocab_size: int,
    rounds: int,
    context: int = 0,
) -> dict[str, TokenTime]:
    """Decode the same tokens with several models, a burst of `BURST` by each in turn.

    Bursts, because turns of one token throw every model out of the caches before it comes again:
    one that would stay there when it is alone is then charged for reading its weights from memory
    (25M parameters in two bits: 1.7 ms instead of 0.7). The first token of a burst is not counted.

    Args:
        starts: Begins a new sequence of a model; what it gives reads one token.
        tokens: Tokens of a sequence.
        vocab_size: Ids are below it.
        rounds: Sequences, after one more that warms up and is not counted.
        context: Tokens each sequence has read when it begins.

    Returns:
        Times by name.
    """
    found: dict[str, list[float]] = {name: [] for name in starts}
    for turn in range(rounds + 1):
        steps = {name: start() for name, start in starts.items()}
        for first in range(context, context + tokens, BURST):
            burst = range(first, min(first + BURST, context + tokens))
            for name, step in steps.items():
                for position in burst:
                    began = time.perf_counter()
                    step((7 * position + turn) % vocab_size, position)
                    if turn and position > first:
                        found[name].append(1e6 * (time.perf_counter() - began))
    result = {}
    for name, times in found.items():
        median, low, high = (float(v) for v in np.percentile(times, [50, 10, 90]))
        result[name] = TokenTime(median, low, high, len(times))
    return result


def one_by_one(model: CognateLM) -> CognateLM:
    """A copy whose projections of one input are products of their own.

    Training stacks them into one matrix at every call, which for a single token costs more than
    the products: it would be no fair opponent.
    """
    alone = copy.deepcopy(model).eval()
    for name, module in list(alone.named_modules()):
        if isinstance(module, Projection) and module.plain:
            parent, _, leaf = name.rpartition(".")
            layer = DequantisedProjection(module.weight.detach(), None, 0.0, quantise_input=False)
            setattr(alone.get_submodule(parent), leaf, layer)
    return alone
