"""Held-out questions, and how a model's free generations on them are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agentforge.data.example import prompt_text
from agentforge.data.tokenizers import TextTokenizer
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.reasoning.builtin import Task
from agentforge.reasoning.example import ReasoningExample
from agentforge.reasoning.strategies import BY_NAME
from agentforge.reasoning.templates import right_answer, right_thoughts
from agentforge.reasoning.validate import thought_text
from agentforge.thinking.sampling import sample
from agentforge.thinking.thought import Answered, ThoughtReader

ROWS = 600
"""Rows that are generated at once; more bring no speed on a CPU."""


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out question.

    Attributes:
        prompt: What a person would type.
        strategy: The strategy it is counted under; the prompt names it when `named`.
        named: Whether only this strategy is the right one.
        allowed: Strategies that are right when none is named.
        answer: The right answer.
        right: Right thoughts by strategy; empty where only the answer can be checked.
        topic: What it is about.
        bare: The question without a strategy.
    """

    prompt: str
    strategy: str
    named: bool
    allowed: tuple[str, ...]
    answer: str
    right: dict[str, frozenset[str]]
    topic: str
    bare: str

    def asked_with(self, strategy: str) -> Question:
        """The same question, asking for another strategy in words."""
        prompt = f"{BY_NAME[strategy].words}: {self.bare}"
        return replace(self, prompt=prompt, strategy=strategy, named=True)

    def unnamed(self) -> Question:
        """The same question, leaving the strategy to the model."""
        return replace(self, prompt=self.bare, named=False)

    def accepts(self, strategy: str | None) -> bool:
        """Whether a thought of this strategy is what was asked for."""
        return strategy == self.strategy if self.named else strategy in self.allowed


def question_of_task(task: Task) -> Question:
    """A built-in task as a question."""
    problem = task.problem
    names = (task.strategy,) if task.named else problem.strategies
    return Question(
        prompt=task.prompt,
        strategy=task.strategy,
        named=task.named,
        allowed=problem.strategies,
        answer=f"{right_answer(problem)}.",
        right={name: right_thoughts(problem, name) for name in names},
        topic=problem.topic,
        bare=problem.question,
    )


def question_of_example(example: ReasoningExample) -> Question:
    """An example of a generated set: its own thought is one right thought, not the only one."""
    return Question(
        prompt=example.prompt,
        strategy=example.strategy,
        named=True,
        allowed=(example.strategy,),
        answer=example.answer.strip(),
        right={example.strategy: frozenset({thought_text(example)})},
        topic=example.topic,
        bare=example.prompt,
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """Free generations on questions, one row each.

    Attributes:
        answered: What was written, taken apart.
        opened: A thought was opened.
        converged: Well formed, of a strategy that was asked for, with an answer.
        right: Converged and the answer is right.
        thought_right: Converged and the thought is right.
        strategies: Strategy each question is counted under.
    """

    answered: list[Answered]
    opened: NDArray[np.bool_]
    converged: NDArray[np.bool_]
    right: NDArray[np.bool_]
    thought_right: NDArray[np.bool_]
    strategies: list[str]

    def share(self, values: NDArray[np.bool_], strategy: str | None = None) -> float:
        """Share of True, over all questions or one strategy's; NaN without any."""
        if strategy is None:
            return float(values.mean()) if len(values) else float("nan")
        mine = np.array([s == strategy for s in self.strategies])
        return float(values[mine].mean()) if mine.any() else float("nan")

    def given_right_thought(self, strategy: str | None = None) -> tuple[float, int]:
        """Share of right answers among right thoughts, and how many of those there are."""
        mine = self.thought_right
        if strategy is not None:
            mine = mine & np.array([s == strategy for s in self.strategies])
        count = int(mine.sum())
        return (float(self.right[mine].mean()) if count else float("nan")), count

    def by_strategy(self, values: NDArray[np.bool_]) -> dict[str, float]:
        """Share of True by strategy, in the order they first appear."""
        return {s: self.share(values, s) for s in dict.fromkeys(self.strategies)}


def prompt_ids(tokenizer: TextTokenizer, questions: Sequence[Question]) -> list[list[int]]:
    """Token ids of the prompts in the chat template."""
    return tokenizer.encode_batch([prompt_text(q.prompt) for q in questions])


def judge_one(reader: ThoughtReader, question: Question, answered: Answered) -> tuple[bool, ...]:
    """Converged, answer right, thought right."""
    converged = answered.well_formed and question.accepts(answered.strategy)
    if not converged or answered.strategy is None:
        return False, False, False
    decode = reader.tokenizer.decode
    right = decode(answered.answer).strip() == question.answer
    known = question.right.get(answered.strategy, frozenset())
    return True, right, decode(answered.thought).strip() in known


def ask(
    model: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    questions: Sequence[Question],
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    copies: int = 1,
    between: Callable[[], None] | None = None,
) -> Judged:
    """Let a model think and answer freely.

    Args:
        model: The model; it is put into evaluation mode and back.
        behaviour: How it is run.
        reader: Reader of its vocabulary.
        questions: What is asked.
        temperature: Of the sampling; 0: greedy.
        seed: Two models asked with one seed meet the same draws.
        max_new_tokens: Tokens of thought and answer at most.
        copies: Generations a question; row `copies * i + c` of the result.
        between: Called between batches (control, heartbeat).
    """
    training = model.training
    model.eval()
    prompts = prompt_ids(reader.tokenizer, questions)
    # Rows of similar length end together.
    order = sorted(range(len(questions)), key=lambda i: len(prompts[i]))
    step = max(1, ROWS // copies)
    found: dict[int, list[Answered]] = {}
    for start in range(0, len(order), step):
        part = order[start : start + step]
        if between is not None:
            between()
        written = sample(
            model,
            [prompts[i] for i in part],
            behaviour,
            stop_id=reader.tokenizer.eos_id,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            rows=part,
            copies=copies,
        )
        for place, i in enumerate(part):
            rows = written[place * copies : (place + 1) * copies]
            found[i] = [reader.read(c.tokens, c.ended) for c in rows]
    model.train(training)
    answered = [a for i in range(len(questions)) for a in found[i]]
    asked = [q for q in questions for _ in range(copies)]
    verdicts = np.array(
        [judge_one(reader, q, a) for q, a in zip(asked, answered, strict=True)], dtype=np.bool_
    ).reshape(len(asked), 3)
    return Judged(
        answered=answered,
        opened=np.array([a.opened for a in answered], dtype=np.bool_),
        converged=verdicts[:, 0],
        right=verdicts[:, 1],
        thought_right=verdicts[:, 2],
        strategies=[q.strategy for q in asked],
    )


def majority(reader: ThoughtReader, judged: Judged, questions: Sequence[Question]) -> list[bool]:
    """Whether the most frequent well-formed answer of each question is right.

    Ties go to the answer that came first. `judged` holds several generations a question, in order.
    """
    copies = len(judged.answered) // max(1, len(questions))
    found = []
    for i, question in enumerate(questions):
        votes: dict[str, int] = {}
        for answered in judged.answered[i * copies : (i + 1) * copies]:
            if answered.well_formed:
                text = reader.tokenizer.decode(answered.answer).strip()
                votes[text] = votes.get(text, 0) + 1
        best = max(votes, key=lambda text: votes[text]) if votes else ""
        found.append(best == question.answer)
    return found


def first_of_each(questions: Sequence[Question], per_strategy: int) -> list[Question]:
    """The first few questions of every strategy, in their order."""
    count: dict[str, int] = {}
    found = []
    for question in questions:
        count[question.strategy] = count.get(question.strategy, 0) + 1
        if count[question.strategy] <= per_strategy:
            found.append(question)
    return found
