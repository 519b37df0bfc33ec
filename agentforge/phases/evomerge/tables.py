"""Tables of the search itself: its course, the combos, the champion's recipe and descent."""

from __future__ import annotations

import numpy as np

from agentforge.merge.combo import COMBOS
from agentforge.merge.groups import GROUPS
from agentforge.phases.evomerge.history import Evolution
from agentforge.phases.evomerge.members import Member
from agentforge.report import Cell, Table


def search_tables(evolution: Evolution, champion: Member) -> list[Table]:
    """All of them."""
    return [
        _recipe(champion),
        effectiveness(evolution),
        _distances(evolution),
        history(evolution),
        _usage(evolution),
        _lineage(evolution, champion),
    ]


def history(evolution: Evolution) -> Table:
    """One row a generation."""
    return Table(
        name="evolution/history",
        title="The search, generation by generation",
        columns=(
            "generation",
            "best",
            "avg",
            "worst",
            "champion",
            "diversity",
            "best combo",
            "sigma",
            "evaluations",
        ),
        rows=tuple(
            (
                r.generation,
                r.best,
                r.mean,
                r.worst,
                r.champion,
                r.diversity,
                r.best_combo,
                r.sigma,
                r.evaluations,
            )
            for r in evolution.history
        ),
        note="Fitness on the search split, relative to the parents' mean of 1; diversity: mean "
        "cosine distance of deltas from the base. "
        f"Ended by: {evolution.ended_by or 'nothing yet'}.",
    )


def effectiveness(evolution: Evolution) -> Table:
    """How often each combo was used, and what came of it."""
    rows: list[tuple[Cell, ...]] = []
    best = [r.best_combo for r in evolution.history]
    for combo in COMBOS:
        members = [m for m in evolution.members if m.recipe.combo == combo]
        rows.append(
            (
                combo.number,
                combo.digits,
                combo.title,
                len(members),
                float(np.mean([m.fitness for m in members])) if members else None,
                max((m.fitness for m in members), default=None),
                best.count(combo.digits),
            )
        )
    return Table(
        name="combos/effectiveness",
        title="The eight combos",
        columns=("id", "binary", "techniques", "usage", "mean fitness", "best", "champions"),
        rows=tuple(rows),
        note="Usage: members made with it; champions: generations whose best member has it. "
        "Members dropped early count with the fitness of their first items.",
    )


def _distances(evolution: Evolution) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for combo, row in zip(COMBOS, evolution.distances, strict=False):
        rows.append((combo.digits, *row[:8]))
    return Table(
        name="combos/distances",
        title="Distances of the eight combos of generation 0",
        columns=("combo", *(c.digits for c in COMBOS)),
        rows=tuple(rows),
        note="Euclidean distance of the weights. SLERP and Linear of near-parallel tensors differ "
        "little: the arc between them is nearly straight.",
    )


def _usage(evolution: Evolution) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for r in evolution.history:
        rows.append((r.generation, *(r.combos[c.digits] for c in COMBOS)))
    return Table(
        name="combos/usage",
        title="Members of each generation by combo",
        columns=("generation", *(c.digits for c in COMBOS)),
        rows=tuple(rows),
    )


def _recipe(champion: Member) -> Table:
    recipe = champion.recipe
    rows: list[tuple[Cell, ...]] = [
        ("combo", f"{recipe.combo.digits}: {recipe.combo.title}"),
        ("member", champion.number),
        ("generation", champion.generation),
        ("made by", champion.candidate.origin),
    ]
    for i, weights in enumerate(recipe.weights):
        shown = ", ".join(f"{g} {w:.3f}" for g, w in zip(GROUPS, weights, strict=True))
        rows.append((f"weights of source {i + 1}", shown))
    rows += [
        ("slerp places", ", ".join(f"{p:.3f}" for p in recipe.places)),
        ("density", recipe.density),
        ("scale", recipe.scale),
        ("strength of selection", recipe.strength),
        ("slots", ", ".join(map(str, recipe.slots))),
        ("halting threshold", recipe.halting_threshold),
        ("write budget", recipe.write_budget),
    ]
    return Table(
        name="evomerge/recipe",
        title="The champion's recipe",
        columns=("number", "value"),
        rows=tuple(rows),
        note="Its file and the evolution log hold all digits.",
    )


def _lineage(evolution: Evolution, champion: Member) -> Table:
    rows = tuple(
        (
            m.number,
            m.generation,
            m.candidate.origin,
            ", ".join(map(str, m.candidate.made_from)) or "the three parents",
            m.recipe.combo.digits,
            m.fitness,
            m.sha256[:12],
        )
        for m in evolution.lineage(champion)
    )
    return Table(
        name="evomerge/lineage",
        title="What the champion descends from",
        columns=("member", "generation", "made by", "from", "combo", "fitness", "weights"),
        rows=rows,
    )
