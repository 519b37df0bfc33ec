"""The success metrics of Phase 4, on the files that were written and the report split."""

from __future__ import annotations

from agentforge.config.schema import GateConfig, RunConfig
from agentforge.evals.stats import Interval
from agentforge.gates import Gate, declared_gate
from agentforge.phases.bitnet.agreement import Agreement
from agentforge.sizing import category


def bitnet_gates(
    config: RunConfig,
    params: int,
    ratio: float,
    drop: Interval,
    speedup: float | None,
    timed: int,
    zeros: float,
    weights: int,
    agreement: Agreement,
) -> tuple[Gate, ...]:
    """Compression, accuracy, speed, sparsity, agreement of the twin.

    Args:
        config: The run.
        params: Parameters of the model.
        ratio: FP32 weight file over packed weight file, bytes.
        drop: Relative loss of accuracy against the Phase 3 model.
        speedup: Time of a token in FP32 over the packed model's; None: not measured.
        timed: Tokens that were timed.
        zeros: Share of zeros among the ternary weights.
        weights: How many those are.
        agreement: Of packed model and twin.
    """
    limits = config.gates
    least = category(params).least_compression
    return (
        _gate(
            limits, "compression", ratio, ">=", least, params,
            "bytes of the FP32 weight file over those of the packed one",
        ),
        _gate(
            limits, "accuracy_drop", drop.mean, "<", limits.accuracy_drop, drop.n,
            "report split, share of the Phase 3 model's accuracy that was lost, mean over tasks",
        ),
        _gate(
            limits, "speedup", speedup, ">=", limits.speedup, timed,
            "clock, time of a token: the Phase 3 model in FP32 over the packed model, side by side",
        ),
        _gate(
            limits, "sparsity", zeros, ">", limits.sparsity, weights,
            "share of zeros among the ternary weights on disk",
        ),
        _gate(
            limits, "twin_agreement", agreement.same, ">=", limits.twin_agreement,
            agreement.tokens,
            "report split, positions where packed model and FP16 twin (int8 inputs) agree",
        ),
    )  # fmt: skip


def _gate(
    limits: GateConfig,
    name: str,
    value: float | None,
    op: str,
    threshold: float,
    n: int,
    source: str,
) -> Gate:
    full = f"bitnet.{name}"
    return declared_gate(limits.not_in_run, full, value, op, threshold, n, source)
