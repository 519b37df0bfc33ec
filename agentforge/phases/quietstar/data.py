"""Reasoning examples as corpora, and the questions they are measured with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agentforge.config.schema import RunConfig
from agentforge.data.corpus import Corpus
from agentforge.data.curriculum import CurriculumSource
from agentforge.data.example import prompt_text
from agentforge.data.prepare import Prepared
from agentforge.data.registry import Stage
from agentforge.data.splits import Split, split_of_text
from agentforge.data.tokenizers import TextTokenizer
from agentforge.errors import DataError
from agentforge.phases.cognate.results import skills_of
from agentforge.reasoning.builtin import examples, tasks
from agentforge.reasoning.dataset import ReasoningSet, read_set
from agentforge.reasoning.example import ReasoningExample
from agentforge.reasoning.strategies import STRATEGIES, Difficulty
from agentforge.thinking.questions import Question, question_of_example, question_of_task

THOUGHTS, SKILLS = "thoughts", "skills"
"""The two categories of a baking batch."""

_STAGE: dict[Difficulty, Stage] = {"easy": 1, "medium": 2, "hard": 3}


@dataclass(frozen=True, slots=True)
class ReasoningData:
    """What Phase 3 trains and measures on.

    Attributes:
        prepared: Phase 1's corpora with those of the thoughts; mixes count thoughts and skills.
        search: Questions looked at while training.
        report: Questions of the report.
        held_out: Solved search questions as a corpus, for the masked loss and accuracy.
        replayed: Corpora that are replayed.
        examples: Training examples.
        right: Share of them without a corrupted step.
        source: `synthetic`, or the folder of the set.
        reasoning_set: The set on disk; None for the built-in templates.
    """

    prepared: Prepared
    search: list[Question]
    report: list[Question]
    held_out: Corpus
    replayed: tuple[str, ...]
    examples: dict[str, list[ReasoningExample]]
    right: float
    source: str
    reasoning_set: ReasoningSet | None


def prepare_reasoning(config: RunConfig, data: Prepared) -> ReasoningData:
    """Generate or read the thoughts, encode them, and lay them beside Phase 1's data.

    Raises:
        DataError: The set of `quietstar.data.path` is missing, damaged or was not accepted.
    """
    wanted = config.quietstar.data
    found_set = read_set(wanted.path) if wanted.path is not None else None
    if found_set is None:
        train = {
            s.name: examples(
                s.name,
                "train",
                wanted.train_items,
                config.seed,
                wanted.corrupt_share,
                wanted.named_share,
            )
            for s in STRATEGIES
        }
        search = _builtin_questions("search", wanted.search_items, wanted.named_share)
        solved = [
            e
            for s in STRATEGIES
            for e in examples(s.name, "search", wanted.search_items, 0, 0.0, 1.0)
        ]
        report = _builtin_questions("report", wanted.report_items, wanted.named_share)
    else:
        found_set.require_accepted()
        train = _of_split(found_set, "train")
        search = _set_questions(found_set, "search", wanted.search_items)
        held = _of_split(found_set, "search")
        solved = [e for rows in held.values() for e in rows[: wanted.search_items]]
        report = _set_questions(found_set, "report", wanted.report_items)
    lacking = [s.name for s in STRATEGIES if not train.get(s.name)]
    if lacking:
        raise DataError(
            f"the reasoning data have no training example of {', '.join(lacking)}",
            remedy="generate more examples: all ten strategies are taught",
        )
    if not search or not report or not solved:
        raise DataError(
            "the reasoning data have no held-out example to measure on",
            remedy="generate more: three tenths of the prompts are held out",
        )
    limit = config.model.context
    corpora = {
        s.name: encode_thoughts(s.name, train[s.name], data.tokenizer, limit) for s in STRATEGIES
    }
    replayed = tuple(skills_of(data)) or tuple(data.train)
    sources = [
        CurriculumSource(s.name, THOUGHTS, _STAGE[s.difficulty], records=1) for s in STRATEGIES
    ]
    mix = config.quietstar.baking.replay_mix
    for name in replayed:
        # Shares within a category go by the root of the records.
        weight = mix.get(name, 0.0) if mix else 1.0
        if weight > 0:
            count = max(1, round(10_000 * weight * weight))
            sources.append(CurriculumSource(name, SKILLS, 1, records=count))
    everything = [e for rows in train.values() for e in rows]
    return ReasoningData(
        prepared=replace(
            data,
            train={**{n: data.train[n] for n in replayed}, **corpora},
            sources=tuple(sources),
            replay=0.0,
        ),
        search=search,
        report=report,
        held_out=encode_thoughts("held_out", solved, data.tokenizer, limit),
        replayed=replayed,
        examples=train,
        right=sum(e.quality >= 1.0 for e in everything) / len(everything),
        source=wanted.path or everything[0].model_source,
        reasoning_set=found_set,
    )


def encode_thoughts(
    name: str, found: Sequence[ReasoningExample], tokenizer: TextTokenizer, limit: int
) -> Corpus:
    """Prompt, thought and answer as ids; loss on thought, answer and end token.

    Examples longer than `limit` tokens are left out and counted as cut: half a thought would teach
    never to close one.

    Raises:
        DataError: Nothing fits.
    """
    prompts = tokenizer.encode_batch([prompt_text(e.prompt) for e in found])
    thoughts = tokenizer.encode_batch([e.reasoning.strip() for e in found], allow_special=True)
    answers = tokenizer.encode_batch([f" {e.answer.strip()}" for e in found])
    items: list[list[int]] = []
    first: list[int] = []
    answer_start: list[int] = []
    for prompt, thought, answer in zip(prompts, thoughts, answers, strict=True):
        item = [*prompt, *thought, *answer, tokenizer.eos_id]
        if len(item) <= limit:
            items.append(item)
            first.append(len(prompt))
            answer_start.append(len(prompt) + len(thought))
    if not items:
        raise DataError(
            f"no example of {name} fits into the model's context of {limit} tokens",
            remedy="raise model.context, or generate shorter thoughts",
        )
    lengths = np.array([len(i) for i in items], dtype=np.int64)
    return Corpus(
        name=name,
        category=THOUGHTS,
        tokens=np.array([t for i in items for t in i], dtype=np.int32),
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
        first_target=np.array(first, dtype=np.int32),
        difficulty=np.zeros(len(items), dtype=np.int32),
        cut=len(found) - len(items),
        answer_start=np.array(answer_start, dtype=np.int32),
    )


def _builtin_questions(split: Split, count: int, named_share: float) -> list[Question]:
    return [
        question_of_task(t) for s in STRATEGIES for t in tasks(s.name, split, count, 0, named_share)
    ]


def _of_split(found: ReasoningSet, split: Split) -> dict[str, list[ReasoningExample]]:
    rows: dict[str, list[ReasoningExample]] = {s.name: [] for s in STRATEGIES}
    for example in found.examples:
        if split_of_text(example.prompt) == split:
            rows[example.strategy].append(example)
    return rows


def _set_questions(found: ReasoningSet, split: Split, count: int) -> list[Question]:
    chosen: Mapping[str, list[ReasoningExample]] = _of_split(found, split)
    return [question_of_example(e) for rows in chosen.values() for e in rows[:count]]
