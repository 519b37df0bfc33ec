"""Evaluations a second of the merge search: ``python -m bench.merge_evaluations [--quick]``.

Measures models of the `demo` shapes on its search items in 1, 2, ... worker processes side by side
in rounds, and one model of the `full` shapes in one process. Writes ``bench/results/
merge_evaluations.csv``; ``--quick`` prints only.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from pathlib import Path

import torch

from agentforge.config.load import load_config
from agentforge.data.corpus import Corpus, encode
from agentforge.data.splits import Split
from agentforge.data.tokenizers import TextTokenizer
from agentforge.data.world import SKILLS, generate
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.evomerge.evaluator import WorkerEvaluator
from agentforge.phases.evomerge.measuring import Job, Settings
from agentforge.phases.evomerge.worker import Start
from bench.kernels.machine import cpu_name

RESULTS = Path(__file__).parent / "results" / "merge_evaluations.csv"
COLUMNS = (
    "model",
    "parameters",
    "items",
    "tokens",
    "workers",
    "evaluations_per_s",
    "tokens_per_s",
    "machine",
    "torch",
)
ROUNDS = 5
FULL_VOCAB = 50_269


def settings(items: int, tokenizer: TextTokenizer) -> Settings:
    """The demo's search items: the three skills of the built-in world."""
    corpora = {s: encode(s, s, generate(s, "search", items, seed=0), tokenizer, 96) for s in SKILLS}
    held_out: dict[Split, dict[str, Corpus]] = {"search": corpora}
    return Settings(held_out, True, tokenizer.pad_id, 200)


def measure(
    preset: str, vocab_size: int, items: int, workers: list[int], rounds: int
) -> list[dict[str, object]]:
    """One row a number of workers; rounds of all of them are interleaved."""
    config = load_config(preset=preset, env={}).config.model
    torch.manual_seed(0)
    model = CognateLM(config, vocab_size)
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    shared = settings(items, world_tokenizer())
    tokens = sum(len(c.tokens) for c in shared.held_out["search"].values())
    start = Start(os.getpid(), config, vocab_size, shared)
    pools = {n: WorkerEvaluator(start, n, lambda _: None) for n in workers}
    times: dict[int, list[float]] = {n: [] for n in workers}
    try:
        for turn in range(rounds + 1):
            for count, pool in pools.items():
                jobs = [Job(weights, Behaviour(), "search") for _ in range(2 * count)]
                began = time.perf_counter()
                pool.measure(jobs, lambda: None)
                if turn:  # the first round starts the processes
                    times[count].append((time.perf_counter() - began) / len(jobs))
    finally:
        for pool in pools.values():
            pool.close()
    parameters = sum(t.numel() for t in weights.values())
    rows: list[dict[str, object]] = []
    for count, seconds in times.items():
        middle = statistics.median(seconds)
        rows.append(
            {
                "model": preset,
                "parameters": parameters,
                "items": len(SKILLS) * items,
                "tokens": tokens,
                "workers": count,
                "evaluations_per_s": round(1 / middle, 3),
                "tokens_per_s": round(tokens / middle),
                "machine": f"{cpu_name()}, {len(os.sched_getaffinity(0))} CPUs",
                "torch": torch.__version__,
            }
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="evaluations a second of the merge search")
    parser.add_argument("--quick", action="store_true", help="few items, print only")
    quick = parser.parse_args().quick
    counts = [n for n in (1, 2, 4, 8) if n <= len(os.sched_getaffinity(0))]
    demo, full = (12, 2) if quick else (120, 12)
    rows = measure("demo", world_tokenizer().vocab_size, demo, counts, 1 if quick else ROUNDS)
    rows += measure("full", FULL_VOCAB, full, counts, 1 if quick else ROUNDS)
    for row in rows:
        print(
            f"{row['model']:5} {row['parameters']:>11,} parameters, {row['workers']} workers: "
            f"{row['evaluations_per_s']} evaluations/s of {row['items']} items, "
            f"{row['tokens_per_s']:,} tokens/s"
        )
    if not quick:
        with RESULTS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
