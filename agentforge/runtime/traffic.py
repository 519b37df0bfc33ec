"""Bytes a token touches, and how long this machine takes to read so many: the limit of decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from agentforge_kernels import PackedTernary
from agentforge_kernels.native import extension
from torch import Tensor

from agentforge.runtime.plan import (
    Attend,
    DecodePlan,
    DeferredWeight,
    Embed,
    Linear,
    Remember,
    Step,
)
from agentforge.runtime.states import BlockedCaches

PREFETCHES = (0, 1024, 4096)
"""Bytes read ahead; what reads fastest differs between processors and levels of cache."""


def token_bytes(plan: DecodePlan, caches: BlockedCaches, context: int) -> int:
    """Bytes one token reads and writes when nobody halts early, recursion's repeats counted.

    Weights once each time they are used; of the caches what is seen; of a memory its map, momentum
    and the map of the chunk's start read, map and momentum written. Vectors between the steps are
    not counted: they stay in the first-level cache.

    Args:
        plan: The model.
        caches: Its caches, one sequence.
        context: Tokens read before this one.
    """
    total = _bytes(plan.prelude, caches, context) + _bytes(plan.head, caches, context)
    recursion = plan.recursion
    if recursion is not None:
        inside = sum(_bytes(block, caches, context) for block in recursion.blocks)
        total += recursion.passes * inside
        total += recursion.steps * _bytes(recursion.update, caches, context)
        total += (recursion.steps - 1) * _bytes(recursion.halt, caches, context)
    return total


def _bytes(steps: Sequence[Step], caches: BlockedCaches, context: int) -> int:
    total = 0
    for step in steps:
        match step:
            case Linear():
                total += weight_bytes(step)
            case Attend():
                element = caches.keys[step.cache].element_size()
                scales = 8 * step.kv_heads if caches.key_scales else 0
                seen = min(context + 1, step.window)
                total += seen * (element * (step.k.width + step.v.width) + scales)
            case Remember():
                total += 5 * 4 * step.width**2
            case Embed():
                total += 4 * step.out.width
            case _:
                pass
    return total


def weight_bytes(step: Linear) -> int:
    """Bytes of a matrix and its scales as the dense kernels read them."""
    weight, rows, columns = step.weight, step.out.width, step.src.width
    if isinstance(weight, Tensor):
        return weight.nbytes
    ternary = isinstance(weight, PackedTernary) or (
        isinstance(weight, DeferredWeight) and weight.kind == "ternary"
    )
    # A scale a row in float32.
    return rows * columns // (4 if ternary else 1) + 4 * rows


def read_seconds(size: int, threads: int, rounds: int = 7) -> float:
    """Shortest time of reading so many bytes, again and again, from whatever cache holds them.

    Args:
        size: Bytes, 512 a thread at least.
        threads: Threads that share the reading.
        rounds: Attempts for each distance of prefetching.

    Raises:
        RuntimeError: The native extension was not built.
    """
    if extension is None:
        raise RuntimeError("the native extension was not built: it measures the machine's limit")
    memory = torch.ones(max(size, 512 * threads), dtype=torch.uint8)
    repeats = max(1, (8 << 20) // memory.numel())
    return min(
        float(extension.measure_read(memory.data_ptr(), memory.numel(), prefetch, threads, repeats))
        / repeats
        for _ in range(rounds)
        for prefetch in PREFETCHES
    )
