"""Three cumulative stages with replay: how often each dataset is drawn at a point of a run.

Stage 1 (Foundation), 2 (Reasoning) and 3 (Advanced) each train on everything up to their own
level. A curriculum that replaced its data would invite forgetting, so a later stage keeps at least
``replay`` of its draws for the datasets of earlier stages. All functions are pure.

Order of the rules, so that the later one wins where they collide:

1. The mix: each category's share, renormalised over the categories present in the stage.
2. Within a category a dataset counts as the square root of its records: a set a hundred times
   larger is drawn ten times as often, so that 350 records of MBPP are seen beside 10,000 of
   CodeXGLUE without being repeated a hundred times.
3. Replay: datasets of earlier stages together get at least ``replay``.
4. ``max_share`` (HellaSwag: 0.2 of a stage): the excess goes to other datasets, first of the same
   category. It cannot hold for a dataset that is alone.

Two rules about which stage a dataset belongs to: language is in every stage (the earliest language
dataset present counts as stage 1), and a stage for which the mix has nothing yet uses the first
later stage that has something.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentforge.data.registry import Stage
from agentforge.errors import DataError

STAGES: tuple[Stage, ...] = (1, 2, 3)
NEGLIGIBLE = 1e-9
"""A category with less than this share of the largest one counts as not in the mix."""


@dataclass(frozen=True, slots=True)
class CurriculumSource:
    """What the curriculum needs to know of a dataset.

    Attributes:
        name: Dataset name, unique.
        category: What the mix counts: a dataset's category, or a skill of the built-in world.
        stage: First stage that uses it.
        records: Training examples; a dataset without any is never drawn.
        max_share: Largest share of one stage.
    """

    name: str
    category: str
    stage: Stage
    records: int
    max_share: float = 1.0


def stage_at(step: int, steps: int, boundaries: Sequence[float]) -> Stage:
    """The stage of optimiser step ``step`` (0-based) of ``steps``.

    Args:
        step: The step; at or after ``steps`` it is the last stage.
        steps: Steps of the whole training.
        boundaries: Rising ends of the three stages as shares of the steps, the last 1.0.

    Raises:
        ValueError: ``steps`` is not positive or there are not three boundaries.
    """
    if steps < 1 or len(boundaries) != len(STAGES):
        raise ValueError(f"steps {steps} must be positive and boundaries {boundaries} three")
    for stage, end in zip(STAGES, boundaries, strict=True):
        if step < end * steps:
            return stage
    return 3


def stage_weights(
    stage: Stage, sources: Sequence[CurriculumSource], mix: Mapping[str, float], replay: float
) -> dict[str, float]:
    """Share of draws by dataset name in one stage; the shares sum to 1.

    Args:
        stage: 1, 2 or 3.
        sources: The datasets present.
        mix: Category to share, not negative; categories without data are renormalised away and
            datasets of categories that are not named are not drawn.
        replay: Least share of datasets of earlier stages, where there are any.

    Returns:
        A weight for every source, 0 for those not drawn, in the order of ``sources``.

    Raises:
        DataError: No dataset of the mix's categories is present.
    """
    wanted = [s for s in _language_first(sources) if s.records > 0 and mix.get(s.category, 0) > 0]
    least = NEGLIGIBLE * max((mix[s.category] for s in wanted), default=0.0)
    wanted = [s for s in wanted if mix[s.category] >= least]
    if not wanted:
        present = sorted({s.category for s in sources if s.records > 0})
        raise DataError(
            f"no dataset belongs to the categories of the mix {dict(mix)}; "
            f"categories with training records: {', '.join(present) or 'none'}",
            remedy="name other categories in the mix, or add datasets",
        )
    level = max(stage, min(s.stage for s in wanted))
    active = [s for s in wanted if s.stage <= level]
    weights = _by_category(active, mix)
    earlier = {s.name for s in active if s.stage < level}
    weights = _with_replay(weights, earlier, replay)
    weights = _with_max_share(weights, active, earlier)
    return {s.name: weights.get(s.name, 0.0) for s in sources}


def _language_first(sources: Sequence[CurriculumSource]) -> list[CurriculumSource]:
    """Sources with the earliest language datasets moved to stage 1."""
    stages = [s.stage for s in sources if s.category == "language" and s.records > 0]
    first = min(stages, default=1)
    return [
        CurriculumSource(s.name, s.category, 1, s.records, s.max_share)
        if s.category == "language" and s.stage == first
        else s
        for s in sources
    ]


def _by_category(active: Sequence[CurriculumSource], mix: Mapping[str, float]) -> dict[str, float]:
    categories = {s.category for s in active}
    total = math.fsum(mix[category] for category in categories)
    roots = {
        category: math.fsum(math.sqrt(s.records) for s in active if s.category == category)
        for category in categories
    }
    return {
        s.name: mix[s.category] / total * math.sqrt(s.records) / roots[s.category] for s in active
    }


def _with_replay(weights: dict[str, float], earlier: set[str], replay: float) -> dict[str, float]:
    """Raise the earlier datasets' part to ``replay`` by one factor, lower the others by one."""
    old = math.fsum(weights[name] for name in earlier)
    new = math.fsum(weight for name, weight in weights.items() if name not in earlier)
    if old >= replay or old <= 0.0 or new <= 0.0:
        return weights
    return {
        name: w / old * replay if name in earlier else w / new * (1.0 - replay)
        for name, w in weights.items()
    }


def _with_max_share(
    weights: dict[str, float], active: Sequence[CurriculumSource], earlier: set[str]
) -> dict[str, float]:
    """Cut what is above its ``max_share``; never give a later dataset what was replay's."""
    weights = dict(weights)
    full: set[str] = set()
    while True:
        over = [s for s in active if s.name not in full and weights[s.name] > s.max_share]
        if not over:
            return weights
        source = over[0]
        full.add(source.name)
        others = [s for s in active if s.name not in full and weights[s.name] > 0.0]
        kin = [s for s in others if s.category == source.category]
        if source.name in earlier:
            others = [s for s in others if s.name in earlier] or others
            kin = [s for s in kin if s.name in earlier]
        takers = kin or others
        if not takers:
            return weights
        excess = weights[source.name] - source.max_share
        weights[source.name] = source.max_share
        given = math.fsum(weights[s.name] for s in takers)
        for taker in takers:
            weights[taker.name] += excess * (weights[taker.name] / given)
