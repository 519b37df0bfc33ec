"""A packed model against torch, side by side in one run: decode by context length, and prefill."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from agentforge.formats.packed import PackedModel
from agentforge.model.language_model import CognateLM
from agentforge.runtime.bench_layers import LayerTime, time_layers
from agentforge.runtime.bench_memory import peak_resident
from agentforge.runtime.bench_variants import (
    KERNELS,
    NATIVE,
    NATIVE_BF16,
    TORCH_BF16,
    TORCH_COMPILE,
    TORCH_FP32,
    VARIANTS,
    native_executor,
    native_step,
    torch_model,
    torch_step,
)
from agentforge.runtime.energy import Energy
from agentforge.runtime.generate import TokenSequence
from agentforge.runtime.latency import Step, time_tokens
from agentforge.runtime.native import NativeExecutor
from agentforge.runtime.states import CacheType
from agentforge.runtime.traffic import read_seconds, token_bytes

TIMED = 24
"""Tokens timed at one context length, each by every variant in turn."""
PREFILL = 256
ENERGY_TOKENS = 200


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the model, at one context length.

    Attributes:
        name: ``torch_fp32``, ``torch_bf16`` (eager, keys and values cached), ``torch_compile``
            (float32, what a block does behind its attention), ``kernels`` (ternary layers in
            torch's decoder), ``native_bf16`` (the native executor over bfloat16 weights),
            ``native``.
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
class Limit:
    """What the machine allows: a token cannot be faster than its bytes are read.

    Attributes:
        threads: Threads.
        context: Tokens in the caches.
        bytes: Read or written a token, at all recursion steps.
        limit_us: Time of reading a block of that size again and again.
        share: Of the limit that the native executor reaches, 0 to 1.
    """

    threads: int
    context: int
    bytes: int
    limit_us: float
    share: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """All of it.

    Attributes:
        machine: Name of the processor.
        head: How the output layer is stored, such as ``int8 50,269 x 96``.
        cache: How the native executor keeps keys and values.
        variants: Decode times.
        prefills: Prefill times.
        speedup: Time of a token of the others over the native executor's, by name, at the first
            number of threads and the shortest context.
        speedup_by_threads: The same for every number of threads.
        limits: Share of the machine's limit.
        layers: Of every matrix: form, zeros, time, and the time of the dense form.
        joules_per_token: By variant; empty where the machine does not tell.
        weight_bytes: Bytes of weights as they lie in memory, by native variant.
        peak_bytes: Most resident memory of a process that loads and runs one variant, above that
            of one that has only imported everything; empty when it was not asked for.
        missing: Variants that could not be run, and why.
    """

    machine: str
    head: str
    cache: CacheType
    variants: list[Variant]
    prefills: list[Prefill]
    speedup: dict[str, float]
    speedup_by_threads: dict[int, dict[str, float]]
    limits: list[Limit]
    layers: list[LayerTime]
    joules_per_token: dict[str, float]
    weight_bytes: dict[str, int]
    peak_bytes: dict[str, int]
    missing: dict[str, str]


def bench_model(
    packed: PackedModel,
    *,
    threads: Sequence[int],
    contexts: Sequence[int],
    rounds: int,
    names: Sequence[str] = VARIANTS,
    cache: CacheType = "float32",
    machine: str = "",
    memory: bool = True,
) -> BenchResult:
    """Time a model.

    Args:
        packed: The model.
        threads: Numbers of threads, one after the other.
        contexts: Context lengths; those that do not fit are left out.
        rounds: Repetitions.
        names: Variants; the native one always takes part.
        cache: How the native executor keeps keys and values.
        machine: Name of the processor, for the record.
        memory: Measure the memory of each variant too, in processes of their own.

    Raises:
        PreflightError: The native extension was not built.
    """
    executor = native_executor(packed, NATIVE, cache)
    plan = executor.plan
    executors = {NATIVE: executor}
    if NATIVE_BF16 in names:
        executors[NATIVE_BF16] = native_executor(packed, NATIVE_BF16, cache)
    modules, missing = _modules(packed, names)
    limit = packed.shapes.context
    lengths = sorted({c for c in contexts if c + TIMED <= limit} or {0})
    before = torch.get_num_threads()
    variants: list[Variant] = []
    prefills: list[Prefill] = []
    limits: list[Limit] = []
    try:
        for count in threads:
            torch.set_num_threads(count)
            for context in lengths:
                found = _decode(packed, executors, modules, count, context, rounds)
                variants += found
                size = token_bytes(plan, executor.caches, context + TIMED // 2)
                least = 1e6 * read_seconds(size, count)
                native = next(v for v in found if v.name == NATIVE)
                share = least / native.us_per_token
                limits.append(Limit(count, context, size, least, share))
            prefills += _prefill(packed, executor, modules, count, min(PREFILL, limit), rounds)
        torch.set_num_threads(threads[0])
        layers = time_layers(executor, rounds)
        joules = _joules(packed, executors, modules)
    finally:
        torch.set_num_threads(before)
    by_threads = {
        count: _speedups([v for v in variants if v.threads == count and v.context == lengths[0]])
        for count in threads
    }
    return BenchResult(
        machine=machine,
        head=_head(packed),
        cache=cache,
        variants=variants,
        prefills=prefills,
        speedup=by_threads[threads[0]],
        speedup_by_threads=by_threads,
        limits=limits,
        layers=layers,
        joules_per_token=joules,
        weight_bytes={name: e.weight_bytes() for name, e in executors.items()},
        peak_bytes=_peaks(packed, names, cache) if memory else {},
        missing=missing,
    )


def _modules(
    packed: PackedModel, names: Iterable[str]
) -> tuple[dict[str, CognateLM], dict[str, str]]:
    """The torch variants after their first tokens, and why some cannot be run."""
    modules: dict[str, CognateLM] = {}
    missing: dict[str, str] = {}
    for name in (TORCH_FP32, TORCH_BF16, TORCH_COMPILE, KERNELS):
        if name not in names:
            continue
        module = torch_model(packed, name)
        try:
            torch_step(module, packed, 2)
        except Exception as error:
            # Whatever the compiler of torch trips over: no C++ compiler, no room for its cache.
            if name != TORCH_COMPILE:
                raise
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            modules[name] = module
    return modules, missing


def _peaks(packed: PackedModel, names: Sequence[str], cache: CacheType) -> dict[str, int]:
    idle = peak_resident(None, NATIVE, cache)
    return {name: peak_resident(packed.folder, name, cache) - idle for name in {*names, NATIVE}}


def _head(packed: PackedModel) -> str:
    table = packed.tensors["embedding.table"]
    kind = "float" if isinstance(table, torch.Tensor) else "int8"
    return f"{kind} {packed.vocab_size:,} x {packed.shapes.embedding_rank}, factorised and tied"


def _speedups(found: Sequence[Variant]) -> dict[str, float]:
    native = next(v.us_per_token for v in found if v.name == NATIVE)
    return {v.name: v.us_per_token / native for v in found if v.name != NATIVE}


def _decode(
    packed: PackedModel,
    executors: Mapping[str, NativeExecutor],
    modules: Mapping[str, CognateLM],
    threads: int,
    context: int,
    rounds: int,
) -> list[Variant]:
    """Every token by all variants in turn."""
    starts: dict[str, Callable[[], Step]] = {
        name: partial(native_step, packed, executor, context)
        for name, executor in executors.items()
    }
    for name, module in modules.items():
        starts[name] = partial(torch_step, module, packed, context)
    found = time_tokens(starts, TIMED, packed.vocab_size, rounds, context)
    return [Variant(n, threads, context, t.median, t.low, t.high) for n, t in found.items()]


def _prefill(
    packed: PackedModel,
    executor: NativeExecutor,
    modules: Mapping[str, CognateLM],
    threads: int,
    tokens: int,
    rounds: int,
) -> list[Prefill]:
    ids = [p % packed.vocab_size for p in range(tokens)]
    whole = torch.tensor([ids])

    def native() -> None:
        TokenSequence(executor, packed.shapes.context).read(ids)

    @torch.no_grad()
    def in_torch(module: CognateLM) -> None:
        answer = module(whole, packed.behaviour).answer[:, -1:]
        module.embedding.logits(answer)

    ways: dict[str, Callable[[], None]] = {NATIVE: native}
    ways |= {n: partial(in_torch, m) for n, m in modules.items() if n != TORCH_COMPILE}
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


def _joules(
    packed: PackedModel,
    executors: Mapping[str, NativeExecutor],
    modules: Mapping[str, CognateLM],
) -> dict[str, float]:
    """Energy of the processor a token, by variant; nothing where it does not count it."""
    energy = Energy.of_this_machine()
    if energy is None:
        return {}
    tokens = min(ENERGY_TOKENS, packed.shapes.context)
    starts = {n: partial(native_step, packed, e, 0) for n, e in executors.items()}
    starts |= {n: partial(torch_step, m, packed, 0) for n, m in modules.items()}
    found = {}
    for name, start in starts.items():
        step = start()
        before = energy.joules()
        for position in range(tokens):
            step(position % packed.vocab_size, position)
        found[name] = (energy.joules() - before) / tokens
    return found
