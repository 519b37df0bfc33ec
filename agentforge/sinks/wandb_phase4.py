"""The Weights & Biases names of Phase 4, declared once."""

from __future__ import annotations

from agentforge.events import StepDone
from agentforge.sinks.wandb_metric import Metric

_EXTRA = "StepDone.extra"
_EVAL = "EvalDone"
_TABLE = "TableDone"
_RUNTIME = "needs the compiled extension"

PHASE4_METRICS: tuple[Metric, ...] = (
    Metric("calibration/sample", "held-out items of the sensitivity scan", _EVAL),
    Metric("calibration/layer_activations", "share of zero int8 inputs of a matrix", _EVAL),
    Metric("calibration/layer_loss_rise", "nats a token when it alone is ternary", _EVAL),
    Metric("calibration/scale_factors", "mean magnitude of a matrix's weights", _EVAL),
    Metric("compression/layer", "number of a matrix, in the model's order", _EVAL),
    Metric("compression/original_params", "weights of a matrix", _EVAL),
    Metric("compression/quantized_params", "of these ternary", _EVAL),
    Metric("compression/preserved_params", "parameters that are not ternary", _EVAL),
    Metric("compression/sparsity", "zeros of a matrix", _EVAL),
    Metric("compression/compression_ratio", "FP32 bytes of a matrix over stored ones", _EVAL),
    Metric("compression/layers_compressed", "ternary matrices after a stage", _EVAL),
    Metric("compression/total_layers", "matrices that may become ternary", _EVAL),
    Metric("compression/progress", "share of them whose stage is done", _EVAL),
    Metric("compression/stage_loss_rise", "held-out nats a token after a stage", _EVAL),
    Metric("compression/breakdown", "table: bytes by role", _TABLE),
    Metric("finetune/step", "optimiser steps", "StepDone.step"),
    Metric("finetune/epoch", "passes over the items drawn, with fraction", _EXTRA),
    Metric("finetune/loss", "distillation loss of a batch", "StepDone.loss"),
    Metric("finetune/learning_rate", "after the schedule", "StepDone.lr"),
    Metric("finetune/label_loss", "cross-entropy with the labels, nats a token", _EXTRA),
    Metric("finetune/kl", "teacher to student, nats a token", _EXTRA),
    Metric("finetune/strength", "mean strength of the quantisation", _EXTRA),
    Metric("finetune/stage", "running stage", _EXTRA),
    Metric("finetune/accuracy", "search split, mean over tasks", _EVAL),
    Metric("finetune/accuracy_recovery", "share of the Phase 3 model's", _EVAL, optional=True),
    Metric("evaluation/accuracy_before", "report split, mean over tasks", _EVAL),
    Metric("evaluation/accuracy_after", "the packed model's", _EVAL),
    Metric("evaluation/accuracy_drop", "points", _EVAL),
    Metric("evaluation/accuracy_drop_percent", "of the accuracy before", _EVAL, optional=True),
    Metric("evaluation/perplexity_before", "calibration items", _EVAL),
    Metric("evaluation/perplexity_after", "the packed model's", _EVAL),
    Metric("evaluation/perplexity_increase", "relative", _EVAL),
    Metric("evaluation/inference_time_before_ms", f"a token; {_RUNTIME}", _EVAL, optional=True),
    Metric("evaluation/inference_time_after_ms", f"a token; {_RUNTIME}", _EVAL, optional=True),
    Metric("evaluation/inference_speedup", f"their ratio; {_RUNTIME}", _EVAL, optional=True),
    Metric("evaluation/model_size_before_mb", "weight file, 10^6 bytes", _EVAL),
    Metric("evaluation/model_size_after_mb", "packed weight file", _EVAL),
    Metric("evaluation/compression_ratio", "their ratio", _EVAL),
    Metric("evaluation/sparsity_overall", "zeros among the ternary weights", _EVAL),
    Metric("evaluation/zero_params", "how many", _EVAL),
    Metric("evaluation/nonzero_params", "how many are not", _EVAL),
    Metric("evaluation/twin_agreement", "packed model and FP16 twin", _EVAL),
    Metric("final/compression_ratio", "as evaluation/", _EVAL),
    Metric("final/accuracy_drop", "relative", _EVAL, optional=True),
    Metric("final/inference_speedup", _RUNTIME, _EVAL, optional=True),
    Metric("final/sparsity", "as evaluation/sparsity_overall", _EVAL),
    Metric("final/total_time_hours", "wall clock of the phase", _EVAL),
    Metric("final/fine_tuning_needed", "1: steps were taken", _EVAL),
    Metric("charts/compression_by_layer", "bars: bytes by role", _TABLE),
    Metric("charts/sparsity_distribution", "bars: zeros by matrix", _TABLE),
    Metric("charts/accuracy_recovery", "line: KL from the teacher by step", "StepDone.extra"),
)


def bitnet_step(event: StepDone) -> dict[str, float]:
    """The metrics of one optimiser step of the fine-tuning."""
    return {
        "finetune/step": float(event.step),
        "finetune/loss": event.loss,
        "finetune/learning_rate": event.lr,
        "train/gradient_norm": event.grad_norm,
        "system/tokens_per_second": event.tokens_per_s,
        **event.extra,
    }
