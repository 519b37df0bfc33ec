"""The built-in reasoning examples: right by other arithmetic, never giving the answer away."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from agentforge.data.example import prompt_text
from agentforge.data.splits import split_of_text
from agentforge.data.thinking_tokens import THINKING_TOKENS
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.reasoning.builtin import all_examples, examples, tasks
from agentforge.reasoning.example import ReasoningExample
from agentforge.reasoning.problems import STRATEGIES_OF, Topic, draw_problem
from agentforge.reasoning.strategies import BY_NAME, STRATEGIES
from agentforge.reasoning.templates import (
    implied_answer,
    right_answer,
    right_thoughts,
    solve,
)
from agentforge.reasoning.validate import fault_of, thought_text

TOPICS: list[Topic] = list(STRATEGIES_OF)
every_strategy = pytest.mark.parametrize("strategy", [s.name for s in STRATEGIES])


def answer_by_hand(topic: Topic, question: str) -> str:
    """Another reading of the question, from its text alone."""
    if topic == "weather":
        a, b, c, d = (int(n) for n in re.findall(r"\d", question))
        return "rain" if a + b > c + d else "sun"
    if topic == "animals":
        pairs = re.findall(r"(\d) (dogs|cats)", question)
        asked = question.rstrip(".").split()[-1]
        return str(sum(int(n) for n, animal in pairs if animal == asked) % 10)
    if topic == "gap":
        assert " x" in question
        return "open"
    if topic == "claim":
        *numbers, claim = (int(n) for n in re.findall(r"\d", question))
        return "yes" if sum(numbers) % 10 == claim else "no"
    return str(sum(int(n) for n in re.findall(r"\d", question)) % 10)


def test_there_are_ten_strategies_in_the_order_of_their_tokens() -> None:
    assert len(STRATEGIES) == 10
    assert tuple(s.token for s in STRATEGIES) == THINKING_TOKENS[2:]
    assert len({s.words for s in STRATEGIES}) == 10
    assert {s.name: s.threshold for s in STRATEGIES} == {
        "chain_of_thought": 0.90,
        "mece": 0.85,
        "falsification": 0.80,
        "expert": 0.85,
        "orthogonal": 0.75,
        "doubt": 0.85,
        "bayesian": 0.75,
        "multidomain": 0.85,
        "correction": 0.85,
        "uncertainty": 0.85,
    }


def test_ids_of_the_twelve_tokens_are_the_last_ones_in_order() -> None:
    tokenizer = world_tokenizer()
    last = tokenizer.vocab_size
    assert tokenizer.thinking_ids == tuple(range(last - 12, last))
    assert [tokenizer.id_to_token(i) for i in tokenizer.thinking_ids] == list(THINKING_TOKENS)


@pytest.mark.parametrize("topic", TOPICS)
def test_answers_agree_with_arithmetic_on_the_question(topic: Topic) -> None:
    rng = random.Random(3)
    for _ in range(300):
        problem = draw_problem(topic, rng)
        assert right_answer(problem) == answer_by_hand(topic, problem.question)
        for strategy in problem.strategies:
            solution = solve(problem, strategy, rng)
            assert solution.right
            assert solution.answer == right_answer(problem)
            assert solution.thought in right_thoughts(problem, strategy)


@every_strategy
def test_the_answer_follows_from_the_last_two_values_and_is_not_written(strategy: str) -> None:
    copied = 0
    found = tasks(strategy, "train", 400, seed=1)
    for task in found:
        rng = random.Random(0)
        solution = solve(task.problem, strategy, rng)
        implied = implied_answer(strategy, solution.thought, ("rain", "sun"))
        assert implied == solution.answer
        words = solution.thought.split()
        copied += words[-1] == solution.answer
        assert solution.answer not in ("yes", "no", "open") or solution.answer not in words
    # A digit that happens to equal the last operand (the other one is 0, or chance): no copying.
    assert copied <= (0.5 if strategy == "multidomain" else 0.2) * len(found)


@every_strategy
def test_a_corrupted_thought_is_followed_to_its_end(strategy: str) -> None:
    rng = random.Random(5)
    slipped = 0
    for task in tasks(strategy, "train", 300, seed=2):
        solution = solve(task.problem, strategy, rng, corrupt=True)
        assert implied_answer(strategy, solution.thought, ("rain", "sun")) == solution.answer
        if not solution.right:
            slipped += 1
            assert solution.thought not in right_thoughts(task.problem, strategy)
    assert slipped > 200


def test_shares_of_corrupted_and_of_named_examples() -> None:
    found = list(all_examples("train", 400, 7, corrupt_share=0.1, named_share=0.85))
    wrong = sum(e.quality == 0 for e in found)
    named = sum(e.prompt.startswith(f"{BY_NAME[e.strategy].words}: ") for e in found)
    assert 0.07 * len(found) < wrong < 0.12 * len(found)
    assert 0.82 * len(found) < named < 0.88 * len(found)
    assert Counter(e.strategy for e in found) == {s.name: 400 for s in STRATEGIES}
    assert {e.model_source for e in found} == {"synthetic"}
    assert len({e.id for e in found}) == len(found)
    assert all(fault_of(e) is None for e in found)
    assert not any(e.quality == 0 for e in all_examples("train", 50, 7, 0.0, 1.0))


def test_splits_share_no_question_under_any_strategy() -> None:
    seen: dict[str, set[str]] = {}
    for split in ("train", "search", "rescore", "report"):
        for strategy in STRATEGIES:
            for task in tasks(strategy.name, split, 60, seed=0):
                assert split_of_text(task.problem.question) == split
                seen.setdefault(split, set()).add(task.problem.question)
    names = list(seen)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not seen[one] & seen[other]


def test_sets_repeat_from_their_seed() -> None:
    def of(seed: int) -> list[ReasoningExample]:
        return examples("doubt", "train", 30, seed, 0.2, 0.5)

    assert of(4) == of(4)
    assert of(4) != of(5)


def test_every_word_is_one_token_and_everything_fits() -> None:
    tokenizer = world_tokenizer()
    longest = 0
    for example in all_examples("train", 100, 1, 0.1, 0.8):
        text = f"{prompt_text(example.prompt)}{example.reasoning} {example.answer}"
        ids = tokenizer.encode(text, allow_special=True)
        words = re.findall(r"\w+", f"{example.prompt} {thought_text(example)} {example.answer}")
        pieces = [tokenizer.id_to_token(i) or "" for i in ids]
        for word in words:
            assert any(p.lstrip("\u2581") == word for p in pieces), (word, pieces)
        longest = max(longest, len(ids))
    assert longest <= 48


def test_a_strategy_that_does_not_fit_the_topic_is_refused() -> None:
    problem = draw_problem("weather", random.Random(0))
    with pytest.raises(ValueError, match="does not solve 'weather'"):
        solve(problem, "mece", random.Random(0))


def test_too_many_held_out_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="has only"):
        tasks("bayesian", "report", 100_000, seed=0)
