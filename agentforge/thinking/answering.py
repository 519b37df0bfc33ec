"""Answers with thoughts, for chat, batch use and the kernels' users.

Whether a thought is generated and whether it is shown are two switches: a hidden thought still
makes the answer better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agentforge.data.example import prompt_text
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.thinking.questions import Question, prompt_ids
from agentforge.thinking.sampling import sample
from agentforge.thinking.thought import Answered, ThoughtReader

Thinking = Literal["free", "always", "never"]


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How to answer.

    Attributes:
        thinking: The model decides; every answer begins with a thought; or none does.
        strategy: Name of the strategy each thought takes; None leaves it to the model.
        temperature: 0: greedy.
        seed: Of the draws.
        max_new_tokens: Tokens of thought and answer at most.
        votes: Thoughts in parallel whose most frequent answer is given; 1: no vote.
    """

    thinking: Thinking = "free"
    strategy: str | None = None
    temperature: float = 1.0
    seed: int = 0
    max_new_tokens: int = 40
    votes: int = 1


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; `ThoughtReader.text` of `chosen` shows it with or without its thought.

    Attributes:
        chosen: What was written, taken apart: thought, strategy, answer.
        answer: Text of the answer.
        thought: Text of the thought; empty without one.
        votes: How many of the parallel thoughts gave this answer.
        others: The other generations of the vote.
    """

    chosen: Answered
    answer: str
    thought: str
    votes: int = 1
    others: tuple[Answered, ...] = ()


def reply(
    model: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    prompts: Sequence[str],
    options: AnswerOptions,
) -> list[Reply]:
    """Answer prompts.

    Args:
        model: The model.
        behaviour: How it is run.
        reader: Reader of its vocabulary.
        prompts: What people typed.
        options: How to answer.

    Raises:
        ValueError: A strategy that does not exist, or one without thinking.
    """
    if options.strategy is not None and options.strategy not in reader.by_name:
        raise ValueError(f"strategy {options.strategy!r} is not one of {', '.join(reader.by_name)}")
    if options.strategy is not None and options.thinking == "never":
        raise ValueError(f"strategy {options.strategy!r} was chosen, but thinking is off")
    opened: list[int] = []
    if options.strategy is not None:
        opened = [reader.start, reader.by_name[options.strategy]]
    elif options.thinking == "always":
        opened = [reader.start]
    ids = [[*p, *opened] for p in reader.tokenizer.encode_batch([prompt_text(t) for t in prompts])]
    training = model.training
    model.eval()
    written = sample(
        model,
        ids,
        behaviour,
        stop_id=reader.tokenizer.eos_id,
        max_new_tokens=max(1, options.max_new_tokens - len(opened)),
        temperature=options.temperature,
        seed=options.seed,
        copies=options.votes,
        forbidden=sorted(reader.all_ids) if options.thinking == "never" else (),
    )
    model.train(training)
    found = [reader.read([*opened, *c.tokens], c.ended) for c in written]
    return [
        _reply(reader, found[i * options.votes : (i + 1) * options.votes])
        for i in range(len(prompts))
    ]


def _reply(reader: ThoughtReader, rows: Sequence[Answered]) -> Reply:
    """The most frequent answer among well-formed rows (all rows when none is); first one wins."""
    decode = reader.tokenizer.decode
    usable = [a for a in rows if a.ended and a.answer] or list(rows)
    texts = [decode(a.answer).strip() for a in usable]
    best, votes = Counter(texts).most_common(1)[0]
    chosen = usable[texts.index(best)]
    return Reply(
        chosen=chosen,
        answer=best,
        thought=decode(chosen.thought).strip() if chosen.opened else "",
        votes=votes,
        others=tuple(a for a in rows if a is not chosen),
    )


def think_with(
    model: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    questions: Sequence[Question],
    strategy: str,
    *,
    max_new_tokens: int,
) -> list[tuple[int, ...]]:
    """Greedy thoughts of one strategy on questions, which ask for it."""
    opened = [reader.start, reader.by_name[strategy]]
    asked = [q.asked_with(strategy) for q in questions]
    training = model.training
    model.eval()
    found = sample(
        model,
        [[*p, *opened] for p in prompt_ids(reader.tokenizer, asked)],
        behaviour,
        stop_id=reader.end,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
    )
    model.train(training)
    return [c.tokens for c in found]
