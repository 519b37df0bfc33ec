"""Training throughput: our model beside a plain decoder of the same width and executed depth.

    python -m bench.bench_training [--shape demo|full] [--rounds N] [--threads N]
    pytest bench/bench_training.py --benchmark-only

Both take real optimiser steps on the same items, in turn; the ratio is the median over rounds of
the two neighbouring times, so that another job on the machine disturbs both alike. The plain
decoder has one block of its own for every block evaluation of ours (prelude + core x recursion
steps), plain causal attention, the same embedding, feed-forward and optimiser; it has no memory, no
recursion, no halting, no attention statistics. The parts of our step are timed alone, forward and
backward, on the batch's own shapes; ``rest`` is what they leave of the whole step.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agentforge.hardware import summarise
from bench.plain_decoder import executed_blocks
from bench.training_case import Bench, make_bench
from bench.training_parts import PARTS, one_recursion_step, part_shares

RESULTS = Path(__file__).parent / "results" / "training.csv"
TARGET = 0.5
"""Tokens/s of our model as a share of the plain decoder's."""
SHAPES = ("demo", "full")


def seconds(action: Callable[[], object]) -> float:
    """Clock time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def alternate(bench: Bench, rounds: int) -> tuple[list[float], list[float]]:
    """Step times of ours and plain, taken in turn after one warm-up step each."""
    bench.step_ours()
    bench.step_plain()
    ours, plain = [], []
    for _ in range(rounds):
        ours.append(seconds(bench.step_ours))
        plain.append(seconds(bench.step_plain))
    return ours, plain


@dataclass(frozen=True, slots=True)
class Result:
    """One run.

    Attributes:
        ours, plain: Tokens/s, medians.
        ratio: Median over rounds of the plain step's time over that of our step beside it.
        shares: Part of our step -> share of its time; sums to 1.
        later_passes: Share of our step spent because of recursion steps 2 to R (all of it: blocks,
            answers, halting, early heads), from steps of the same model with one recursion step.
    """

    ours: float
    plain: float
    ratio: float
    shares: dict[str, float]
    later_passes: float


def run(bench: Bench, rounds: int) -> Result:
    """Measure both contestants and the parts of ours."""
    ours, plain = alternate(bench, rounds)
    ratio = statistics.median(p / o for o, p in zip(ours, plain, strict=True))
    repeats = max(3, rounds // 2)
    return Result(
        ours=bench.tokens / statistics.median(ours),
        plain=bench.tokens / statistics.median(plain),
        ratio=ratio,
        shares=part_shares(bench, repeats),
        later_passes=1 - one_recursion_step(bench, repeats),
    )


COLUMNS = (
    "date",
    "shape",
    "model",
    "params",
    "block_evaluations",
    "tokens_per_step",
    "tokens_per_s",
    "ratio",
    *(f"share_{p}" for p in PARTS),
    "share_later_passes",
    "threads",
    "machine",
    "versions",
)


def write_rows(bench: Bench, result: Result, path: Path) -> None:
    """Append one row a contestant; the header is written once."""
    hardware = summarise()
    common = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "shape": bench.shape,
        "block_evaluations": executed_blocks(bench.config.model),
        "tokens_per_step": bench.tokens,
        "threads": torch.get_num_threads(),
        "machine": f"{hardware.cpu}, {platform.system()}",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
    }
    shares = {f"share_{name}": f"{share:.3f}" for name, share in result.shares.items()}
    rows = [
        common
        | shares
        | {
            "model": "ours",
            "params": _params(bench.ours.model),
            "tokens_per_s": round(result.ours),
            "ratio": f"{result.ratio:.3f}",
            "share_later_passes": f"{result.later_passes:.3f}",
        },
        common
        | {
            "model": "plain decoder",
            "params": _params(bench.plain),
            "tokens_per_s": round(result.plain),
            "ratio": "1.000",
        },
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    """Run from the command line and append to the results."""
    parser = argparse.ArgumentParser(description="training tokens/s beside a plain decoder")
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = make_bench(options.shape)
    result = run(bench, options.rounds)
    write_rows(bench, result, options.output)
    print(
        f"{bench.shape}: {bench.tokens} tokens a step in {len(bench.batches)} micro-batches, "
        f"{executed_blocks(bench.config.model)} block evaluations, {options.threads} thread(s)"
    )
    print(f"ours          {_params(bench.ours.model):>12,} params {result.ours:>9,.0f} tokens/s")
    print(f"plain decoder {_params(bench.plain):>12,} params {result.plain:>9,.0f} tokens/s")
    verdict = "met" if result.ratio >= TARGET else "MISSED"
    print(f"ratio {result.ratio:.3f} (target >= {TARGET}: {verdict})")
    for name, share in result.shares.items():
        print(f"  {name:<10} {100 * share:5.1f} %")
    print(f"  because of recursion steps 2..R: {100 * result.later_passes:.1f} %")
    print(f"appended to {options.output}")


def test_training_step_of_ours(benchmark: Any) -> None:
    """pytest-benchmark: one optimiser step of our model at demo shape."""
    torch.set_num_threads(1)
    bench = make_bench("demo")
    benchmark.group = "training step, demo shape"
    benchmark.extra_info["tokens"] = bench.tokens
    benchmark.pedantic(bench.step_ours, rounds=5, warmup_rounds=1)


def test_training_step_of_a_plain_decoder(benchmark: Any) -> None:
    """pytest-benchmark: one optimiser step of the plain decoder at demo shape."""
    torch.set_num_threads(1)
    bench = make_bench("demo")
    benchmark.group = "training step, demo shape"
    benchmark.extra_info["tokens"] = bench.tokens
    benchmark.pedantic(bench.step_plain, rounds=5, warmup_rounds=1)


if __name__ == "__main__":
    main()
