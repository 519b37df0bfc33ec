"""Choosing tokens: every knob against its definition, and streams that repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from agentforge_kernels.native import extension

from agentforge.formats.packed import read_packed
from agentforge.runtime.generate import TokenSequence, choose, generate
from agentforge.runtime.lower import lower_packed
from agentforge.runtime.native import NativeExecutor
from agentforge.runtime.reference import ReferenceExecutor
from agentforge.runtime.sampling_options import SamplingOptions
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


needs_native = pytest.mark.skipif(extension is None, reason="the extension was not built")


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_native)])
def sequence(tmp_path: Path, request: pytest.FixtureRequest) -> TokenSequence:
    plan = lower_packed(read_packed(save(tmp_path / "model", ternary_model())))
    executor = ReferenceExecutor(plan) if request.param == "reference" else NativeExecutor(plan)
    return TokenSequence(executor, plan.context)


def test_equal_seeds_give_equal_text_and_stop_where_told(sequence: TokenSequence) -> None:
    options = SamplingOptions(seed=3, max_new_tokens=12)
    first = list(generate(sequence, [1, 2, 3], options, stop_ids=()))
    assert len(first) == 12
    assert sequence.ids == [1, 2, 3, *first[:-1]]
    for burst in (3, 12, 50):
        sequence.restart()
        assert list(generate(sequence, [1, 2, 3], options, stop_ids=(), burst=burst)) == first
    sequence.restart()
    assert list(generate(sequence, [1, 2, 3], options, stop_ids=())) == first
    sequence.restart()
    stopped = list(generate(sequence, [1, 2, 3], options, stop_ids=(first[4],), burst=4))
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


def test_a_prompt_is_read_whole_even_if_nothing_follows(sequence: TokenSequence) -> None:
    options = SamplingOptions(max_new_tokens=5)
    assert list(generate(sequence, [1, 2], options, stop_ids=(), cancelled=lambda: True)) == []
    assert sequence.ids == [1, 2]
    none = SamplingOptions(max_new_tokens=0)
    assert list(generate(sequence, [3, 4], none, stop_ids=())) == []
    assert sequence.ids == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="0 tokens"):
        list(generate(sequence, [], options, stop_ids=()))


class OnlyReads:
    """An executor that leaves the choosing to Python."""

    def __init__(self, executor: NativeExecutor) -> None:
        self.run, self.reset = executor.run, executor.reset


@needs_native
@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=0, repetition_penalty=1.3),
        SamplingOptions(seed=5),
        SamplingOptions(temperature=0.7, top_k=7, seed=6),
        SamplingOptions(temperature=1.3, top_p=0.8, repetition_penalty=1.2, seed=7),
        SamplingOptions(top_k=20, top_p=0.5, forbidden=(3, 5, 8), seed=8),
    ],
)
def test_choosing_in_the_native_loop_is_choosing_in_python(
    options: SamplingOptions, tmp_path: Path
) -> None:
    plan = lower_packed(read_packed(save(tmp_path / "model", ternary_model())))
    executor = NativeExecutor(plan)
    native = TokenSequence(executor, plan.context)
    inside = list(generate(native, [4, 5, 4], options, stop_ids=(), burst=8))
    outside = TokenSequence(OnlyReads(executor), plan.context)
    assert list(generate(outside, [4, 5, 4], options, stop_ids=())) == inside
    assert len(inside) == 38


@needs_native
def test_native_choice_is_the_definition_on_any_logits() -> None:
    """Vocabularies from 1 to 3,000 tokens, flat and peaked, with every knob."""
    assert extension is not None
    luck = np.random.default_rng(0)
    for case in range(400):
        count = int(luck.integers(1, 3000))
        logits = (luck.standard_normal(count) * luck.choice([0.1, 3.0, 30.0])).astype(np.float32)
        options = SamplingOptions(
            temperature=float(luck.choice([0.0, 0.5, 1.0, 2.0])),
            top_k=int(luck.choice([0, 1, 5, count])),
            top_p=float(luck.choice([0.1, 0.9, 0.999, 1.0])),
            repetition_penalty=float(luck.choice([1.0, 0.8, 1.5])),
            forbidden=tuple(luck.integers(0, count, 2).tolist()) if count > 4 else (),
        )
        seen = luck.integers(0, count, int(luck.integers(0, 40))).astype(np.int32)
        uniform = float(luck.random())
        wanted = choose(
            logits.astype(np.float64),
            options,
            seen.tolist(),
            uniform if options.temperature else None,
        )
        forbidden = np.array(options.forbidden, dtype=np.int32)
        numbers = (options.temperature, options.top_p, options.repetition_penalty)
        told = np.concatenate(
            [
                np.array(numbers).view(np.int64),
                np.array([options.top_k, forbidden.ctypes.data, len(forbidden), 0, 0]),
            ]
        )
        found = extension.sample(
            logits.ctypes.data, count, told.ctypes.data, seen.ctypes.data, len(seen), uniform
        )
        assert found == wanted, (case, options)
