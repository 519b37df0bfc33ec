"""The final figures of Phase 4 as events, under the names of the mission's W&B plan."""

from __future__ import annotations

import math
from collections.abc import Iterator

from agentforge.events import EvalDone
from agentforge.phases.bitnet.outputs import zero_weights
from agentforge.phases.bitnet.quantise import PHASE
from agentforge.phases.bitnet.results import MB, Outcome
from agentforge.phases.bitnet.sizes import stored_bytes

MODEL = "ternary"


def final_figures(outcome: Outcome) -> Iterator[EvalDone]:
    """Figures of the compression, matrix by matrix, then of the comparison."""
    packed, quantised = outcome.packed, outcome.quantised
    for number, (module, matrix) in enumerate(packed.directory.ternary.items(), 1):
        count = matrix.rows * matrix.columns
        zeros, stored = zero_weights(matrix) / count, stored_bytes(matrix)
        yield _figure(MODEL, "compression/layer", float(number), 1)
        yield _figure(MODEL, "compression/original_params", float(count), count)
        yield _figure(MODEL, "compression/quantized_params", float(count), count)
        yield _figure(MODEL, "compression/sparsity", zeros, count)
        yield _figure(MODEL, "compression/compression_ratio", 4 * count / stored, count)
        if module in packed.zeros:
            share = packed.zeros[module]
            yield _figure(MODEL, "calibration/layer_activations", share, count, "train")
    n, drop = outcome.before.items, outcome.drop
    weights = packed.ternary_weights
    before, after = outcome.losses
    kept = float(outcome.params - weights)
    yield _figure(MODEL, "compression/preserved_params", kept, outcome.params)
    yield _figure(MODEL, "evaluation/accuracy_before", outcome.before.accuracy, n)
    yield _figure(MODEL, "evaluation/accuracy_after", outcome.after.accuracy, n)
    yield _figure(
        MODEL, "evaluation/accuracy_drop", outcome.before.accuracy - outcome.after.accuracy, n
    )
    yield _figure(MODEL, "evaluation/accuracy_drop_percent", 100 * drop.mean, n)
    yield _figure(MODEL, "evaluation/perplexity_before", math.exp(before), n)
    yield _figure(MODEL, "evaluation/perplexity_after", math.exp(after), n)
    yield _figure(MODEL, "evaluation/perplexity_increase", math.exp(after - before) - 1, n)
    yield _figure(MODEL, "evaluation/model_size_before_mb", outcome.source_bytes / MB, 1)
    yield _figure(MODEL, "evaluation/model_size_after_mb", packed.weight_bytes / MB, 1)
    yield _figure(MODEL, "evaluation/compression_ratio", outcome.ratio, 1)
    yield _figure(MODEL, "evaluation/sparsity_overall", packed.zero_share, weights)
    zeros = round(packed.zero_share * weights)
    yield _figure(MODEL, "evaluation/zero_params", float(zeros), weights)
    yield _figure(MODEL, "evaluation/nonzero_params", float(weights - zeros), weights)
    yield _figure(MODEL, "evaluation/twin_agreement", outcome.agreement.same, n)
    yield _figure(MODEL, "final/compression_ratio", outcome.ratio, 1)
    yield _figure(MODEL, "final/accuracy_drop", drop.mean, n)
    yield _figure(MODEL, "final/sparsity", packed.zero_share, weights)
    if outcome.speed is not None:
        speed = outcome.speed
        timed = speed.after.n
        before_ms, after_ms = speed.before.median / 1000, speed.after.median / 1000
        yield _figure(MODEL, "evaluation/inference_time_before_ms", before_ms, timed)
        yield _figure(MODEL, "evaluation/inference_time_after_ms", after_ms, timed)
        yield _figure(MODEL, "evaluation/inference_speedup", speed.ratio, timed)
        yield _figure(MODEL, "final/inference_speedup", speed.ratio, timed)
    yield _figure(MODEL, "final/total_time_hours", outcome.hours, 1)
    yield _figure(MODEL, "final/fine_tuning_needed", float(quantised.steps > 0), 1)


def _figure(model: str, name: str, value: float, n: int, split: str = "report") -> EvalDone:
    return EvalDone(phase=PHASE, model=model, name=name, value=value, n=n, split=split)
