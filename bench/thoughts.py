"""Thoughts and answers a second: ``python -m bench.thoughts [--quick]``.

Samples thoughts of a fixed length with the reference decoder, by questions at once and by thoughts
a question: in parallel (the prompt is read once, all thoughts are rows of one batch) and one after
the other; and thoughts at positions of a text (token level), all at once and one by one. All cells
of a model are interleaved in rounds. Writes ``bench/results/thoughts.csv``; ``--quick`` prints
only.
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

from agentforge.config.load import load_config
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.thinking.sampling import sample
from agentforge.thinking.token_level import TokenThoughts, sample_thoughts
from bench.kernels.machine import cpu_name

RESULTS = Path(__file__).parent / "results" / "thoughts.csv"
COLUMNS = (
    "model",
    "parameters",
    "form",
    "questions",
    "thoughts",
    "tokens_per_thought",
    "thoughts_per_s",
    "answers_per_s",
    "parallel_over_sequential",
    "machine",
    "threads",
    "torch",
)
BATCHES = (1, 8, 64)
COUNTS = (1, 4, 8)
PROMPT, LENGTH, ANSWER = 12, 12, 3
TEXT, PLACES = 48, 4
VOCAB = {"demo": 294, "full": 50_269, "smoke": 294}
ROUNDS = 5


def _answers(model: CognateLM, questions: int, thoughts: int, sequential: bool) -> None:
    """Thoughts with answers on random prompts; nothing ends early."""
    generator = torch.Generator().manual_seed(questions)
    prompts = torch.randint(3, 200, (questions, PROMPT), generator=generator).tolist()
    times, copies = (thoughts, 1) if sequential else (1, thoughts)
    for turn in range(times):
        sample(
            model,
            prompts,
            Behaviour(),
            stop_id=0,
            max_new_tokens=LENGTH + ANSWER,
            temperature=1.0,
            seed=turn,
            copies=copies,
            forbidden=[0],
        )


def _within_text(model: CognateLM, texts: int, thoughts: int, sequential: bool) -> None:
    """Thoughts at places of random texts."""
    generator = torch.Generator().manual_seed(texts)
    ids = torch.randint(3, 200, (texts, TEXT), generator=generator)
    places = (torch.arange(PLACES) * 10 + 5).expand(texts, PLACES)
    extra = TokenThoughts(model, 1, 2)
    for part in places.split(1, dim=1) if sequential else (places,):
        for count in [1] * thoughts if sequential else [thoughts]:
            sample_thoughts(
                model,
                extra,
                ids,
                part,
                Behaviour(),
                thoughts=count,
                length=LENGTH,
                generator=generator,
            )


def measure(
    preset: str, batches: tuple[int, ...], counts: tuple[int, ...], rounds: int
) -> list[dict[str, object]]:
    """One row a form, batch and thought count."""
    config = load_config(preset=preset, env={}).config.model
    torch.manual_seed(0)
    model = CognateLM(config, VOCAB[preset]).eval()
    cells: dict[tuple[str, int, int, bool], Callable[[], None]] = {}
    for batch in batches:
        for count in counts:
            for sequential in (False, True):
                key = ("answer", batch, count, sequential)
                cells[key] = lambda b=batch, c=count, s=sequential: _answers(model, b, c, s)
    for count in counts:
        for sequential in (False, True):
            key = ("text", batches[0], count, sequential)
            cells[key] = lambda c=count, s=sequential: _within_text(model, batches[0], c, s)
    times: dict[tuple[str, int, int, bool], list[float]] = {key: [] for key in cells}
    for turn in range(rounds + 1):
        for key, run in cells.items():
            began = time.perf_counter()
            run()
            if turn or rounds == 1:
                times[key].append(time.perf_counter() - began)
    parameters = sum(p.numel() for p in model.parameters())
    rows: list[dict[str, object]] = []
    for (form, batch, count, sequential), seconds in times.items():
        if sequential:
            continue
        middle = statistics.median(seconds)
        other = statistics.median(times[form, batch, count, True])
        made = batch * count * (PLACES if form == "text" else 1)
        rows.append(
            {
                "model": preset,
                "parameters": parameters,
                "form": form,
                "questions": batch,
                "thoughts": count,
                "tokens_per_thought": LENGTH + (ANSWER if form == "answer" else 0),
                "thoughts_per_s": round(made / middle, 1),
                "answers_per_s": round(batch / middle, 1) if form == "answer" else "",
                "parallel_over_sequential": round(other / middle, 2),
                "machine": f"{cpu_name()}, {len(os.sched_getaffinity(0))} CPUs",
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="thoughts and answers a second")
    parser.add_argument("--quick", action="store_true", help="few cells, print only")
    quick = parser.parse_args().quick
    rows = measure("demo", BATCHES[:2] if quick else BATCHES, COUNTS, 1 if quick else ROUNDS)
    rows += measure("full", BATCHES[:1] if quick else BATCHES[:2], COUNTS[:2], 1 if quick else 3)
    for row in rows:
        print(
            f"{row['model']:5} {row['form']:6} {row['questions']:>3} x {row['thoughts']} thoughts: "
            f"{row['thoughts_per_s']} thoughts/s, {row['answers_per_s'] or '-'} answers/s, "
            f"parallel is {row['parallel_over_sequential']}x as fast as one after the other"
        )
    if not quick:
        with RESULTS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
