"""What Phase 4 trains and measures on: the thoughts of Phase 3 and the skills of Phase 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agentforge.config.schema import RunConfig
from agentforge.data.corpus import Corpus
from agentforge.data.prepare import Prepared
from agentforge.phases.quietstar.data import THOUGHTS, ReasoningData, prepare_reasoning
from agentforge.reasoning.strategies import STRATEGIES


@dataclass(frozen=True, slots=True)
class BitData:
    """Data of the phase.

    Attributes:
        reasoning: Phase 3's questions and thoughts, over Phase 1's corpora.
        weights: Share of each training corpus in a batch.
        calibration: Held-out items of the search split that losses are compared on.
    """

    reasoning: ReasoningData
    weights: dict[str, float]
    calibration: list[Corpus]


def prepare_bitnet(config: RunConfig, data: Prepared, samples: int) -> BitData:
    """Thoughts and skills by the configured share; calibration items spread evenly over both.

    Skills get equal shares, datasets of records shares by the root of their size, as in Phase 1's
    curriculum.

    Args:
        config: The run.
        data: Phase 1's data.
        samples: Calibration items.

    Raises:
        DataError: The reasoning set cannot be used.
    """
    reasoning = prepare_reasoning(config, data)
    share = config.bitnet.finetune.thoughts
    world = config.data.source == "world"
    sizes = {
        n: 1.0 if world else math.sqrt(len(reasoning.prepared.train[n])) for n in reasoning.replayed
    }
    weights = {n: (1 - share) * size / sum(sizes.values()) for n, size in sizes.items()}
    weights |= {s.name: share / len(STRATEGIES) for s in STRATEGIES}
    held = [reasoning.held_out] + [
        data.held_out["search"][n] for n in reasoning.replayed if n in data.held_out["search"]
    ]
    return BitData(reasoning, weights, _spread(held, samples))


def _spread(corpora: list[Corpus], samples: int) -> list[Corpus]:
    """The first items of every corpus, half of them thoughts."""
    thoughts = [c for c in corpora if c.category == THOUGHTS]
    others = [c for c in corpora if c.category != THOUGHTS]
    found = []
    for group, count in ((thoughts, samples - samples // 2), (others, samples // 2)):
        for corpus in group:
            found.append(_even(corpus, max(1, count // len(group))))
    return found


def _even(corpus: Corpus, count: int) -> Corpus:
    """`count` items at equal distances: the strategies lie one behind the other."""
    step = max(1, len(corpus) // count)
    return corpus.pick(list(range(0, len(corpus), step))[:count])
