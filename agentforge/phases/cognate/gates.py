"""The success metrics of Phase 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentforge.config.schema import SPECIALTIES, GateConfig, RunConfig
from agentforge.gates import Gate, declared_gate
from agentforge.phases.cognate.diversity import Diversity
from agentforge.phases.cognate.measure import Measured


def own_skill_gates(
    config: RunConfig, specialists: Mapping[str, Measured], skills: Sequence[str]
) -> list[Gate]:
    """Own-skill accuracy and its lead over both others, for skills with exact-match items."""
    limits = config.gates
    gates = []
    for name in SPECIALTIES:
        skill = config.cognate.specialists[name].skill
        here = skill in skills and all(skill in m.results for m in specialists.values())
        own = specialists[name].results[skill].accuracy if here else None
        others = [m.results[skill].accuracy for n, m in specialists.items() if here and n != name]
        n = len(specialists[name].results[skill].correct) if here else 0
        source = f"report split of {skill}, exact match"
        gates.append(_gate(limits, f"own_skill.{name}", own, ">=", limits.own_skill, n, source))
        lead = own - max(others) if own is not None and others else None
        gates.append(
            _gate(limits, f"own_skill_lead.{name}", lead, ">=", limits.own_skill_lead, n, source)
        )
    return gates


def diversity_gates(
    config: RunConfig, spread: Diversity, disagreement: float | None, items: int, tokens: int
) -> list[Gate]:
    """The diversity score and the behavioural disagreement that configuration cannot set."""
    limits = config.gates
    return [
        _gate(
            limits,
            "diversity",
            spread.score,
            ">",
            limits.diversity,
            tokens,
            "report split, mean relative spread of halting steps, memory usage, block evaluations",
        ),
        _gate(
            limits,
            "disagreement",
            disagreement,
            ">=",
            limits.disagreement,
            items,
            "report split, least pair, equal threshold and write budget",
        ),
    ]


def shape_gate(config: RunConfig, equal: int) -> Gate:
    """Three models whose tensors have the base's names and shapes."""
    return _gate(
        config.gates, "equal_shapes", float(equal), "==", 3.0, 3, "artefact files, shapes read back"
    )


def memory_gate(config: RunConfig, gain: float | None, items: int) -> Gate:
    """Recall outside the attention window, with against without the memory at equal steps."""
    return _gate(
        config.gates,
        "memory_gain",
        gain,
        ">=",
        config.gates.memory_gain,
        items,
        "report split of recall, base minus its ablation memory_off",
    )


def fitness_gate(config: RunConfig, fitness: float | None, items: int) -> Gate:
    """The base reached the fitness it was trained for."""
    target = config.cognate.base.target_fitness
    return _gate(
        config.gates, "base_fitness", fitness, ">=", target, items, "search split, mean exact match"
    )


def cost_gates(config: RunConfig, hours: float, disk_bytes: int) -> list[Gate]:
    """Training time and disk."""
    limits = config.gates
    return [
        _gate(limits, "training_hours", hours, "<", limits.training_hours, 1, "clock of this run"),
        _gate(
            limits,
            "storage_gb",
            disk_bytes / 1e9,
            "<",
            limits.storage_gb,
            1,
            "files of the run directory",
        ),
    ]


def gsm8k_gate(config: RunConfig, accuracy: float | None, items: int) -> Gate:
    """GSM8K with flexible extraction, best specialist."""
    return _gate(
        config.gates,
        "gsm8k",
        accuracy,
        ">",
        config.gates.gsm8k,
        items,
        "report split of gsm8k, generated answers, flexible extraction, best specialist",
    )


def baseline_gates(
    config: RunConfig,
    losses: Mapping[str, tuple[float, int]],
    baselines: Mapping[str, Mapping[str, float]],
) -> list[Gate]:
    """Held-out loss per category against n-gram models of the same records."""
    gates = []
    for category, (loss, n) in losses.items():
        for baseline, by_category in baselines.items():
            gates.append(
                _gate(
                    config.gates,
                    f"loss_below_{baseline}.{category}",
                    loss,
                    "<",
                    by_category[category],
                    n,
                    f"report split of {category}, nats per token, its main specialist",
                )
            )
    return gates


def own_category_gates(
    config: RunConfig, specialists: Mapping[str, dict[str, tuple[float, int]]]
) -> list[Gate]:
    """On real records: each specialist has the lowest loss on its own category."""
    gates = []
    for name in SPECIALTIES:
        category = config.cognate.specialists[name].skill
        own = specialists[name].get(category)
        others = [by[category][0] for n, by in specialists.items() if n != name and category in by]
        margin = min(others) - own[0] if own and others else None
        gates.append(
            _gate(
                config.gates,
                f"own_category_margin.{name}",
                margin,
                ">",
                0.0,
                own[1] if own else 0,
                f"report split of {category}, nats below the better of the other two",
            )
        )
    return gates


def _gate(
    limits: GateConfig,
    name: str,
    value: float | None,
    op: str,
    threshold: float,
    n: int,
    source: str,
) -> Gate:
    full = f"cognate.{name}"
    return declared_gate(limits.not_in_run, full, value, op, threshold, n, source)
