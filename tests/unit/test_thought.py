"""Reading thoughts, judging answers, distances, replies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.model.behaviour import Behaviour
from agentforge.reasoning.builtin import tasks
from agentforge.thinking.answering import AnswerOptions, reply
from agentforge.thinking.distance import edit_distance, js_divergence, phi
from agentforge.thinking.questions import judge_one, question_of_task
from agentforge.thinking.thought import Answered, ThoughtReader
from tests.unit.thinking_models import small_model

TOKENIZER = world_tokenizer()
READER = ThoughtReader(TOKENIZER)


def read(text: str, ended: bool = True) -> Answered:
    return READER.read(TOKENIZER.encode(text, allow_special=True), ended)


def test_a_thought_is_taken_apart() -> None:
    found = read("[thinking]<mece> 3 5 8[/endthinking] 9.")
    assert found.well_formed
    assert found.strategy == "mece"
    assert TOKENIZER.decode(found.thought).strip() == "3 5 8"
    assert TOKENIZER.decode(found.answer).strip() == "9."
    assert READER.text(found, show_thought=False) == "9."
    assert READER.text(found, show_thought=True) == "(mece: 3 5 8) 9."


@pytest.mark.parametrize(
    "text",
    [
        " 9.",
        "[thinking]",
        "[thinking] 3 5[/endthinking] 9.",
        "[thinking]<step> 3 5 9.",
        "[thinking]<step>[/endthinking] 9.",
        "[thinking]<step> 3[/endthinking]",
        "[thinking]<step> 3[/endthinking] 9[/endthinking].",
        "[thinking]<step> 3 <mece> 4[/endthinking] 9.",
        "[thinking]<step> 3[thinking] 4[/endthinking] 9.",
        " 9[thinking]<step> 3[/endthinking] 9.",
        "",
    ],
)
def test_what_is_not_a_thought_with_an_answer(text: str) -> None:
    assert not read(text).well_formed


def test_an_answer_without_its_end_is_not_well_formed() -> None:
    assert not read("[thinking]<step> 3[/endthinking] 9.", ended=False).well_formed


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=12), st.booleans())
def test_reading_never_raises(tokens: list[int], ended: bool) -> None:
    found = READER.read(tokens, ended)
    assert found.tokens == tuple(tokens)
    assert not (found.well_formed and READER.all_ids & set(found.answer))


def test_judging_needs_the_strategy_that_was_asked_for() -> None:
    named = question_of_task(tasks("mece", "search", 1, 0)[0])
    thought = next(iter(named.right["mece"]))
    right = f"[thinking]<mece> {thought}[/endthinking] {named.answer}"
    assert judge_one(READER, named, read(right)) == (True, True, True)
    other = right.replace("<mece>", "<step>")
    assert judge_one(READER, named, read(other)) == (False, False, False)
    wrong_answer = right.replace(f" {named.answer}", " open.")
    assert judge_one(READER, named, read(wrong_answer)) == (True, False, True)
    wrong_thought = right.replace(thought, "1 1 1")
    assert judge_one(READER, named, read(wrong_thought)) == (True, True, False)


def test_an_unnamed_question_takes_every_strategy_that_fits() -> None:
    task = tasks("mece", "search", 1, 0, named_share=0.0)[0]
    question = question_of_task(task)
    assert not question.named
    for strategy in task.problem.strategies:
        thought = next(iter(question.right[strategy]))
        token = TOKENIZER.id_to_token(READER.by_name[strategy])
        text = f"[thinking]{token} {thought}[/endthinking] {question.answer}"
        assert judge_one(READER, question, read(text)) == (True, True, True)
    text = f"[thinking]<bayesian> 1 2[/endthinking] {question.answer}"
    assert judge_one(READER, question, read(text)) == (False, False, False)


def test_asking_with_another_strategy_changes_prompt_and_right_answer_form() -> None:
    question = question_of_task(tasks("mece", "search", 1, 0)[0])
    other = question.asked_with("doubt")
    assert other.prompt == f"and doubt: {question.bare}"
    assert other.accepts("doubt")
    assert not other.accepts("mece")


words = st.lists(st.integers(0, 3), max_size=8)


@given(words, words, words)
def test_edit_distance_is_a_metric(a: list[int], b: list[int], c: list[int]) -> None:
    assert edit_distance(a, a) == 0
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_edit_distance_of_known_words() -> None:
    assert edit_distance([ord(c) for c in "kitten"], [ord(c) for c in "sitting"]) == 3


def test_js_divergence_bounds_and_phi() -> None:
    p = np.array([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]], dtype=np.float32)
    q = np.array([[0.0, 1.0], [0.5, 0.5], [0.75, 0.25]], dtype=np.float32)
    found = js_divergence(p, q)
    assert found[0] == pytest.approx(1.0)
    assert found[1] == pytest.approx(0.0)
    assert found[2] == pytest.approx(js_divergence(q, p)[2])
    a = np.array([True, True, False, False])
    assert phi(a, a) == pytest.approx(1.0)
    assert phi(a, ~a) == pytest.approx(-1.0)
    assert np.isnan(phi(a, np.ones(4, dtype=np.bool_)))


def test_replies_keep_generating_and_showing_apart() -> None:
    model = small_model(window=16, vocab=TOKENIZER.vocab_size)
    behaviour = Behaviour()

    def of(**options: object) -> list[Answered]:
        found = reply(
            model,
            behaviour,
            READER,
            ["add 3 5."],
            AnswerOptions(max_new_tokens=12, **options),  # type: ignore[arg-type]
        )
        return [found[0].chosen, *found[0].others]

    assert not any(READER.all_ids & set(a.tokens) for a in of(thinking="never", votes=4))
    assert all(a.opened for a in of(thinking="always", votes=4))
    assert all(a.strategy == "doubt" for a in of(strategy="doubt", votes=4))
    assert len(of(votes=5)) == 5
    with pytest.raises(ValueError, match="not one of"):
        of(strategy="guessing")
    with pytest.raises(ValueError, match="thinking is off"):
        of(strategy="doubt", thinking="never")
