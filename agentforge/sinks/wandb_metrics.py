"""The Weights & Biases names of Phase 1, and the mapping from events to names of all phases."""

from __future__ import annotations

import math
from collections.abc import Iterable

from agentforge.config.schema import SPECIALTIES
from agentforge.events import (
    CurriculumStage,
    EvalDone,
    Event,
    GateChecked,
    GenerationDone,
    Progress,
    ResourceSample,
    StepDone,
)
from agentforge.sinks.wandb_metric import Metric
from agentforge.sinks.wandb_phase2 import PHASE2_METRICS
from agentforge.sinks.wandb_phase3 import PHASE3_METRICS, quietstar_step
from agentforge.sinks.wandb_phase4 import PHASE4_METRICS, bitnet_step

Value = float | dict[str, float]


_EXTRA = "StepDone.extra"
_EVAL = "EvalDone"
_GPU = "only with a GPU"
_EXTENDED = "beyond the documented list"

PHASE1_METRICS: tuple[Metric, ...] = (
    # Every logged step.
    Metric("train/step", "optimiser steps taken; x axis of all others", "StepDone.step"),
    Metric("train/epoch", "passes over the model's training items, with fraction", _EXTRA),
    Metric("train/loss", "task loss, nats per target token", "StepDone.loss"),
    Metric("train/perplexity", "exp(train/loss)", "StepDone.loss"),
    Metric("train/learning_rate", "learning rate of the hidden matrices", "StepDone.lr"),
    Metric("train/gradient_norm", "global gradient norm before clipping", "StepDone.grad_norm"),
    Metric("optimizer/muon_lr", "Muon's learning rate after the schedule", "StepDone.lr"),
    Metric("optimizer/grokfast_lambda", "share of the slow gradient added", _EXTRA),
    Metric(
        "optimizer/slow_gradients_filtered", "gradient tensors the Grokfast filter changed", _EXTRA
    ),
    Metric("act/avg_halting_steps", "mean recursion steps until halting", _EXTRA),
    Metric("act/max_halting_steps", "most recursion steps of a token", _EXTRA),
    Metric("act/min_halting_steps", "fewest recursion steps of a token", _EXTRA),
    Metric("act/halting_variance", "variance of the recursion steps over tokens", _EXTRA),
    Metric("ltm/memory_usage", "share of the memory's write budget used", _EXTRA),
    Metric("ltm/write_operations", "memory writes of the step", _EXTRA),
    Metric("ltm/read_operations", "memory reads of the step", _EXTRA),
    Metric("ltm/avg_surprise_score", "mean norm of the memory's surprise gradient", _EXTRA),
    Metric("system/tokens_per_second", "training tokens a second", "StepDone.tokens_per_s"),
    Metric(
        "system/gpu_memory_used_gb",
        f"memory in use, 10^9 bytes; {_GPU}",
        "ResourceSample.vram_used_bytes",
        optional=True,
    ),
    Metric(
        "system/gpu_memory_cached_gb",
        f"memory the allocator holds, 10^9 bytes; {_GPU}",
        _EXTRA,
        optional=True,
    ),
    Metric(
        "system/gpu_utilization", f"per cent; {_GPU}", "ResourceSample.gpu_percent", optional=True
    ),
    # Every validation.
    Metric("val/loss", "held-out loss, nats per token", _EVAL),
    Metric("val/perplexity", "held-out perplexity", _EVAL),
    Metric("val/gsm8k_accuracy", "GSM8K exact match; only with the dataset", _EVAL, optional=True),
    Metric("val/arc_easy_accuracy", "ARC-Easy; only with the dataset", _EVAL, optional=True),
    Metric("val/piqa_accuracy", "PIQA; only with the dataset", _EVAL, optional=True),
    Metric("curriculum/stage", "stage 1 to 3", "CurriculumStage.stage"),
    Metric("curriculum/dataset_mix", "share of each dataset or skill", "CurriculumStage.mix"),
    Metric(
        "time/epoch_duration_minutes",
        "wall-clock minutes of one curriculum stage, this engine's epoch",
        "time between CurriculumStage and the next one or StageEnded",
    ),
    Metric("time/estimated_completion_hours", "hours still to go", "Progress.eta_s"),
    # The end.
    Metric("final/train_loss", "mean training loss of the last steps", _EVAL),
    Metric("final/val_loss", "held-out loss, nats per token", _EVAL),
    Metric("final/perplexity", "held-out perplexity", _EVAL),
    Metric("final/gsm8k_accuracy", "GSM8K; only with the dataset", _EVAL, optional=True),
    Metric("final/arc_accuracy", "ARC; only with the dataset", _EVAL, optional=True),
    Metric("final/piqa_accuracy", "PIQA; only with the dataset", _EVAL, optional=True),
    Metric("final/total_training_time_hours", "wall-clock hours", _EVAL),
    Metric("final/model_size_mb", "weights on disk, 10^6 bytes", _EVAL),
    Metric("final/total_params", "parameters, tied ones counted once", _EVAL),
    Metric("diversity/avg_halting_steps", "mean recursion steps, common held-out data", _EVAL),
    Metric("diversity/ltm_usage", "memory usage, common held-out data", _EVAL),
    Metric("diversity/inference_time_ms", "milliseconds a token", _EVAL),
    Metric("diversity/model_comparison", "table of the three models", "TableDone"),
    Metric("charts/loss_curve", "line chart of the training loss", "StepDone.loss"),
    Metric("charts/act_distribution", "bar chart of the halting steps", "TableDone"),
    Metric("charts/ltm_heatmap", "table of memory writes by position", "TableDone"),
    # Families that this engine adds.
    Metric("loss/*", f"parts of the training loss; {_EXTENDED}", _EXTRA, optional=True),
    Metric("act/*", f"further halting figures; {_EXTENDED}", _EXTRA, optional=True),
    Metric("ltm/*", f"further memory figures; {_EXTENDED}", _EXTRA, optional=True),
    Metric("gate/*", f"MAG gate: entropy, shares; {_EXTENDED}", _EXTRA, optional=True),
    Metric("optim/*", f"update and filter norms, QK clips; {_EXTENDED}", _EXTRA, optional=True),
    Metric("system/*", f"further figures of the machine; {_EXTENDED}", _EXTRA, optional=True),
    Metric("val/*", f"held-out figures by category or skill; {_EXTENDED}", _EVAL, optional=True),
    Metric("final/*", f"final figures by category or skill; {_EXTENDED}", _EVAL, optional=True),
    Metric("diversity/*", f"further spreads; {_EXTENDED}", _EVAL, optional=True),
    Metric("baseline/*", f"unigram and bigram models; {_EXTENDED}", _EVAL, optional=True),
    Metric("ablation/*", f"figures of the controls; {_EXTENDED}", _EVAL, optional=True),
    Metric("gates/*", f"value of each success metric; {_EXTENDED}", "GateChecked", optional=True),
    Metric("tables/*", f"all other tables; {_EXTENDED}", "TableDone", optional=True),
)

_DECLARED = (*PHASE1_METRICS, *PHASE2_METRICS, *PHASE3_METRICS, *PHASE4_METRICS)
_NAMES = frozenset(m.name for m in _DECLARED)
_FAMILIES = tuple(m.name.removesuffix("*") for m in _DECLARED if m.name.endswith("/*"))
REQUIRED: frozenset[str] = frozenset(m.name for m in PHASE1_METRICS if not m.optional)
"""Names that a complete Phase 1 run emits on any machine."""
REQUIRED_PHASE2: frozenset[str] = frozenset(m.name for m in PHASE2_METRICS if not m.optional)
"""Names that a complete Phase 2 run emits on any machine."""
REQUIRED_PHASE3: frozenset[str] = frozenset(m.name for m in PHASE3_METRICS if not m.optional)
"""Names that a complete Phase 3 run emits on any machine."""
REQUIRED_PHASE4: frozenset[str] = frozenset(m.name for m in PHASE4_METRICS if not m.optional)
"""Names that a complete Phase 4 run emits on any machine."""

ARTIFACT_KINDS = ("checkpoint", "config", "curves")
_PHASE_RUNS = {
    "cognate": "phase1-cognate",
    "cognate.controls": "phase1-cognate",
    "evomerge": "phase2-evomerge",
    "quietstar": "phase3-quietstar",
    "quietstar.controls": "phase3-quietstar",
    "bitnet": "phase4-bitnet",
    "bitnet.controls": "phase4-bitnet",
}
_FILES = {
    "evomerge.champion": "phase2-champion",
    "evomerge.evolution_log": "phase2-evolution-log",
    "quietstar.baked": "phase3-baked-model",
    "quietstar.reasoner": "phase3-reasoning-model",
    "quietstar.dataset": "phase3-reasoning-dataset",
    "bitnet.model": "phase4-compressed-model",
    "bitnet.compression_config": "phase4-compression-config",
}
"""Artefacts with a documented name, by their name in the manifest."""
STEP_METRICS = {"phase2-evomerge": "evolution/generation"}
"""X axis of a W&B run whose metrics do not follow training steps."""
SUMMARY_MODELS = frozenset({"", "base", "all", "champion", "baked", "reasoner", "ternary"})
"""Models whose figures go to the phase's own run instead of one of their own."""


def is_declared(name: str) -> bool:
    """True for a declared name or a member of a declared family."""
    return name in _NAMES or name.startswith(_FAMILIES)


def run_name(phase: str, model: str) -> str:
    """Name of the W&B run of a model.

    The specialists are ``phase1-cognate-model1`` to ``3`` (reasoning, memory, speed); the base and
    figures of no single model go to ``phase1-cognate``; a control gets a run of its own name.
    """
    prefix = _PHASE_RUNS.get(phase, phase)
    if model in SUMMARY_MODELS:
        return prefix
    ordinals: dict[str, str] = {name: f"model{i}" for i, name in enumerate(SPECIALTIES, start=1)}
    return f"{prefix}-{ordinals.get(model, model)}"


def artifact_name(phase: str, model: str, kind: str) -> str:
    """Name of an artefact: ``phase1-model1-checkpoint``; the base's is ``phase1-base-checkpoint``.

    Args:
        phase: Phase that made it.
        model: A specialty, or another model's name.
        kind: One of `ARTIFACT_KINDS`.

    Raises:
        ValueError: Another kind.
    """
    if kind not in ARTIFACT_KINDS:
        raise ValueError(f"artefact kind {kind!r} is not one of {ARTIFACT_KINDS}")
    whole = _PHASE_RUNS.get(phase, phase)
    owner = run_name(phase, model).removeprefix(whole).lstrip("-")
    return f"{whole.partition('-')[0]}-{owner or model or 'base'}-{kind}"


def file_artifact(name: str) -> str | None:
    """The documented name of an artefact of the manifest; None when it has none."""
    return _FILES.get(name)


def metrics_of(event: Event) -> dict[str, Value]:
    """The metrics an event carries by itself; empty for events that carry none.

    Tables, charts and times between events are made by the sink.
    """
    match event:
        case StepDone() if event.phase.startswith("quietstar"):
            return dict(quietstar_step(event))
        case StepDone() if event.phase.startswith("bitnet"):
            return dict(bitnet_step(event))
        case StepDone():
            return {
                "train/step": event.step,
                "train/loss": event.loss,
                "train/perplexity": math.exp(event.loss) if event.loss < 700 else math.inf,
                "train/learning_rate": event.lr,
                "train/gradient_norm": event.grad_norm,
                "optimizer/muon_lr": event.lr,
                "system/tokens_per_second": event.tokens_per_s,
                **event.extra,
            }
        case GenerationDone():
            return {
                "evolution/generation": event.generation,
                "evolution/best_fitness": event.best_fitness,
                "evolution/avg_fitness": event.avg_fitness,
                "evolution/worst_fitness": event.worst_fitness,
                "evolution/fitness_std": event.fitness_std,
                "evolution/champion_fitness": event.champion_fitness,
                "evolution/diversity": event.diversity,
                "time/generation_duration_seconds": event.wall_s,
                **event.extra,
            }
        case EvalDone():
            return {event.name: event.value}
        case CurriculumStage():
            return {"curriculum/stage": event.stage, "curriculum/dataset_mix": dict(event.mix)}
        case Progress() if event.eta_s >= 0 and event.unit == "generations":
            return {"time/estimated_completion_minutes": event.eta_s / 60}
        case Progress() if event.eta_s >= 0:
            return {"time/estimated_completion_hours": event.eta_s / 3600}
        case ResourceSample():
            return _of_resources(event)
        case GateChecked() if event.value is not None:
            return {f"gates/{event.name}": event.value}
        case _:
            return {}


def _of_resources(event: ResourceSample) -> dict[str, Value]:
    found: dict[str, Value] = {}
    if event.vram_used_bytes is not None:
        found["system/gpu_memory_used_gb"] = event.vram_used_bytes / 1e9
    if event.gpu_percent is not None:
        found["system/gpu_utilization"] = event.gpu_percent
    return found


def undeclared(names: Iterable[str]) -> set[str]:
    """Those of the names that nothing declares."""
    return {name for name in names if not is_declared(name)}
