"""DecodePlan: a model as flat lists of steps over static buffers, for every executor the same.

A plan works on *tokens*: each has a sequence and a position, and all tokens of a call run through a
step together. One new token of every sequence is decoding, many tokens of one sequence are prefill,
and both are the same steps; attention and memory take the tokens one after the other, which makes
them causal. Every buffer is float32 ``[tokens, width]``.

    prelude                                 once
    repeat (recursion):
        u = a h + latent + b answer         first time: u = a h
        blocks of the core, u -> latent
        update                              answer += W norm(latent)
        halt                                logit of each token; halted ones keep latent and answer
    head                                    of the tokens whose logits are wanted

A decoder without recursion (Hugging Face) has a prelude and a head only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from agentforge_kernels import Int8Weight, PackedTernary
from torch import Tensor

Weight = PackedTernary | Int8Weight | Tensor
"""Ternary, int8 with a scale a row, or float32 or bfloat16 ``[rows, columns]``."""


@dataclass(frozen=True, slots=True)
class DeferredWeight:
    """A matrix that is read when an executor is built, so that a large model never lies in memory
    twice.

    Attributes:
        rows, columns: Its shape.
        kind: What its parts are.
        parts: Reads it: blocks of rows from the first to the last, all but the last a multiple of
            64 rows high. A ternary one is a single part.
    """

    rows: int
    columns: int
    kind: Literal["ternary", "int8"]
    parts: Callable[[], Iterator[PackedTernary | Int8Weight]]

    def load(self) -> PackedTernary | Int8Weight:
        """All of it at once."""
        parts = list(self.parts())
        if len(parts) == 1:
            return parts[0]
        matrices = [p for p in parts if isinstance(p, Int8Weight)]
        weight = torch.cat([p.weight for p in matrices])
        return Int8Weight(weight, torch.cat([p.scale.expand(p.rows) for p in matrices]))


def loaded(weight: Weight | DeferredWeight) -> Weight:
    """The weight itself."""
    return weight.load() if isinstance(weight, DeferredWeight) else weight


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a buffer: `width` columns from `start`."""

    buffer: str
    start: int
    width: int


@dataclass(frozen=True, slots=True)
class Embed:
    """Row of the table of every token: ids -> out."""

    table: Int8Weight | Tensor
    out: Span


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm, float32: src -> out."""

    src: Span
    weight: Tensor
    eps: float
    out: Span


@dataclass(frozen=True, slots=True)
class Linear:
    """Product with a matrix: src -> out, plus `residual`, plus `bias`, through `activation`.

    For ternary and int8 weights the source is quantised to int8 by its largest magnitude.
    """

    name: str
    src: Span
    weight: Weight | DeferredWeight
    out: Span
    residual: Span | None = None
    bias: Tensor | None = None
    activation: Literal["none", "sigmoid"] = "none"
    zero_activations: float = 0.0


@dataclass(frozen=True, slots=True)
class Attend:
    """Rotary positions, cache and window attention: q, k, v -> out.

    Heads lie one behind the other; `kv_heads` divides `heads` (grouped queries). Cache `cache`
    holds the last `window` positions of every sequence.
    """

    q: Span
    k: Span
    v: Span
    out: Span
    heads: int
    kv_heads: int
    window: int
    cache: int


@dataclass(frozen=True, slots=True)
class Remember:
    """One step of a Titans memory a token: raw projections and rates -> read.

    `raw` holds keys, queries and values, 3 M wide, before the causal filter; `rates` the three
    logits of writing, momentum and forgetting (see `agentforge.model.memory`).
    """

    raw: Span
    rates: Span
    out: Span
    filter: Tensor
    """(3, 3 M): weights of this token and the two before it."""
    width: int
    chunk: int
    budget: float
    state: int


@dataclass(frozen=True, slots=True)
class Blend:
    """MAG: mixed += gate * (read - mixed)."""

    mixed: Span
    gate: Span
    read: Span


@dataclass(frozen=True, slots=True)
class Activate:
    """Gated feed-forward: out = act(gate) * up, act is squared ReLU or SiLU."""

    gate: Span
    up: Span
    out: Span
    squared_relu: bool


Step = Embed | Norm | Linear | Attend | Remember | Blend | Activate


@dataclass(frozen=True, slots=True)
class Recursion:
    """The recursive core.

    Attributes:
        steps: Recursion steps at most.
        latent_steps: Passes through the blocks a step.
        threshold: A token halts once its cumulative halting probability reaches it.
        inject_prelude, inject_answer: (D,) factors of h and answer in u.
        blocks: Steps of each block; they read and write the buffer ``x``. Caches count from 0 in
            every pass: pass p uses cache ``first_cache + p * len(blocks) + block``.
        update: From ``latent`` to the buffer ``answer`` it adds to.
        halt: From ``answer`` to the buffer ``logit``.
        first_cache: Number of the first cache of the first pass.
    """

    steps: int
    latent_steps: int
    threshold: float
    inject_prelude: Tensor
    inject_answer: Tensor
    blocks: tuple[tuple[Step, ...], ...]
    update: tuple[Step, ...]
    halt: tuple[Step, ...]
    first_cache: int

    @property
    def passes(self) -> int:
        """Passes through the blocks when nobody halts."""
        return self.steps * self.latent_steps


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Keys and values of one layer: `window` positions of `heads` heads, `width` wide together."""

    window: int
    width: int
    heads: int


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """State of one memory layer: three maps `width` x `width`, and what the filter still needs."""

    width: int


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """A model ready to be run.

    Attributes:
        buffers: Width of every buffer by name; ``x`` is the residual stream.
        prelude: Steps from ids to ``x``.
        recursion: The core; None: there is none, and ``answer`` is ``x``.
        head: Steps from ``answer`` to ``logits``.
        caches: Of all attention layers, those of all passes included.
        memories: Of all memory layers.
        rope_cos, rope_sin: (context, head width) fp32.
        width: Of the residual stream.
        vocab_size: Width of ``logits``.
        context: Positions at most.
    """

    buffers: dict[str, int]
    prelude: tuple[Step, ...]
    recursion: Recursion | None
    head: tuple[Step, ...]
    caches: tuple[CacheShape, ...]
    memories: tuple[MemoryShape, ...]
    rope_cos: Tensor
    rope_sin: Tensor
    width: int
    vocab_size: int
    context: int

    def linears(self) -> list[Linear]:
        """Every matrix product, in the order of execution."""
        steps = [*self.prelude]
        if self.recursion is not None:
            for block in self.recursion.blocks:
                steps += block
            steps += [*self.recursion.update, *self.recursion.halt]
        return [s for s in (*steps, *self.head) if isinstance(s, Linear)]
