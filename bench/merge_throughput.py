"""Merge throughput: ``python -m bench.merge_throughput [--quick]``.

GB/s of parameters (FP32 bytes of one child over the median time) of each technique and of all eight
combos, for a model of the `demo` and of the `full` shapes, beside the bandwidth of the machine
measured in the same rounds: a copy of 256 MB, bytes read and written. ``share_of_limit``: the bytes
a technique must read and write (sources, base where it takes deltas, child) at the speed of that
copy, over its time. Writes ``bench/results/merge_throughput.csv``; ``--quick`` prints only.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from agentforge.config.load import load_config
from agentforge.merge.apply import merge
from agentforge.merge.combo import COMBOS
from agentforge.merge.dare import dare
from agentforge.merge.franken import first_slots, franken
from agentforge.merge.groups import block_places
from agentforge.merge.importance import importance_merge
from agentforge.merge.linear import linear
from agentforge.merge.recipe import EQUAL_PLACES, Recipe, equal_weights
from agentforge.merge.slerp import slerp_all
from agentforge.merge.ties import ties
from agentforge.model.language_model import CognateLM
from bench.kernels.machine import cpu_name

RESULTS = Path(__file__).parent / "results" / "merge_throughput.csv"
COLUMNS = ("op", "model", "threads", "median_ms", "gb_per_s", "share_of_limit", "machine", "torch")
VOCABULARIES = {"smoke": 41, "demo": 41, "full": 50_269}
COPY_BYTES = 256 << 20
THIRDS = (1 / 3, 1 / 3, 1 / 3)
Model = dict[str, Tensor]
Operation = tuple[Callable[[], object], int]
"""What is timed, and the bytes it reads and writes at least."""


def family(preset: str) -> tuple[Model, list[Model]]:
    """A base of a preset's shapes and three models around it."""
    torch.manual_seed(0)
    model = CognateLM(load_config(preset=preset, env={}).config.model, VOCABULARIES[preset])
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return base, [{n: t + 0.02 * torch.randn_like(t) for n, t in base.items()} for _ in range(3)]


def operations(base: Model, models: list[Model]) -> dict[str, Operation]:
    """Every technique on all matrices, and every combo on the whole model."""
    child = sum(t.numel() * t.element_size() for t in base.values())
    matrices = [n for n, t in base.items() if t.ndim >= 2]

    def on_matrices(one: Callable[[str, list[Tensor]], Tensor]) -> Callable[[], object]:
        return lambda: [one(n, [m[n] for m in models]) for n in matrices]

    def on_model(recipe: Recipe) -> Callable[[], object]:
        return lambda: merge(base, models, recipe)

    found: dict[str, Operation] = {
        "linear": (on_matrices(lambda _, x: linear(x, THIRDS)), 4 * child),
        "slerp": (on_matrices(lambda _, x: slerp_all(x, EQUAL_PLACES)), 4 * child),
        "dare": (on_matrices(lambda n, x: dare(base[n], x, THIRDS, 0.9, 1, n)), 5 * child),
        "ties": (on_matrices(lambda n, x: ties(base[n], x, THIRDS, 0.9)), 5 * child),
        "franken": (on_matrices(lambda _, x: franken(x, 1)), 2 * child),
        "dfs": (on_matrices(lambda _, x: importance_merge(x)), 4 * child),
    }
    blocks = len(set(block_places(base).values()))
    for combo in COMBOS:
        recipe = Recipe(
            combo, equal_weights(), EQUAL_PLACES, 0.9, 1.0, 0.2, first_slots(blocks), 1, 0.5, 1.0
        )
        found[f"combo {combo.digits}"] = (on_model(recipe), 5 * child)
    return found


def measure(preset: str, threads: int, rounds: int, copy_bytes: int) -> list[dict[str, object]]:
    """Rows of one model: rounds of all operations and the copy, interleaved."""
    torch.set_num_threads(threads)
    base, models = family(preset)
    child = sum(t.numel() * t.element_size() for t in base.values())
    todo = operations(base, models)
    source, target = torch.zeros(copy_bytes // 4), torch.zeros(copy_bytes // 4)
    todo["copy"] = (lambda: target.copy_(source), 2 * copy_bytes)
    times: dict[str, list[float]] = {name: [] for name in todo}
    for turn in range(rounds + 1):
        for name, (run, _) in todo.items():
            began = time.perf_counter()
            run()
            if turn:  # the first round touches everything once
                times[name].append(time.perf_counter() - began)
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    limit = 2 * copy_bytes / middle["copy"]
    rows: list[dict[str, object]] = []
    for name, (_, moved) in todo.items():
        size = 2 * copy_bytes if name == "copy" else child
        rows.append(
            {
                "op": name,
                "model": preset,
                "threads": threads,
                "median_ms": round(1000 * middle[name], 3),
                "gb_per_s": round(size / middle[name] / 1e9, 3),
                "share_of_limit": round(moved / middle[name] / limit, 3),
                "machine": f"{cpu_name()}, {len(os.sched_getaffinity(0))} CPUs",
                "torch": torch.__version__,
            }
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="merge throughput")
    parser.add_argument("--quick", action="store_true", help="two rounds, print only")
    quick = parser.parse_args().quick
    rows = []
    for preset in ("demo", "full"):
        for threads in sorted({1, min(2, len(os.sched_getaffinity(0)))}):
            rows += measure(preset, threads, 2 if quick else 7, COPY_BYTES)
    for row in rows:
        print(
            f"{row['model']:5} {row['threads']} thread(s) {row['op']:10} {row['median_ms']:>10} ms "
            f"{row['gb_per_s']:>8} GB/s {float(str(row['share_of_limit'])):>6.0%} of the limit"
        )
    if not quick:
        with RESULTS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
