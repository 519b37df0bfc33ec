"""A packed model against torch, side by side in one run: decode by context length, and prefill."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from agentforge_kernels.native import extension

from agentforge.formats.packed import PackedModel, packed_module
from agentforge.model.decode import Decoder
from agentforge.model.language_model import CognateLM
from agentforge.runtime.generate import TokenSequence
from agentforge.runtime.latency import Step, time_tokens
from agentforge.runtime.lower import lower_packed
from agentforge.runtime.native import NativeExecutor

TIMED = 24
"""Tokens timed at one context length, each by every variant in turn."""
PREFILL = 256


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the model, at one context length.

    Attributes:
        name: ``torch_fp32``, ``kernels`` (ternary layers in torch's decoder) or ``native``.
        threads: Threads it may use.
        context: Tokens in the caches before the first that was timed.
        us_per_token: Median microseconds of a token.
        low, high: Tenth and ninetieth percentile.
    """

    name: str
    threads: int
    context: int
    us_per_token: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Prefill:
    """Reading a prompt at once.

    Attributes:
        name: As `Variant`.
        threads: Threads.
        tokens: Of the prompt.
        ms: Median milliseconds until the logits of its last token: the time to the first token.
    """

    name: str
    threads: int
    tokens: int
    ms: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """All of it.

    Attributes:
        variants: Decode times.
        prefills: Prefill times.
        speedup: Time of a token of the others over the native executor's, by name and threads, at
            the shortest context.
        forms: In which form the native executor computes each matrix, by name.
        weight_bytes: Bytes of weights as they lie in its memory.
    """

    variants: list[Variant]
    prefills: list[Prefill]
    speedup: dict[str, float]
    forms: dict[str, str]
    weight_bytes: int


def bench_model(
    packed: PackedModel, *, threads: Sequence[int], contexts: Sequence[int], rounds: int
) -> BenchResult:
    """Time a model.

    Args:
        packed: The model.
        threads: Numbers of threads, one after the other.
        contexts: Context lengths; those that do not fit are left out.
        rounds: Repetitions.

    Raises:
        RuntimeError: The native extension was not built.
    """
    if extension is None:
        raise RuntimeError("the native extension was not built: there is nothing to compare")
    plan = lower_packed(packed)
    executor = NativeExecutor(plan)
    modules = {
        "torch_fp32": packed_module(packed, floats=True),
        "kernels": packed_module(packed),
    }
    limit = packed.shapes.context
    lengths = sorted({c for c in contexts if c + TIMED <= limit} or {0})
    before = torch.get_num_threads()
    variants: list[Variant] = []
    prefills: list[Prefill] = []
    try:
        for count in threads:
            torch.set_num_threads(count)
            for context in lengths:
                variants += _decode(packed, executor, modules, count, context, rounds)
            prefills += _prefill(packed, executor, modules, count, min(PREFILL, limit), rounds)
    finally:
        torch.set_num_threads(before)
    first = {(v.name, v.threads): v.us_per_token for v in variants if v.context == lengths[0]}
    speedup = {
        f"{name}, {count} thread{'s' if count > 1 else ''}": time_us / first["native", count]
        for (name, count), time_us in first.items()
        if name != "native"
    }
    return BenchResult(variants, prefills, speedup, dict(executor.forms), executor.weight_bytes())


def _decode(
    packed: PackedModel,
    executor: NativeExecutor,
    modules: dict[str, CognateLM],
    threads: int,
    context: int,
    rounds: int,
) -> list[Variant]:
    """Every token by all variants in turn."""
    starts: dict[str, Callable[[], Step]] = {"native": lambda: _native(packed, executor, context)}
    for name, module in modules.items():
        starts[name] = partial(_torch, module, packed, context)
    found = time_tokens(starts, TIMED, packed.vocab_size, rounds, context)
    return [Variant(n, threads, context, t.median, t.low, t.high) for n, t in found.items()]


def _native(packed: PackedModel, executor: NativeExecutor, context: int) -> Step:
    sequence = TokenSequence(executor, packed.shapes.context)
    if context:
        sequence.read([p % packed.vocab_size for p in range(context)])

    def step(token: int, position: int) -> None:
        executor.run([token], [0], [position], [0])

    return step


def _torch(module: CognateLM, packed: PackedModel, context: int) -> Step:
    decoder = Decoder(module, packed.behaviour, 1)
    for position in range(context):
        decoder.step(torch.tensor([position % packed.vocab_size]))

    def step(token: int, _: int) -> None:
        decoder.step(torch.tensor([token]))

    return step


def _prefill(
    packed: PackedModel,
    executor: NativeExecutor,
    modules: dict[str, CognateLM],
    threads: int,
    tokens: int,
    rounds: int,
) -> list[Prefill]:
    ids = [p % packed.vocab_size for p in range(tokens)]
    whole = torch.tensor([ids])

    def native() -> None:
        TokenSequence(executor, packed.shapes.context).read(ids)

    def in_torch(module: CognateLM) -> Callable[[], None]:
        @torch.no_grad()
        def read() -> None:
            answer = module(whole, packed.behaviour).answer[:, -1:]
            module.embedding.logits(answer)

        return read

    ways = {"native": native, **{name: in_torch(module) for name, module in modules.items()}}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, read in ways.items():
            began = time.perf_counter()
            read()
            if turn:
                times[name].append(1000 * (time.perf_counter() - began))
    return [
        Prefill(name, threads, tokens, statistics.median(values)) for name, values in times.items()
    ]
