"""The success metrics of Phase 2, all on the report split unless their source says otherwise."""

from __future__ import annotations

from agentforge.config.schema import GateConfig, RunConfig
from agentforge.evals.stats import Interval
from agentforge.gates import Gate, declared_gate


def gain_gates(
    config: RunConfig, composite: float | None, exact_match: float | None, items: int
) -> list[Gate]:
    """The documents' gain over the mean of the three parents, as a composite and as exact match."""
    limits = config.gates
    source = "report split, champion over the mean of its three parents"
    return [
        _gate(limits, "composite_gain", composite, ">=", limits.merge_gain, items, source),
        _gate(limits, "exact_match_gain", exact_match, ">=", limits.merge_gain, items, source),
    ]


def interval_gates(config: RunConfig, best_parent: Interval, base: Interval) -> list[Gate]:
    """The lower end of the champion's lead: above 0 means that it is no luck of the items."""
    limits = config.gates
    return [
        _gate(
            limits,
            f"above_{name}",
            interval.low,
            ">",
            0.0,
            interval.n,
            f"report split, lower end of the 95 % interval of champion minus {what}, paired items",
        )
        for name, interval, what in (
            ("best_parent", best_parent, "its best parent"),
            ("base", base, "base"),
        )
    ]


def parent_gates(
    config: RunConfig, share_of_base: float, diversity: float, items: int
) -> list[Gate]:
    """The gain is not won over specialists that forgot everything, nor from three alike."""
    limits = config.gates
    return [
        _gate(
            limits,
            "parents_of_base",
            share_of_base,
            ">=",
            limits.parents_of_base,
            items,
            "report split, mean score of the parents over the base's",
        ),
        _gate(
            limits,
            "parent_diversity",
            diversity,
            ">",
            limits.parent_diversity,
            3,
            "weights, mean cosine distance of the parents' deltas from the base",
        ),
    ]


def search_gates(
    config: RunConfig, combos_used: int, distinct: int, valid: bool, hours: float
) -> list[Gate]:
    """What the search itself must have done."""
    limits = config.gates
    return [
        _gate(limits, "combos_used", float(combos_used), "==", 8.0, 8, "members of the search"),
        _gate(
            limits,
            "distinct_combos",
            float(distinct),
            "==",
            8.0,
            8,
            "different weight hashes among the eight combos of generation 0",
        ),
        _gate(
            limits,
            "champion_valid",
            float(valid),
            "==",
            1.0,
            1,
            "artefact read back: shapes, finite values, variance, finite forward",
        ),
        _gate(
            limits,
            "evolution_hours",
            hours,
            "<",
            limits.evolution_hours,
            1,
            "clock of this run, controls and reports included",
        ),
    ]


def _gate(
    limits: GateConfig,
    name: str,
    value: float | None,
    op: str,
    threshold: float,
    n: int,
    source: str,
) -> Gate:
    full = f"evomerge.{name}"
    return declared_gate(limits.not_in_run, full, value, op, threshold, n, source)
