"""The machine's limits as contestants: reading what a case reads, multiplying what it multiplies.

A call cannot be faster than the slower of the two: ``limit = max(read, multiply)``. Reading is
measured on a block of exactly the case's size, so it comes from the level of cache the weights come
from.
"""

from __future__ import annotations

from types import ModuleType

import torch

from bench.kernels.cases import Case
from bench.kernels.contestant import MissingPeerError
from bench.kernels.ours import load_extension

PREFETCHES = (0, 1024, 4096)
"""Bytes; what reads fastest differs between processors and levels of cache."""
_SAMPLE = 1 << 24
"""Multiply-accumulates at least in a measurement of the multiplier (6 us with tiles, to 160 us)."""


class Read:
    """Reads the packed weights of a case, nothing else."""

    versions = isa = ""

    def __init__(self, extension: str | None = None, isa: str | None = None) -> None:
        self._extension: ModuleType = load_extension(extension, isa)
        if not hasattr(self._extension, "measure_read"):
            raise MissingPeerError("the installed extension measures no limits: build it again")
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._prefetch = 0

    def supports(self, case: Case) -> bool:
        """All that reads anything."""
        return case.weight_bytes >= 512 * case.threads

    def prepare(self, case: Case) -> float | None:
        """Make the block and find the prefetch distance that reads it fastest."""
        size = case.weight_bytes * case.copies
        if self._memory.numel() != size:
            self._memory = torch.full((size,), 1, dtype=torch.uint8)
        repeats = case.copies * max(1, (4 << 20) // size)
        best: dict[int, float] = {}
        for _ in range(5):
            for prefetch in PREFETCHES:
                self._prefetch = prefetch
                taken = self.run(case, repeats)
                best[prefetch] = min(best.get(prefetch, taken), taken)
        self._prefetch = min(best, key=lambda prefetch: best[prefetch])
        return None

    def run(self, case: Case, repeats: int) -> float:
        """Seconds of reading ``repeats`` matrices, all copies in turn (a multiple of them)."""
        seconds: float = self._extension.measure_read(
            self._memory.data_ptr(),
            self._memory.numel(),
            self._prefetch,
            case.threads,
            max(1, repeats // case.copies),
        )
        return seconds


class Multiply:
    """Does as many int8 multiply-accumulates as a case, in registers."""

    versions = isa = ""

    def __init__(self, extension: str | None = None, isa: str | None = None) -> None:
        self._extension: ModuleType = load_extension(extension, isa)

    def supports(self, case: Case) -> bool:
        """All that multiplies, where the level's instruction is known."""
        return case.multiplies > 0 and self._extension.measure_multiply(1, 1) > 0.0

    def prepare(self, case: Case) -> float | None:
        """Nothing to set up."""
        return None

    def run(self, case: Case, repeats: int) -> float:
        """Seconds of the multiplications of ``repeats`` calls."""
        wanted = case.multiplies * repeats
        done = max(wanted, _SAMPLE)
        seconds: float = self._extension.measure_multiply(done, case.threads, case.m)
        return seconds * wanted / done
