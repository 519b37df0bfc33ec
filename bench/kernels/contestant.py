"""What takes part in the benchmark, and the inputs all share."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.kernels.cases import Case

T = TypeVar("T", np.int8, np.float32)

CHECKED_TOKENS = 4
WEIGHT_SCALE = 0.02


class MissingPeerError(Exception):
    """The peer's package is not installed, or lacks what is needed; the message says which."""


class Contestant(Protocol):
    """Somebody who can do (some of) the cases.

    Attributes:
        versions: Of the software that computes.
        isa: Level of instruction set of our kernels; empty for others.
    """

    versions: str
    isa: str

    def supports(self, case: Case) -> bool:
        """Whether this contestant can do a case."""

    def prepare(self, case: Case) -> float | None:
        """Set up weights and inputs; the product's relative error, or None: nothing to check."""

    def run(self, case: Case, repeats: int) -> float:
        """Seconds of ``repeats`` calls."""


@lru_cache(maxsize=1)
def trits(rows: int, columns: int) -> NDArray[np.int8]:
    """The weights of a shape, int8 in {-1, 0, 1}; the same in every process."""
    generator = np.random.default_rng(rows * 131071 + columns)
    return generator.integers(-1, 2, (rows, columns), dtype=np.int8)


@lru_cache(maxsize=1)
def weights(rows: int, columns: int) -> NDArray[np.float32]:
    """The same weights in float32, times ``WEIGHT_SCALE``."""
    return trits(rows, columns).astype(np.float32) * np.float32(WEIGHT_SCALE)


def inputs(tokens: int, columns: int) -> NDArray[np.float32]:
    """Activations, float32 ``[tokens, columns]``; the same in every process."""
    generator = np.random.default_rng(tokens * 8191 + columns)
    return generator.standard_normal((tokens, columns), dtype=np.float32)


def masked(values: NDArray[T], per_cent: int, blocks: tuple[int, int]) -> NDArray[T]:
    """A copy with so many per cent of its blocks set to zero, at random, always the same ones."""
    rows, columns = (-(-size // block) for size, block in zip(values.shape, blocks, strict=True))
    count = rows * columns
    zero = np.zeros(count, bool)
    zero[np.random.default_rng(per_cent).permutation(count)[: count * per_cent // 100]] = True
    mask = np.kron(zero.reshape(rows, columns), np.ones(blocks, bool))
    return np.where(mask[: values.shape[0], : values.shape[1]], values.dtype.type(0), values)


def relative_error(y: NDArray[np.float32], x: NDArray[np.float32], w: NDArray[np.float32]) -> float:
    """Length of ``y - x @ w.T`` over the length of ``x @ w.T``, over the first tokens."""
    count = min(CHECKED_TOKENS, len(x))
    exact = x[:count] @ w.T
    return float(np.linalg.norm(y[:count] - exact) / np.linalg.norm(exact))
