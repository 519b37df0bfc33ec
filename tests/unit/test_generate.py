"""Choosing tokens: every knob against its definition, and streams that repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agentforge.formats.packed import read_packed
from agentforge.runtime.generate import SamplingOptions, TokenSequence, choose, generate
from agentforge.runtime.lower import lower_packed
from agentforge.runtime.reference import ReferenceExecutor
from tests.unit.test_packed_directory import save, ternary_model

LOGITS = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05]))


def shares(options: SamplingOptions, seen: tuple[int, ...] = ()) -> list[float]:
    uniform = (np.arange(2000) + 0.5) / 2000
    chosen = [choose(LOGITS, options, seen, float(u)) for u in uniform]
    return [chosen.count(i) / 2000 for i in range(5)]


def test_tokens_come_with_their_probability() -> None:
    assert shares(SamplingOptions()) == pytest.approx([0.5, 0.2, 0.15, 0.1, 0.05], abs=1e-3)


def test_temperature_sharpens() -> None:
    p = np.exp(LOGITS / 0.5)
    assert shares(SamplingOptions(temperature=0.5)) == pytest.approx(list(p / p.sum()), abs=1e-3)
    assert choose(LOGITS, SamplingOptions(temperature=0), (), None) == 0


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    assert shares(SamplingOptions(top_k=2)) == pytest.approx([5 / 7, 2 / 7, 0, 0, 0], abs=1e-3)
    # .5 + .2 reach .6 together; the third would begin at .7.
    assert shares(SamplingOptions(top_p=0.6)) == pytest.approx([5 / 7, 2 / 7, 0, 0, 0], abs=1e-3)
    assert shares(SamplingOptions(top_p=0.1)) == [1, 0, 0, 0, 0]


def test_repetition_is_penalised_on_the_logits() -> None:
    scores = LOGITS.copy()
    scores[0] *= 2  # negative logits are multiplied
    p = np.exp(scores)
    found = shares(SamplingOptions(repetition_penalty=2.0), seen=(0, 0))
    assert found == pytest.approx(list(p / p.sum()), abs=1e-3)
    assert choose(LOGITS + 3, SamplingOptions(repetition_penalty=9.0), (0,), None) == 1


def test_forbidden_tokens_never_come() -> None:
    options = SamplingOptions(forbidden=(0, 4))
    assert shares(options) == pytest.approx([0, 0.2 / 0.45, 0.15 / 0.45, 0.1 / 0.45, 0], abs=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"repetition_penalty": 0}],
)
def test_values_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        SamplingOptions(**wrong)  # type: ignore[arg-type]


@pytest.fixture
def sequence(tmp_path: Path) -> TokenSequence:
    plan = lower_packed(read_packed(save(tmp_path / "model", ternary_model())))
    return TokenSequence(ReferenceExecutor(plan), plan.context)


def test_equal_seeds_give_equal_text_and_stop_where_told(sequence: TokenSequence) -> None:
    options = SamplingOptions(seed=3, max_new_tokens=12)
    first = list(generate(sequence, [1, 2, 3], options, stop_ids=()))
    assert len(first) == 12
    assert sequence.ids == [1, 2, 3, *first]
    sequence.restart()
    assert list(generate(sequence, [1, 2, 3], options, stop_ids=())) == first
    sequence.restart()
    stopped = list(generate(sequence, [1, 2, 3], options, stop_ids=(first[4],)))
    assert stopped == first[: first.index(first[4])]
    sequence.restart()
    other = SamplingOptions(seed=4, max_new_tokens=12)
    assert list(generate(sequence, [1, 2, 3], other, stop_ids=())) != first


def test_it_ends_with_the_context_or_when_asked(sequence: TokenSequence) -> None:
    many = SamplingOptions(max_new_tokens=500)
    assert len(list(generate(sequence, [1] * 38, many, stop_ids=()))) == 3
    assert sequence.room == 0
    with pytest.raises(ValueError, match="1 tokens; allowed: 1 to 0"):
        sequence.read([1])
    sequence.restart()
    calls: list[int] = []

    def cancelled() -> bool:
        calls.append(1)
        return len(calls) > 4

    assert len(list(generate(sequence, [1], many, stop_ids=(), cancelled=cancelled))) == 4
