"""The built-in source: verifiable thoughts over the task world, labelled `synthetic`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from agentforge.data.splits import Split, split_of_text
from agentforge.data.thinking_tokens import THINKING_END, THINKING_START
from agentforge.reasoning.example import ReasoningExample
from agentforge.reasoning.problems import Problem, draw_problem, topic_of
from agentforge.reasoning.strategies import BY_NAME, STRATEGIES
from agentforge.reasoning.templates import Solution, solve

SYNTHETIC = "synthetic"
MOST_STALE = 200_000
"""Draws without a new problem after which a split is taken to be used up."""


@dataclass(frozen=True, slots=True)
class Task:
    """A problem of one split, asked with one strategy.

    Attributes:
        problem: The problem; two tasks of one split and strategy never share it.
        strategy: The strategy its solution takes.
        named: Whether the prompt asks for it in words.
    """

    problem: Problem
    strategy: str
    named: bool

    @property
    def prompt(self) -> str:
        """What a person would type."""
        return self.problem.prompt(self.strategy if self.named else None)


def tasks(
    strategy: str, split: Split, count: int, seed: int, named_share: float = 1.0
) -> list[Task]:
    """Problems of one strategy that fall into one split by their question.

    The split is decided by the question without the strategy, so that no held-out problem was
    trained on under another strategy. Held-out problems differ from each other; training problems
    may repeat, as the space of small ones is finite.

    Args:
        strategy: Its name.
        split: Which split's problems to keep.
        count: Tasks wanted.
        seed: Seed of the generator; strategy and split are mixed in.
        named_share: Share of prompts that name the strategy.

    Raises:
        ValueError: The split holds fewer than `count` different problems.
    """
    rng = random.Random(f"{seed}/reasoning/{strategy}/{split}")
    found: list[Task] = []
    seen: set[str] = set()
    stale = 0
    while len(found) < count:
        problem = draw_problem(topic_of(strategy, rng), rng)
        named = rng.random() < named_share
        question = problem.question
        if split_of_text(question) != split or (split != "train" and question in seen):
            stale += 1
            if stale > MOST_STALE:
                raise ValueError(f"{strategy}/{split} has only {len(found)} problems, not {count}")
            continue
        stale = 0
        seen.add(question)
        found.append(Task(problem, strategy, named))
    return found


def examples(
    strategy: str, split: Split, count: int, seed: int, corrupt_share: float, named_share: float
) -> list[ReasoningExample]:
    """Solved tasks of one strategy.

    Args:
        strategy: Its name.
        split: Which split.
        count: How many.
        seed: Seed of problems and slips.
        corrupt_share: Share of thoughts with one wrong step (LLM-written data have them too).
        named_share: Share of prompts that name the strategy.
    """
    rng = random.Random(f"{seed}/solutions/{strategy}/{split}")
    found = []
    for number, task in enumerate(tasks(strategy, split, count, seed, named_share)):
        corrupt = rng.random() < corrupt_share
        solution = solve(task.problem, strategy, rng, corrupt)
        found.append(_example(task, solution, f"{SYNTHETIC}/{strategy}/{split}/{seed}/{number}"))
    return found


def all_examples(
    split: Split, count: int, seed: int, corrupt_share: float, named_share: float
) -> Iterator[ReasoningExample]:
    """`count` examples of each of the ten strategies, strategy by strategy."""
    for strategy in STRATEGIES:
        yield from examples(strategy.name, split, count, seed, corrupt_share, named_share)


def _example(task: Task, solution: Solution, name: str) -> ReasoningExample:
    strategy = BY_NAME[task.strategy]
    return ReasoningExample(
        id=name,
        prompt=task.prompt,
        reasoning=f"{THINKING_START}{strategy.token} {solution.thought}{THINKING_END}",
        answer=f"{solution.answer}.",
        strategy=task.strategy,
        difficulty=strategy.difficulty,
        topic=task.problem.topic,
        model_source=SYNTHETIC,
        quality=1.0 if solution.right else 0.0,
    )
