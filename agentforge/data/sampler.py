"""Which items come next: a deterministic mix of shuffled corpora whose position can be saved."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MixSampler:
    """Draws items of several corpora by weight, each corpus without repeats until it is used up.

    Args:
        sizes: Items by corpus name.
        seed: Seed of the mix and of every corpus order.
    """

    def __init__(self, sizes: Mapping[str, int], seed: int) -> None:
        self.sizes = dict(sizes)
        self.seed = seed
        self._rng = np.random.default_rng(seed)
        self._used = dict.fromkeys(self.sizes, 0)
        self._order: dict[str, tuple[int, NDArray[np.int64]]] = {}

    def draw(self, weights: Mapping[str, float], count: int) -> list[tuple[str, int]]:
        """The next `count` items as (corpus, index).

        Args:
            weights: Share of each corpus; names without items are not allowed.
            count: Items.
        """
        names = sorted(n for n, w in weights.items() if w > 0)
        shares = np.array([weights[n] for n in names], dtype=np.float64)
        counts = self._rng.multinomial(count, shares / shares.sum())
        return [
            (name, self._next(name))
            for name, n in zip(names, counts, strict=True)
            for _ in range(int(n))
        ]

    def _next(self, name: str) -> int:
        epoch, place = divmod(self._used[name], self.sizes[name])
        kept = self._order.get(name)
        if kept is None or kept[0] != epoch:
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode()), epoch])
            kept = (epoch, rng.permutation(self.sizes[name]))
            self._order[name] = kept
        self._used[name] += 1
        return int(kept[1][place])

    @property
    def drawn(self) -> int:
        """Items drawn so far."""
        return sum(self._used.values())

    def state(self) -> dict[str, Any]:
        """The cursor, as JSON."""
        return {"rng": self._rng.bit_generator.state, "used": dict(self._used)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._rng.bit_generator.state = state["rng"]
        self._used = {name: int(state["used"].get(name, 0)) for name in self.sizes}
