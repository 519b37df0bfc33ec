"""The final figures of Phase 2 as events, under the names of the mission's W&B plan."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agentforge.events import EvalDone
from agentforge.phases.evomerge.results import CHAMPION, Outcome
from agentforge.phases.evomerge.tables import effectiveness

PHASE = "evomerge"


def final_figures(outcome: Outcome) -> Iterator[EvalDone]:
    """Figures of the search, then of every model that is compared."""
    evolution, n = outcome.evolution, outcome.items
    history = evolution.history
    best = [r.champion for r in history]
    converged = next(i for i, value in enumerate(best) if value >= best[-1])
    means = {
        int(str(row[0])): float(row[4])
        for row in effectiveness(evolution).rows
        if isinstance(row[4], float)
    }
    wins = [r.best_combo for r in history].count(outcome.champion.recipe.combo.digits)
    reasons = {"max_gen": 0, "early_stop": 1, "target": 2, "finish": 3}
    yield _figure("final/generations_completed", float(evolution.generation), 1, "search")
    yield _figure("final/best_fitness", outcome.compared[CHAMPION].fitness, n)
    yield _figure("final/fitness_improvement", outcome.composite_gain, n)
    if outcome.mean_gain is not None:
        yield _figure("final/score_improvement", outcome.mean_gain, n)
    yield _figure("final/total_evolution_time_minutes", 60 * outcome.hours, 1)
    combo = outcome.champion.recipe.combo.number
    yield _figure("final/champion_combo_id", float(combo), 1, "search")
    yield _figure("final/best_combo", float(max(means, key=lambda c: means[c])), 1, "search")
    yield _figure("final/worst_combo", float(min(means, key=lambda c: means[c])), 1, "search")
    yield _figure("final/combo_win_rate", wins / len(history), len(history), "search")
    yield _figure("final/converged_at_generation", float(converged), 1, "search")
    yield _figure("final/convergence_reason", float(reasons[evolution.ended_by]), 1, "search")
    yield _figure("final/parent_diversity", outcome.family.diversity, 3, "weights")
    for name, model in outcome.compared.items():
        slug = name.replace(" ", "_").replace("-", "_")
        error = float(model.scores.std() / np.sqrt(n))
        yield _figure(f"final/{slug}_score", model.terms.accuracy, n, stderr=error)
        yield _figure(f"final/{slug}_composite", model.fitness, n)
        if name != CHAMPION:
            yield _figure(f"final/lead_over_{slug}", outcome.lead(name).mean, n)


def _figure(
    name: str, value: float, n: int, split: str = "report", stderr: float = float("nan")
) -> EvalDone:
    return EvalDone(
        phase=PHASE, model="champion", name=name, value=value, n=n, split=split, stderr=stderr
    )
