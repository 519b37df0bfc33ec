"""The six techniques by name: which pair each belongs to, and which bit chooses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PairName = Literal["interpolation", "task_arithmetic", "selection"]
TechniqueName = Literal["linear", "slerp", "dare", "ties", "franken", "dfs"]


@dataclass(frozen=True, slots=True)
class Technique:
    """One of the six.

    Attributes:
        name: In configuration, reports and metrics.
        title: As the documents write it.
        pair: The decision it is one answer to.
        bit: 0 or 1: which answer.
        source: The paper, or where the definition comes from.
    """

    name: TechniqueName
    title: str
    pair: PairName
    bit: int
    source: str


TECHNIQUES: tuple[Technique, ...] = (
    Technique("linear", "Linear", "interpolation", 0, "arXiv 2203.05482"),
    Technique("slerp", "SLERP", "interpolation", 1, "Shoemake 1985"),
    Technique("dare", "DARE", "task_arithmetic", 0, "arXiv 2311.03099"),
    Technique("ties", "TIES", "task_arithmetic", 1, "arXiv 2306.01708"),
    Technique("franken", "FrankenMerge", "selection", 0, "mergekit, arXiv 2403.13257"),
    Technique("dfs", "DFS", "selection", 1, "inverse variance within each model"),
)
PAIRS: tuple[PairName, ...] = ("interpolation", "task_arithmetic", "selection")


def technique(pair: PairName, bit: int) -> Technique:
    """The technique a bit chooses.

    Raises:
        KeyError: The bit is neither 0 nor 1.
    """
    for found in TECHNIQUES:
        if found.pair == pair and found.bit == bit:
            return found
    raise KeyError(f"{pair} has no technique {bit}")
