"""The Weights & Biases names of Phase 2, declared once."""

from __future__ import annotations

from agentforge.sinks.wandb_metric import Metric

_EXTRA = "GenerationDone.extra"
_EVAL = "EvalDone"
_TABLE = "TableDone"
POPULATION = 8
"""Members whose figures every complete run has; a larger population adds more of the family."""
COMBOS = tuple(f"{number:03b}" for number in range(8))

_MEMBER = (
    ("fitness", "composite on the search split, relative to the parents' mean of 1"),
    ("perplexity", "exp of nats per target token, mean over skills, search split"),
    ("accuracy", "mean score of an item, search split"),
    ("inference_time", "block evaluations a token: the counted form of time"),
    ("memory_usage", "weights, 2^20 bytes"),
    ("combo_id", "0 to 7; the leftmost of its three bits is interpolation"),
)

PHASE2_METRICS: tuple[Metric, ...] = (
    Metric("evolution/generation", "x axis of the others", "GenerationDone.generation"),
    Metric("evolution/best_fitness", "best of the population", "GenerationDone.best_fitness"),
    Metric("evolution/avg_fitness", "mean of the population", "GenerationDone.avg_fitness"),
    Metric("evolution/worst_fitness", "worst of the population", "GenerationDone.worst_fitness"),
    Metric("evolution/fitness_std", "spread of the population", "GenerationDone.fitness_std"),
    Metric(
        "evolution/champion_fitness", "best of any member so far", "GenerationDone.champion_fitness"
    ),
    Metric("evolution/fitness_improvement", "the champion's gain over the parents' mean", _EXTRA),
    Metric(
        "evolution/diversity",
        "mean cosine distance of the population's deltas from the base",
        "GenerationDone.diversity",
    ),
    Metric("evolution/raw_diversity", "the same of the weights themselves", _EXTRA),
    Metric("evolution/unique_models", "different weights in the population", _EXTRA),
    *(
        Metric(f"evolution/combo_{digits}_count", "members of the population", _EXTRA)
        for digits in COMBOS
    ),
    Metric("evolution/elite1_fitness", "of the best member", _EXTRA),
    Metric("evolution/elite2_fitness", "of the second", _EXTRA),
    Metric("evolution/mutation_sigma", "step of the next mutations", _EXTRA),
    Metric("evolution/evaluations", "models measured so far", _EXTRA),
    Metric("evolution/raced", "of those, dropped early", _EXTRA),
    Metric("evolution/degenerate", "children replaced by the linear mean so far", _EXTRA),
    Metric("time/generation_duration_seconds", "wall clock", "GenerationDone.wall_s"),
    Metric("time/estimated_completion_minutes", "minutes still to go", "Progress.eta_s"),
    *(
        Metric(f"models/model_{i}/{name}", f"{meaning}; rank {i + 1}", _EXTRA)
        for i in range(POPULATION)
        for name, meaning in _MEMBER
    ),
    Metric("models/*", "members of a larger population", _EXTRA, optional=True),
    Metric("final/generations_completed", "after the first eight", _EVAL),
    Metric("final/best_fitness", "the champion's composite, report split", _EVAL),
    Metric("final/fitness_improvement", "its gain over the parents' mean, report split", _EVAL),
    Metric("final/score_improvement", "the same of the mean score", _EVAL, optional=True),
    Metric("final/total_evolution_time_minutes", "wall clock of the phase", _EVAL),
    Metric("final/champion_combo_id", "0 to 7", _EVAL),
    Metric("final/best_combo", "id of the combo with the best mean fitness", _EVAL),
    Metric("final/worst_combo", "id of the combo with the worst mean fitness", _EVAL),
    Metric("final/combo_win_rate", "generations whose best has the champion's combo, share", _EVAL),
    Metric("final/converged_at_generation", "when the champion's fitness was reached", _EVAL),
    Metric(
        "final/convergence_reason", "0 max_gen, 1 early_stop, 2 target, 3 asked to finish", _EVAL
    ),
    Metric("final/parent_diversity", "mean cosine distance of the parents' deltas", _EVAL),
    Metric("evolution/history", "table: generation, best, avg, diversity, best combo", _TABLE),
    Metric("combos/effectiveness", "table: usage, mean fitness and champions by combo", _TABLE),
    Metric("charts/fitness_evolution", "lines: best and mean by generation", "GenerationDone"),
    Metric("charts/diversity_evolution", "line: diversity by generation", "GenerationDone"),
    Metric("charts/combo_usage", "table: members by generation and combo", _TABLE),
)
