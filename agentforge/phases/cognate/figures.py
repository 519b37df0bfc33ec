"""The final figures of every model as events, under the names of the mission's W&B plan."""

from __future__ import annotations

import math
from collections.abc import Iterator

from agentforge.events import EvalDone
from agentforge.phases.cognate.results import Results
from agentforge.phases.cognate.stages import BASE

PHASE = "cognate"


def final_figures(results: Results) -> Iterator[EvalDone]:
    """Final and diversity figures of the base and the three specialists, and of the controls."""
    for name, measured in results.measured.items():
        parts = list(measured.results)
        loss, tokens = measured.loss(parts)
        trained = results.models[name]
        yield _figure(
            name, "final/train_loss", float(trained.metadata["train_loss"]), trained.steps
        )
        yield _figure(name, "final/val_loss", loss, tokens)
        yield _figure(name, "final/perplexity", math.exp(loss), tokens)
        yield _figure(name, "final/total_training_time_hours", results.hours, 1)
        yield _figure(name, "final/model_size_mb", results.file_bytes[name] / 1e6, 1)
        yield _figure(name, "final/total_params", float(results.count.total), 1)
        for part, found in measured.results.items():
            yield _figure(name, f"final/{part}_exact_match", found.accuracy, len(found.correct))
        if name != BASE:
            profile = measured.profile
            steps = profile.halting_steps
            yield _figure(name, "diversity/avg_halting_steps", steps, tokens)
            yield _figure(name, "diversity/ltm_usage", profile.memory_usage, tokens)
            yield _figure(name, "diversity/inference_time_ms", measured.ms_per_token, 1)
        yield from _benchmarks(results, name)
    for name, measured in results.ablations.items():
        for part, found in measured.results.items():
            yield _figure(name, f"ablation/{part}_exact_match", found.accuracy, len(found.correct))


def _benchmarks(results: Results, name: str) -> Iterator[EvalDone]:
    """Benchmarks of real records that are present."""
    found = results.tasks.get(name)
    if found is None:
        return
    if found.gsm8k:
        flexible = found.gsm8k.flexible
        yield _figure(name, "final/gsm8k_accuracy", flexible.value, flexible.n, flexible.stderr)
    short = {"arc_easy": "final/arc_accuracy", "piqa": "final/piqa_accuracy"}
    for task, result in found.choices.items():
        raw = result.raw
        yield _figure(name, short.get(task, f"final/{task}_accuracy"), raw.value, raw.n, raw.stderr)


def _figure(model: str, name: str, value: float, n: int, stderr: float = float("nan")) -> EvalDone:
    return EvalDone(
        phase=PHASE, model=model, name=name, value=value, n=n, split="report", stderr=stderr
    )
