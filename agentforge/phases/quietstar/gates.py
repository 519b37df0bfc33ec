"""The success metrics of Phase 3, on held-out questions of the report split."""

from __future__ import annotations

from agentforge.config.schema import GateConfig, RunConfig
from agentforge.evals.stats import Interval
from agentforge.gates import Gate, declared_gate


def baking_gates(
    config: RunConfig,
    convergence: float,
    given: int,
    given_items: int,
    usage: float,
    items: int,
) -> list[Gate]:
    """What the baked model does when it is left alone with a prompt."""
    limits = config.gates
    return [
        _gate(
            limits,
            "convergence",
            convergence,
            ">=",
            limits.convergence,
            items,
            "baked model, free generations: opens, right strategy, closes, answers; mean of ten",
        ),
        _gate(
            limits,
            "given_right_thought",
            float(given),
            ">=",
            float(limits.given_strategies),
            given_items,
            f"baked model, strategies with {limits.given_thought:g} right answers where the "
            "thought is right",
        ),
        _gate(
            limits,
            "thinking_usage",
            usage,
            ">=",
            limits.thinking_usage,
            items,
            "reasoning model, free generations that open a thought",
        ),
    ]


def gain_gates(config: RunConfig, baked: Interval, champion: Interval) -> list[Gate]:
    """Accuracy at the deployment temperature, same questions and draws."""
    limits = config.gates
    source = "reasoning model minus baked model, deployment temperature, paired questions"
    over = "reasoning model minus Phase 2's champion, deployment temperature, paired questions"
    return [
        _gate(limits, "gain", baked.mean, ">=", limits.thought_gain, baked.n, source),
        _gate(limits, "gain_interval", baked.low, ">", 0.0, baked.n, f"{source}; 95 % from"),
        _gate(
            limits,
            "gain_over_champion",
            champion.mean,
            ">=",
            limits.thought_gain,
            champion.n,
            over,
        ),
    ]


def hand_off_gates(
    config: RunConfig,
    passed: int,
    tests: int,
    items: int,
    forgotten: float,
    skills: int,
    milliseconds: float,
    timed: int,
) -> list[Gate]:
    """What must hold before Phase 4 takes over."""
    limits = config.gates
    return [
        _gate(
            limits,
            "anti_theater",
            float(passed),
            "==",
            float(tests),
            items,
            "tests of the battery that the reasoning model passes",
        ),
        _gate(
            limits,
            "forgetting",
            forgotten,
            "<=",
            limits.forgetting,
            skills,
            "largest loss of a skill that was not baked, champion to reasoning model",
        ),
        _gate(
            limits,
            "answer_ms",
            milliseconds,
            "<",
            limits.answer_ms,
            timed,
            "clock, median of whole answers with thoughts, batch 1, this device",
        ),
    ]


def _gate(
    limits: GateConfig,
    name: str,
    value: float,
    op: str,
    threshold: float,
    n: int,
    source: str,
) -> Gate:
    full = f"quietstar.{name}"
    return declared_gate(limits.not_in_run, full, value, op, threshold, n, source)
