"""What Phase 3 measures of a model: thinking, answers, other skills, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentforge.config.schema import RunConfig
from agentforge.data.prepare import Prepared
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.cognate.measure import measure_model
from agentforge.phases.cognate.tasks import measure_tasks
from agentforge.phases.quietstar.limits import most_tokens
from agentforge.sizing import longest_sequence
from agentforge.thinking.answering import AnswerOptions, reply
from agentforge.thinking.questions import Judged, Question, ask, first_of_each, majority
from agentforge.thinking.thought import ThoughtReader

TIMED = 10
"""Answers that are timed, one at a time."""
VOTED = 20
"""Questions per strategy of the majority vote."""
GREEDY = 3
"""One question in so many is answered greedily too."""


@dataclass(frozen=True, slots=True)
class Thinker:
    """One model on the report split.

    Attributes:
        name: Its name in tables.
        judged: Free generations at the deployment temperature.
        greedy: Every third question without sampling.
        skills: Score of every skill or dataset that was not baked.
        majority: Accuracy of a vote over several thoughts; None where it was not taken.
        majority_single: Accuracy of the same questions without a vote.
    """

    name: str
    judged: Judged
    greedy: Judged
    skills: dict[str, float]
    majority: float | None = None
    majority_single: float | None = None

    @property
    def right(self) -> NDArray[np.bool_]:
        """Right answers at the deployment temperature, one a question."""
        return self.judged.right


def measure_thinker(
    name: str,
    config: RunConfig,
    model: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    questions: Sequence[Question],
    data: Prepared,
    replayed: Sequence[str],
    between: Callable[[], None],
    votes: bool = False,
) -> Thinker:
    """Measure a model on the report split; every model meets the same questions and draws."""
    wanted = config.quietstar

    def asked(chosen: Sequence[Question], temperature: float, copies: int = 1) -> Judged:
        return ask(
            model,
            behaviour,
            reader,
            chosen,
            temperature=temperature,
            seed=config.seed,
            max_new_tokens=most_tokens(config, model),
            copies=copies,
            between=between,
        )

    judged = asked(questions, wanted.temperature)
    greedy = asked(questions[::GREEDY], 0.0)
    vote: float | None = None
    single: float | None = None
    if votes:
        chosen = first_of_each(questions, VOTED)
        several = asked(chosen, wanted.temperature, wanted.votes)
        vote = float(np.mean(majority(reader, several, chosen)))
        single = several.share(several.right)
    return Thinker(
        name=name,
        judged=judged,
        greedy=greedy,
        skills=skill_scores(config, model, behaviour, data, replayed, between),
        majority=vote,
        majority_single=single,
    )


def skill_scores(
    config: RunConfig,
    model: CognateLM,
    behaviour: Behaviour,
    data: Prepared,
    names: Sequence[str],
    between: Callable[[], None],
) -> dict[str, float]:
    """Exact match of the world's skills; the mean probability of a target token of records."""
    kept = [n for n in names if n in data.held_out["report"]]
    found = measure_model(
        "skills",
        model,
        behaviour,
        data,
        "report",
        config.cognate.eval_batch,
        between,
        only=kept,
        timed=False,
    )
    if config.data.source == "world":
        return {n: r.accuracy for n, r in found.results.items()}
    return {n: float(np.exp(-r.loss)) for n, r in found.results.items()}


def direct_accuracy(
    config: RunConfig,
    model: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    questions: Sequence[Question],
    between: Callable[[], None],
) -> NDArray[np.bool_]:
    """Right answers of a model that may not think, at the deployment temperature."""
    between()
    found = reply(
        model,
        behaviour,
        reader,
        [q.prompt for q in questions],
        AnswerOptions(
            thinking="never",
            temperature=config.quietstar.temperature,
            seed=config.seed,
            max_new_tokens=most_tokens(config, model),
        ),
    )
    right = [r.answer == q.answer for r, q in zip(found, questions, strict=True)]
    return np.array(right, dtype=np.bool_)


def records_figures(
    config: RunConfig,
    model: CognateLM,
    behaviour: Behaviour,
    data: Prepared,
    between: Callable[[], None],
) -> dict[str, tuple[float, int]]:
    """GSM8K and ARC of real records, answered without thoughts: value and items by W&B name."""
    if data.inventory is None or not config.cognate.task_items:
        return {}
    found = measure_tasks(
        model, behaviour, data, config.cognate.task_items, longest_sequence(config), between
    )
    values: dict[str, tuple[float, int]] = {}
    if found.gsm8k is not None:
        values["rl/gsm8k_accuracy"] = (found.gsm8k.flexible.value, found.gsm8k.flexible.n)
        values["rl/final_gsm8k_accuracy"] = values["rl/gsm8k_accuracy"]
    arc = [r.normalised for name, r in found.choices.items() if name.startswith("arc")]
    if arc:
        n = sum(a.n for a in arc)
        values["rl/arc_accuracy"] = (sum(a.value * a.n for a in arc) / n, n)
    return values


def answer_ms(
    config: RunConfig,
    model: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    questions: Sequence[Question],
    thinking: bool,
) -> tuple[float, int]:
    """Median clock time of one whole answer, batch 1, with the reference decoder; and how many."""
    times = []
    for question in questions[:: max(1, len(questions) // TIMED)][:TIMED]:
        began = time.perf_counter()
        reply(
            model,
            behaviour,
            reader,
            [question.prompt],
            AnswerOptions(
                thinking="free" if thinking else "never",
                temperature=config.quietstar.temperature,
                seed=config.seed,
                max_new_tokens=most_tokens(config, model),
            ),
        )
        times.append(1000 * (time.perf_counter() - began))
    return float(np.median(times)), len(times)
