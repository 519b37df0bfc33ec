"""Properties of the curriculum: shares sum to one, replay holds, nothing is NaN."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentforge.data.curriculum import CurriculumSource, stage_at, stage_weights
from agentforge.data.registry import REGISTRY, Stage
from agentforge.errors import DataError

CATEGORIES = ("math", "code", "qa", "commonsense", "language")
STAGES = st.sampled_from((1, 2, 3))


@st.composite
def source_lists(draw: st.DrawFn) -> list[CurriculumSource]:
    count = draw(st.integers(1, 9))
    return [
        CurriculumSource(
            f"set{i}",
            draw(st.sampled_from(CATEGORIES)),
            draw(STAGES),
            draw(st.integers(0, 100_000)),
            draw(st.sampled_from((1.0, 1.0, 0.2))),
        )
        for i in range(count)
    ]


mixes = st.dictionaries(st.sampled_from(CATEGORIES), st.just(0.0) | st.floats(1e-6, 10), min_size=1)
wild_mixes = st.dictionaries(st.sampled_from(CATEGORIES), st.floats(0, 1e300), min_size=1)


def usable(sources: list[CurriculumSource], mix: dict[str, float]) -> list[CurriculumSource]:
    return [s for s in sources if s.records and mix.get(s.category, 0) > 0]


@given(STAGES, source_lists(), mixes | wild_mixes, st.floats(0, 1))
def test_shares_are_finite_and_sum_to_one(
    stage: Stage, sources: list[CurriculumSource], mix: dict[str, float], replay: float
) -> None:
    assume(usable(sources, mix))
    weights = stage_weights(stage, sources, mix, replay)
    assert list(weights) == [s.name for s in sources]
    assert all(math.isfinite(w) and w >= 0 for w in weights.values())
    assert math.fsum(weights.values()) == pytest.approx(1.0, abs=1e-9)


@given(STAGES, source_lists(), mixes, st.floats(0, 1))
def test_later_stages_wait_and_replay_holds(
    stage: Stage, sources: list[CurriculumSource], mix: dict[str, float], replay: float
) -> None:
    wanted = usable(sources, mix)
    assume(wanted)
    first_language = min(
        (s.stage for s in sources if s.category == "language" and s.records), default=1
    )

    def level(s: CurriculumSource) -> int:
        early = s.category == "language" and s.stage == first_language
        return 1 if early else s.stage

    reached = max(stage, min(level(s) for s in wanted))
    weights = stage_weights(stage, sources, mix, replay)
    assert all(weights[s.name] == 0 for s in sources if level(s) > reached)
    earlier = [s for s in wanted if level(s) < reached]
    if any(s.max_share == 1.0 for s in earlier):  # else max_share may win over replay
        assert math.fsum(weights[s.name] for s in wanted if level(s) < reached) >= replay - 1e-9


@given(STAGES, source_lists(), mixes, st.floats(0, 1))
def test_no_dataset_exceeds_its_share_while_another_can_take_it(
    stage: Stage, sources: list[CurriculumSource], mix: dict[str, float], replay: float
) -> None:
    assume(usable(sources, mix))
    weights = stage_weights(stage, sources, mix, replay)
    drawn = [s for s in sources if weights[s.name] > 0]
    if any(s.max_share == 1.0 for s in drawn):
        assert all(weights[s.name] <= s.max_share + 1e-9 for s in drawn)


def everything() -> list[CurriculumSource]:
    return [
        CurriculumSource(e.name, e.category, e.stage, 1000, e.max_share)
        for e in REGISTRY
        if e.default_on
    ]


def test_the_registry_in_three_stages() -> None:
    mix = dict.fromkeys(CATEGORIES, 1.0)
    drawn = [
        {n for n, w in stage_weights(stage, everything(), mix, 0.3).items() if w > 0}
        for stage in (1, 2, 3)
    ]
    assert drawn[0] == {"gsm8k", "svamp", "mbpp", "boolq", "wikitext"}
    assert drawn[1] - drawn[0] == {
        "code_x_glue",
        "arc_easy",
        "arc_challenge",
        "strategy_qa",
        "piqa",
    }
    assert drawn[2] - drawn[1] == {"hotpot_qa", "drop", "hellaswag", "fineweb_edu"}


def test_language_is_in_every_stage_whatever_is_present() -> None:
    late = [CurriculumSource("web", "language", 3, 50), CurriculumSource("m", "math", 1, 50)]
    weights = stage_weights(1, late, {"math": 0.5, "language": 0.5}, 0.3)
    assert weights == {"web": pytest.approx(0.5), "m": pytest.approx(0.5)}


def test_an_absent_category_is_renormalised_away() -> None:
    sources = [CurriculumSource("a", "math", 1, 10), CurriculumSource("b", "qa", 1, 10)]
    weights = stage_weights(1, sources, {"math": 0.3, "qa": 0.1, "code": 0.6}, 0.3)
    assert weights == {"a": pytest.approx(0.75), "b": pytest.approx(0.25)}


def test_size_counts_by_its_square_root() -> None:
    sources = [
        CurriculumSource("big", "code", 1, 10_000),
        CurriculumSource("small", "code", 1, 100),
    ]
    weights = stage_weights(1, sources, {"code": 2.0}, 0.0)
    assert weights["big"] / weights["small"] == pytest.approx(10.0)


def test_hellaswag_gets_at_most_a_fifth_of_a_stage() -> None:
    sources = [
        CurriculumSource("hellaswag", "commonsense", 3, 10_000, max_share=0.2),
        CurriculumSource("piqa", "commonsense", 2, 100),
        CurriculumSource("gsm8k", "math", 1, 100),
    ]
    weights = stage_weights(3, sources, {"commonsense": 0.9, "math": 0.1}, 0.3)
    assert weights["hellaswag"] == pytest.approx(0.2)
    assert weights["piqa"] == pytest.approx(1 - 0.2 - weights["gsm8k"])


def test_replay_lifts_the_earlier_stages() -> None:
    sources = [CurriculumSource("old", "math", 1, 10), CurriculumSource("new", "qa", 2, 10)]
    weights = stage_weights(2, sources, {"math": 0.01, "qa": 0.99}, 0.3)
    assert weights == {"old": pytest.approx(0.3), "new": pytest.approx(0.7)}
    kept = stage_weights(2, sources, {"math": 0.5, "qa": 0.5}, 0.3)
    assert kept == {"old": pytest.approx(0.5), "new": pytest.approx(0.5)}


def test_a_stage_without_data_of_the_mix_takes_the_next_that_has() -> None:
    sources = [CurriculumSource("a", "math", 1, 10), CurriculumSource("q", "qa", 3, 10)]
    assert stage_weights(1, sources, {"qa": 1.0}, 0.3) == {"a": 0.0, "q": 1.0}


@pytest.mark.parametrize("mix", [{}, {"code": 1.0}, {"math": 0.0}])
def test_a_mix_with_nothing_left_is_an_error(mix: dict[str, float]) -> None:
    with pytest.raises(DataError, match="categories with training records: math"):
        stage_weights(1, [CurriculumSource("a", "math", 1, 10)], mix, 0.3)


def test_stage_ends_belong_to_the_next_stage() -> None:
    ends = (0.3, 0.6, 1.0)
    assert [stage_at(step, 10, ends) for step in range(12)] == [1] * 3 + [2] * 3 + [3] * 6
    assert stage_at(0, 10, (0.0, 0.0, 1.0)) == 3
    assert stage_at(9, 10, (1.0, 1.0, 1.0)) == 1


@given(st.integers(1, 10_000), st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_stages_only_rise(steps: int, ends: list[float]) -> None:
    ends = [*sorted(ends), 1.0]
    shown = [stage_at(step, steps, ends) for step in range(0, steps, max(1, steps // 50))]
    assert shown == sorted(shown)


def test_impossible_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        stage_at(0, 0, (0.3, 0.6, 1.0))
    with pytest.raises(ValueError, match="three"):
        stage_at(0, 5, (0.5, 1.0))
