"""From measurements to the report of Phase 1: gates and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from agentforge.config.schema import SPECIALTIES, RunConfig, Specialty
from agentforge.data.prepare import Prepared
from agentforge.data.world import SKILLS
from agentforge.gates import Gate
from agentforge.model.count import ParameterCount
from agentforge.phases.cognate import gates
from agentforge.phases.cognate.artifacts import Trained
from agentforge.phases.cognate.baselines import category_names, ngram_losses
from agentforge.phases.cognate.diversity import disagreement, diversity, task_vectors
from agentforge.phases.cognate.measure import Measured
from agentforge.phases.cognate.stages import BASE
from agentforge.phases.cognate.tasks import TaskResults
from agentforge.report import Cell, PhaseReport, Table

RECALL = "recall"
MEMORY_OFF = "memory_off"


@dataclass(frozen=True, slots=True)
class Results:
    """Everything Phase 1 measured.

    Attributes:
        config: The run.
        data: Corpora and where they came from.
        models: Base and specialists as read back from their files.
        measured: Each with its own halting threshold and write budget.
        equal: The specialists with the base's settings.
        ablations: Controls trained like the base with one feature left out.
        tasks: Benchmarks of real records by model.
        count: Parameters by role.
        search_fitness: Of the base, with its items; None without skills.
        hours: Clock time of the phase.
        disk_bytes: Size of the run directory.
        file_bytes: Size of each model's file.
        notes: What happened on the way.
    """

    config: RunConfig
    data: Prepared
    models: Mapping[str, Trained]
    measured: Mapping[str, Measured]
    equal: Mapping[str, Measured]
    ablations: Mapping[str, Measured]
    tasks: Mapping[str, TaskResults]
    count: ParameterCount
    search_fitness: tuple[float, int] | None
    hours: float
    disk_bytes: int
    file_bytes: Mapping[str, int]
    notes: tuple[str, ...] = field(default=())

    @property
    def specialists(self) -> dict[str, Measured]:
        """The three, without the base."""
        return {n: m for n, m in self.measured.items() if n != BASE}


def skills_of(data: Prepared) -> list[str]:
    """Skills of the built-in world that are present; empty for real records."""
    return [s for s in SKILLS if s in data.held_out["report"]] if data.inventory is None else []


def phase_report(results: Results) -> PhaseReport:
    """Gates and tables, in the order a reader wants them."""
    skills = skills_of(results.data)
    baselines = ngram_losses(results.data) if results.data.inventory is not None else {}
    tables = [_comparison(results), _diversity(results)]
    if skills:
        tables += [_accuracy(results), _difficulty(results), _dialogue(results)]
    tables.append(_losses(results, baselines))
    if results.ablations:
        tables.append(_ablations(results, skills))
    if results.tasks:
        tables.append(_tasks(results))
    tables += [_vectors(results), _histogram(results), _writes(results)]
    tables += [_parameters(results.count), _data(results.data)]
    return PhaseReport(
        phase="cognate",
        title="Phase 1: Cognate",
        gates=tuple(_gates(results, skills, baselines)),
        tables=tuple(tables),
        notes=(*results.notes, *_verdicts(results, skills)),
    )


def _gates(
    results: Results, skills: list[str], baselines: Mapping[str, Mapping[str, float]]
) -> list[Gate]:
    config, specialists = results.config, results.specialists
    shapes = [{k: v.shape for k, v in t.weights.items()} for t in results.models.values()]
    equal_shapes = sum(s == shapes[0] for s in shapes[1:])
    spread = diversity({n: m.profile for n, m in specialists.items()})
    tokens = sum(int(r.tokens.sum()) for r in results.measured[BASE].results.values())
    correct = {n: m.correct(skills) for n, m in results.equal.items()} if skills else {}
    items = len(next(iter(correct.values()))) if correct else 0
    least = disagreement(correct) if len(correct) == 3 else None
    found = [gates.shape_gate(config, equal_shapes)]
    found += gates.diversity_gates(config, spread, least, items, tokens)
    found += gates.own_skill_gates(config, specialists, skills)
    gain, recall_items = _memory_gain(results)
    found.append(gates.memory_gate(config, gain, recall_items))
    fitness = results.search_fitness
    found.append(
        gates.fitness_gate(config, fitness[0] if fitness else None, fitness[1] if fitness else 0)
    )
    if baselines:
        names = category_names(results.data)
        by_model = {
            n: {c: m.loss(parts) for c, parts in names.items()} for n, m in specialists.items()
        }
        owned = {c: by_model[_owner(config, c)][c] for c in names}
        found += gates.baseline_gates(config, owned, baselines)
        found += gates.own_category_gates(config, by_model)
    scores = [t.gsm8k.flexible for n, t in results.tasks.items() if t.gsm8k and n != BASE]
    top = max(scores, key=lambda a: a.value) if scores else None
    found.append(gates.gsm8k_gate(config, top.value if top else None, top.n if top else 0))
    return found + gates.cost_gates(config, results.hours, results.disk_bytes)


def _owner(config: RunConfig, category: str) -> str:
    """The specialist that trains most on a category: fixed by configuration, not by its result."""

    def share(name: Specialty) -> float:
        mix = config.cognate.specialists[name].mix
        return mix.get(category, 0.0) / sum(mix.values())

    return max(SPECIALTIES, key=share)


def _memory_gain(results: Results) -> tuple[float | None, int]:
    """Recall of the base minus recall of the control without memory, equal steps."""
    control = results.ablations.get(MEMORY_OFF)
    if control is None or RECALL not in control.results:
        return None, 0
    base = results.measured[BASE].results[RECALL]
    return base.accuracy - control.results[RECALL].accuracy, len(base.correct)


def _comparison(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, m in results.measured.items():
        parts = list(m.results)
        loss, _ = m.loss(parts)
        weight = sum(int(m.results[p].tokens.sum()) for p in parts)
        gate = sum(float(m.results[p].gate * m.results[p].tokens.sum()) for p in parts) / weight
        rows.append(
            (
                name,
                results.models[name].steps,
                loss,
                math.exp(loss),
                m.profile.halting_steps,
                m.behaviour.halting_threshold,
                m.profile.memory_usage,
                m.behaviour.write_budget,
                gate,
                m.profile.block_evaluations,
                m.ms_per_token,
            )
        )
    return Table(
        name="diversity/model_comparison",
        title="The models side by side",
        columns=(
            "model",
            "training steps",
            "loss (nats/token)",
            "perplexity",
            "halting steps",
            "halting threshold",
            "write budget used",
            "write budget",
            "memory share (gate)",
            "block evaluations/token",
            "ms/token (clock)",
        ),
        rows=tuple(rows),
        note="Report split, each model with its own threshold and write budget. Clock time is "
        "the reference decoder at batch 1 and is displayed only.",
    )


def _diversity(results: Results) -> Table:
    spread = diversity({n: m.profile for n, m in results.specialists.items()})
    rows: list[tuple[Cell, ...]] = [
        ("halting steps", spread.halting_steps),
        ("write budget used", spread.memory_usage),
        ("block evaluations", spread.block_evaluations),
        ("score (mean)", spread.score),
    ]
    names = sorted(results.equal)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            skills = skills_of(results.data)
            pair = {n: results.equal[n].correct(skills) for n in (a, b)}
            rows.append((f"disagreement {a}/{b}", disagreement(pair)))
    return Table(
        name="diversity/spread",
        title="Diversity",
        columns=("metric", "(max - min) / mean"),
        rows=tuple(rows),
        note="Halting and block evaluations are largely set by the halting prior. Disagreement is "
        "the share of items on which two specialists differ in being right, all three run with "
        "the base's threshold and write budget.",
    )


def _accuracy(results: Results) -> Table:
    skills = skills_of(results.data)
    rows: list[tuple[Cell, ...]] = [
        (n, *(m.results[s].accuracy for s in skills), m.accuracy(skills))
        for n, m in results.measured.items()
    ]
    count = len(results.measured[BASE].results[skills[0]].correct)
    return Table(
        name="accuracy",
        title="Exact match by skill",
        columns=("model", *skills, "mean"),
        rows=tuple(rows),
        note=f"Report split, {count} items a skill, the whole answer right.",
    )


def _difficulty(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for skill in skills_of(results.data):
        levels = np.unique(results.measured[BASE].results[skill].difficulty)
        for level in levels:
            cells: list[Cell] = [skill, int(level)]
            for m in results.measured.values():
                r = m.results[skill]
                chosen = r.difficulty == level
                cells += [
                    float((r.steps * r.tokens)[chosen].sum() / r.tokens[chosen].sum()),
                    float(r.correct[chosen].mean()),
                ]
            rows.append(tuple(cells))
    names = [f"{n} {what}" for n in results.measured for what in ("steps", "right")]
    return Table(
        name="halting/by_difficulty",
        title="Recursion steps by difficulty",
        columns=("skill", "difficulty", *names),
        rows=tuple(rows),
        note="Halting is adaptive only where steps rise with difficulty.",
    )


def _dialogue(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, m in results.measured.items():
        r = m.results["dialogue"]
        cells = [float(r.correct[r.difficulty == d].mean()) for d in (0, 1)]
        rows.append((name, *cells))
    return Table(
        name="dialogue",
        title="Two-turn dialogues by distance",
        columns=("model", "asked at once", "one sentence between"),
        rows=tuple(rows),
        note="The second turn needs the numbers of the first; reported, not gated.",
    )


def _losses(results: Results, baselines: Mapping[str, Mapping[str, float]]) -> Table:
    names = category_names(results.data)
    rows: list[tuple[Cell, ...]] = []
    for category, parts in names.items():
        losses = [m.loss(parts) for m in results.measured.values()]
        cells: list[Cell] = [category, losses[0][1], *(loss for loss, _ in losses)]
        cells += [by[category] for by in baselines.values()]
        rows.append(tuple(cells))
    return Table(
        name="loss",
        title="Held-out loss by category",
        columns=("category", "tokens", *results.measured, *baselines),
        rows=tuple(rows),
        note="Report split, nats per target token."
        + (" Baselines are fitted on the same training records." if baselines else ""),
    )


def _ablations(results: Results, skills: list[str]) -> Table:
    """Exact match by skill; loss by category for real records, whose exact match is near 0."""
    everyone = {"full model": results.measured[BASE], **results.ablations}
    if skills:
        columns, unit = skills, "exact match"
        values = {n: [m.results[s].accuracy for s in skills] for n, m in everyone.items()}
    else:
        parts = category_names(results.data)
        columns, unit = list(parts), "nats per token, lower is better"
        values = {n: [m.loss(parts[c])[0] for c in columns] for n, m in everyone.items()}
    rows: list[tuple[Cell, ...]] = [(n, *v, sum(v) / len(v)) for n, v in values.items()]
    return Table(
        name="ablations",
        title="Ablations",
        columns=("model", *columns, "mean"),
        rows=tuple(rows),
        note=f"Report split, {unit}. Trained from the same fresh weights and data order for as "
        "many steps as the base.",
    )


def _tasks(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, found in results.tasks.items():
        if found.gsm8k:
            g = found.gsm8k
            rows.append((name, "gsm8k strict", g.strict.value, None, 0.0, g.strict.n))
            rows.append((name, "gsm8k flexible", g.flexible.value, None, 0.0, g.flexible.n))
        for task, r in found.choices.items():
            rows.append((name, task, r.raw.value, r.normalised.value, r.chance, r.raw.n))
    return Table(
        name="tasks",
        title="Benchmarks",
        columns=("model", "task", "accuracy", "length-normalised", "chance", "n"),
        rows=tuple(rows),
        note="GSM8K by generation, the others by likelihood of each choice.",
    )


def _vectors(results: Results) -> Table:
    vectors = task_vectors(
        results.models[BASE].weights,
        {n: t.weights for n, t in results.models.items() if n != BASE},
    )
    rows: list[tuple[Cell, ...]] = [
        (f"|{n} - base| / |base|", v) for n, v in vectors.relative_norm.items()
    ]
    rows += [(f"cosine {pair}", v) for pair, v in vectors.cosine.items()]
    return Table("task_vectors", "Task vectors", ("figure", "value"), tuple(rows))


def _histogram(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, m in results.measured.items():
        counts = np.sum([r.step_counts for r in m.results.values()], axis=0)
        shares = counts / counts.sum()
        rows.append((name, *(float(s) for s in shares[1:])))
    steps = results.config.model.recursion_steps
    return Table(
        name="charts/act_distribution",
        title="Halting histogram (share of tokens by recursion steps)",
        columns=("model", *(str(i) for i in range(1, steps + 1))),
        rows=tuple(rows),
    )


def _writes(results: Results) -> Table:
    """Mean memory write by position, on the longest corpus."""
    base = results.measured[BASE].results
    corpus = max(base, key=lambda n: int(base[n].tokens.max()))
    width = min(48, int(base[corpus].tokens.max()))
    rows: list[tuple[Cell, ...]] = [
        (name, *(float(w) for w in m.results[corpus].position_writes[:width]))
        for name, m in results.measured.items()
    ]
    return Table(
        name="charts/ltm_heatmap",
        title=f"Memory writes by position ({corpus})",
        columns=("model", *(str(i) for i in range(width))),
        rows=tuple(rows),
        note="Mean step size theta of the write at each position.",
    )


def _parameters(count: ParameterCount) -> Table:
    parts = ("embedding", "embedding_maps", "attention", "ffn", "memory", "answer", "gates")
    rows: list[tuple[Cell, ...]] = [
        (p, getattr(count, p), getattr(count, p) / count.total)
        for p in (*parts, "halting", "norms")
    ]
    rows.append(("total", count.total, 1.0))
    return Table(
        name="parameters",
        title="Parameters",
        columns=("role", "parameters", "share"),
        rows=tuple(rows),
        note=f"FP32 {count.fp32_bytes / 1e6:.2f} MB; packed to 2-bit codes with the rest in FP16 "
        f"it would be {count.packed_bytes / 1e6:.2f} MB, computed from the shapes "
        f"({count.fp32_bytes / count.packed_bytes:.2f} times smaller).",
    )


def _data(data: Prepared) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, corpus in data.train.items():
        held = data.held_out["report"].get(name)
        rows.append((name, corpus.category, len(corpus), len(held) if held else 0, "trained on"))
    missing = data.inventory.missing if data.inventory else ()
    rows += [(m.entry.name, m.entry.category, 0, 0, f"absent: {m.reason}") for m in missing]
    return Table(
        name="data",
        title="Data",
        columns=("dataset", "category", "training items", "report items", "state"),
        rows=tuple(rows),
    )


def _verdicts(results: Results, skills: list[str]) -> list[str]:
    """What the ablations say, in words."""
    if not skills:
        return []
    base = results.measured[BASE]
    notes = []
    for name, m in results.ablations.items():
        a, b = base.correct(skills).astype(float), m.correct(skills).astype(float)
        gap = 100 * float((a - b).mean())
        error = 100 * float((a - b).std() / math.sqrt(len(a)))
        verdict = "a gain in this run" if gap > 2 * error else "no gain in this run"
        notes.append(
            f"{name}: the full model is {gap:+.1f} points against it (paired s.e. over items "
            f"{error:.1f}; one training seed, whose spread is larger): {verdict}."
        )
    return notes
