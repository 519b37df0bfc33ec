"""From measurements to the report of Phase 2: gates and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentforge.config.schema import RunConfig
from agentforge.evals.stats import Interval, paired_bootstrap
from agentforge.gates import Gate
from agentforge.merge.geometry import Geometry
from agentforge.phases.evomerge import gates
from agentforge.phases.evomerge.barrier import POINTS, Barrier
from agentforge.phases.evomerge.fitness import Reference, Results, Terms, item_scores
from agentforge.phases.evomerge.history import Evolution
from agentforge.phases.evomerge.members import Member
from agentforge.phases.evomerge.tables import search_tables
from agentforge.report import Cell, PhaseReport, Table

CHAMPION = "champion"
BASE = "base"
PLAIN_MEAN = "plain mean"
BEST_COMBO = "best combo"
CONTROL = "multi-task control"


@dataclass(frozen=True, slots=True)
class Compared:
    """One model on the report split.

    Attributes:
        results: Per item, by skill.
        terms: Summed up.
        fitness: Composite relative to the parents on this split.
        scores: Score of every item, all skills one after the other.
    """

    results: Results
    terms: Terms
    fitness: float
    scores: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rescored:
    """One of the best members on the re-score split."""

    member: Member
    terms: Terms
    fitness: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything Phase 2 measured.

    Attributes:
        config: The run.
        parents: Names of the three.
        compared: Models on the report split by name: champion, base, parents, controls.
        exact: Whether an item's score is its exact match.
        evolution: The search.
        rescored: The best members on the re-score split, in the order of the search.
        champion: The winner of the re-score.
        champion_valid: Its file was read back and is usable.
        barriers: Loss between the parents.
        family: Geometry of the three parents.
        control_steps: Steps the multi-task control took; None: there is none.
        hours: Clock time of the phase.
        extra: Tables of optional parts.
        notes: What happened on the way.
    """

    config: RunConfig
    parents: tuple[str, ...]
    compared: Mapping[str, Compared]
    exact: bool
    evolution: Evolution
    rescored: list[Rescored]
    champion: Member
    champion_valid: bool
    barriers: list[Barrier]
    family: Geometry
    control_steps: int | None
    hours: float
    extra: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def items(self) -> int:
        """Items of the report split."""
        return len(self.compared[CHAMPION].scores)

    @property
    def mean_parent(self) -> float:
        """Mean score of the three parents."""
        return float(np.mean([self.compared[p].terms.accuracy for p in self.parents]))

    @property
    def best_parent(self) -> str:
        """The parent with the best mean score."""
        return max(self.parents, key=lambda p: self.compared[p].terms.accuracy)

    def lead(self, name: str) -> Interval:
        """The champion's score minus another model's, paired by item."""
        ours, theirs = self.compared[CHAMPION].scores, self.compared[name].scores
        return paired_bootstrap(ours.tolist(), theirs.tolist(), seed=self.config.seed)

    def gain(self, name: str) -> float | None:
        """The champion's score over another model's, minus 1."""
        return over(self.compared[CHAMPION].terms.accuracy, self.compared[name].terms.accuracy)

    @property
    def mean_gain(self) -> float | None:
        """Gain in score over the parents' mean."""
        return over(self.compared[CHAMPION].terms.accuracy, self.mean_parent)

    @property
    def composite_gain(self) -> float:
        """Gain of the composite over the parents' mean, which is 1."""
        mean = float(np.mean([self.compared[p].fitness for p in self.parents]))
        return self.compared[CHAMPION].fitness / mean - 1.0


def over(ours: float, theirs: float) -> float | None:
    """Relative gain; None when there is nothing to gain over."""
    return ours / theirs - 1.0 if theirs > 0 else None


def compare(results: Results, terms: Terms, reference: Reference, exact: bool) -> Compared:
    """One model's figures of the report split."""
    scores = np.concatenate([item_scores(r, exact) for r in results.values()])
    return Compared(results, terms, reference.fitness(terms), scores)


def phase_report(outcome: Outcome) -> PhaseReport:
    """Gates and tables, in the order a reader wants them."""
    return PhaseReport(
        phase="evomerge",
        title="Phase 2: EvoMerge",
        gates=tuple(_gates(outcome)),
        tables=(
            _comparison(outcome),
            _skills(outcome),
            _rescore(outcome),
            _parents(outcome),
            *search_tables(outcome.evolution, outcome.champion),
            *outcome.extra,
        ),
        notes=(*outcome.notes, *_verdicts(outcome)),
    )


def _gates(outcome: Outcome) -> list[Gate]:
    config, evolution = outcome.config, outcome.evolution
    first = [m for m in evolution.members if m.generation == 0][:8]
    used = {m.recipe.combo for m in evolution.members}
    base = outcome.compared[BASE].terms.accuracy
    share = outcome.mean_parent / base if base > 0 else float("nan")
    exact_gain = outcome.mean_gain if outcome.exact else None
    found = gates.gain_gates(config, outcome.composite_gain, exact_gain, outcome.items)
    found += gates.interval_gates(config, outcome.lead(outcome.best_parent), outcome.lead(BASE))
    found += gates.parent_gates(config, share, outcome.family.diversity, outcome.items)
    distinct = len({m.sha256 for m in first})
    return found + gates.search_gates(
        config, len(used), distinct, outcome.champion_valid, outcome.hours
    )


def _comparison(outcome: Outcome) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, model in outcome.compared.items():
        lead = None if name == CHAMPION else outcome.lead(name)
        gain = None if name == CHAMPION else outcome.gain(name)
        rows.append(
            (
                name,
                model.terms.accuracy,
                None if gain is None else 100 * gain,
                None if lead is None else 100 * lead.mean,
                None if lead is None else 100 * lead.low,
                None if lead is None else 100 * lead.high,
                model.terms.perplexity,
                model.fitness,
                model.terms.blocks,
                model.terms.bytes,
            )
        )
        if name == outcome.parents[-1]:
            rows.append(_mean_row(outcome))
    score = "exact match" if outcome.exact else "mean probability of the right answer"
    return Table(
        name="evomerge/comparison",
        title="The champion and what it is compared with",
        columns=(
            "model",
            "score",
            "champion's gain %",
            "lead, points",
            "95 % from",
            "to",
            "perplexity",
            "composite",
            "blocks a token",
            "bytes",
        ),
        rows=tuple(rows),
        note=f"Report split, {outcome.items:,} items; score: {score}, mean over skills. Intervals "
        "are over items, paired (bootstrap), not over training seeds. The composite is relative to "
        "the parents' mean of 1; its memory term is the same for all models of one shape.",
    )


def _mean_row(outcome: Outcome) -> tuple[Cell, ...]:
    parents = [outcome.compared[p] for p in outcome.parents]
    scores = np.mean([p.scores for p in parents], axis=0)
    ours = outcome.compared[CHAMPION]
    lead = paired_bootstrap(ours.scores.tolist(), scores.tolist(), seed=outcome.config.seed)
    gain = outcome.mean_gain
    return (
        "mean of parents",
        outcome.mean_parent,
        None if gain is None else 100 * gain,
        100 * lead.mean,
        100 * lead.low,
        100 * lead.high,
        float(np.mean([p.terms.perplexity for p in parents])),
        float(np.mean([p.fitness for p in parents])),
        float(np.mean([p.terms.blocks for p in parents])),
        parents[0].terms.bytes,
    )


def _skills(outcome: Outcome) -> Table:
    names = list(outcome.compared[CHAMPION].terms.by_skill)
    rows: list[tuple[Cell, ...]] = []
    for name, model in outcome.compared.items():
        rows.append((name, *(model.terms.by_skill[s] for s in names)))
    return Table(
        name="evomerge/skills",
        title="Score by skill",
        columns=("model", *names),
        rows=tuple(rows),
        note="Report split. A sum hides what was lost: look at every column.",
    )


def _rescore(outcome: Outcome) -> Table:
    rows = tuple(
        (
            r.member.number,
            r.member.generation,
            r.member.recipe.combo.digits,
            r.member.fitness,
            r.fitness,
            r.member.accuracy,
            r.terms.accuracy,
            r.member.number == outcome.champion.number,
        )
        for r in outcome.rescored
    )
    return Table(
        name="evomerge/rescore",
        title="The best of the search, measured again on items the search never saw",
        columns=(
            "member",
            "generation",
            "combo",
            "search fitness",
            "re-score fitness",
            "search score",
            "re-score score",
            "champion",
        ),
        rows=rows,
        note="The search's own figures are too good: its best is the luckiest of many.",
    )


def _parents(outcome: Outcome) -> Table:
    family, names = outcome.family, outcome.parents
    rows: list[tuple[Cell, ...]] = []
    index = {name: i for i, name in enumerate(names)}
    for barrier in outcome.barriers:
        a, b = (index[n] for n in barrier.pair)
        rows.append(
            (
                " / ".join(barrier.pair),
                float(family.delta_cosine[a, b]),
                float(family.distance[a, b] / family.base_norm),
                barrier.height,
                *barrier.losses,
            )
        )
    return Table(
        name="evomerge/parents",
        title="The parents: how far apart, and the line between them",
        columns=(
            "pair",
            "cosine of deltas",
            "distance / base norm",
            "barrier",
            *(f"loss at {t:g}" for t in POINTS),
        ),
        rows=tuple(rows),
        note="Deltas from the base; barrier: nats per token above the straight line, search split.",
    )


def _verdicts(outcome: Outcome) -> list[str]:
    """Sentences a reader should not have to work out."""
    found = []
    best, gain = outcome.best_parent, outcome.gain(outcome.best_parent)
    if gain is None:
        found.append("No parent gets a single item right: a gain over them cannot be told.")
    else:
        word = "reached" if gain >= outcome.config.gates.merge_gain else "not reached"
        found.append(
            f"Over the best parent ({best}) the champion gains {100 * gain:.1f} %; the stretch "
            f"goal of {100 * outcome.config.gates.merge_gain:g} % is {word}."
        )
    mean = outcome.gain(PLAIN_MEAN)
    if mean is not None:
        found.append(f"Over the plain mean of the weights it gains {100 * mean:.1f} %.")
    control = outcome.compared.get(CONTROL)
    if control is None:
        found.append("There is no multi-task control in this run.")
    else:
        lead = outcome.lead(CONTROL)
        word = "above" if lead.mean > 0 else "below"
        found.append(
            f"One training from the base on all skills with the same extra compute "
            f"({outcome.control_steps} steps) scores {control.terms.accuracy:.3f}: the champion is "
            f"{abs(100 * lead.mean):.1f} points {word} it. Merging pays where the parents exist "
            "already or cannot be trained together."
        )
    return found
