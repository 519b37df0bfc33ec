"""The built-in task world: short English questions whose answers can be checked, from a seed.

Three skills stand for the three specialists. Each was chosen because a 0.6M-parameter model learns
it in tens of seconds on one CPU thread (associative recall and mixed arithmetic were not learned in
that time):

    total     running totals of 3 5 9, last digits?              -> 3 8 7.      (reasoning)
    recall    remember 4 7 1. <a sentence> what did i say?       -> 4 7 1.      (memory)
    reverse   reverse 5 2 7 1.                                   -> 1 7 2 5.    (speed)

In `recall` the digits lie 21 tokens and more before the position that must produce them, which is
outside the attention window of the built-in preset. Two more kinds are learned along and reported,
not gated: `dialogue`, two turns whose second needs the first, and `story`, plain sentences for
perplexity.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from agentforge.data.example import Example
from agentforge.data.splits import Split, normalise, split_of

SKILLS = ("total", "reverse", "recall")
"""Skills with a gate, in the order of reports."""
KINDS = (*SKILLS, "dialogue", "story")
"""Everything the world can generate."""

_SIZES = ("big", "small", "old", "young", "quick", "quiet")
_COLOURS = ("red", "blue", "green", "white", "black", "brown")
_ANIMALS = ("dog", "cat", "fox", "bird", "horse", "mouse")
_VERBS = ("saw", "met", "liked", "found", "heard", "chased")
_PLACES = ("river", "house", "tree", "road", "hill", "bridge")
_NEAR = ("near", "under", "behind", "beside")
_MOVES = ("ran", "walked", "slept", "waited", "played", "hid")

REASONING_WORDS = tuple(
    """
    step by split into parts try to refute as an expert from another side and doubt weigh the
    evidence using two fields correct say how sure add is it yes no but so known x open a clerk
    baker farmer coins cakes cows rain sun dogs cats count words numbers
    """.split()
)
"""Words of Phase 3's questions and thoughts (`agentforge/reasoning/`): in the vocabulary from the
start, so that shapes never change."""


def _digits(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(10) for _ in range(count)]


def _join(digits: list[int]) -> str:
    return " ".join(map(str, digits))


def _animal(rng: random.Random) -> str:
    return f"the {rng.choice(_SIZES)} {rng.choice(_COLOURS)} {rng.choice(_ANIMALS)}"


def _place(rng: random.Random) -> str:
    return f"{rng.choice(_NEAR)} the {rng.choice(_SIZES)} {rng.choice(_PLACES)}"


def sentence(rng: random.Random) -> str:
    """One plain sentence of 11 to 13 words."""
    form = rng.randrange(3)
    if form == 0:
        return f"{_animal(rng)} {rng.choice(_VERBS)} {_animal(rng)} {_place(rng)}."
    if form == 1:
        return f"{_animal(rng)} {rng.choice(_MOVES)} {_place(rng)} and {rng.choice(_MOVES)}."
    return f"{_place(rng)}, {_animal(rng)} {rng.choice(_VERBS)} {_animal(rng)}."


def _total(rng: random.Random) -> Example:
    digits = _digits(rng, rng.randint(2, 4))
    totals = [sum(digits[: i + 1]) % 10 for i in range(len(digits))]
    return Example(
        prompt=f"running totals of {_join(digits)}, last digits?",
        answer=f"{_join(totals)}.",
        dataset="total",
        category="world",
        difficulty=len(digits),
    )


def _reverse(rng: random.Random) -> Example:
    digits = _digits(rng, rng.randint(4, 7))
    return Example(
        prompt=f"reverse {_join(digits)}.",
        answer=f"{_join(digits[::-1])}.",
        dataset="reverse",
        category="world",
        difficulty=len(digits),
    )


def _recall(rng: random.Random) -> Example:
    digits = _digits(rng, rng.randint(3, 4))
    return Example(
        prompt=f"remember {_join(digits)}. {sentence(rng)} what did i say?",
        answer=f"{_join(digits)}.",
        dataset="recall",
        category="world",
        difficulty=len(digits),
    )


def _dialogue(rng: random.Random) -> Example:
    digits = _digits(rng, rng.randint(2, 3))
    between = rng.randint(0, 1)
    filler = "".join(f"{sentence(rng)} " for _ in range(between))
    return Example(
        prompt=f"remember {_join(digits)}.\nA: yes.\nQ: {filler}what did i say?",
        answer=f"{_join(digits)}.",
        dataset="dialogue",
        category="world",
        difficulty=between,
    )


def _story(rng: random.Random) -> Example:
    return Example(prompt="", answer=sentence(rng), dataset="story", category="world")


_MAKERS: dict[str, Callable[[random.Random], Example]] = {
    "total": _total,
    "reverse": _reverse,
    "recall": _recall,
    "dialogue": _dialogue,
    "story": _story,
}


def generate(kind: str, split: Split, count: int, seed: int) -> list[Example]:
    """Items of one kind that fall into one split.

    Held-out splits hold every prompt once; the train split may repeat prompts, as the space of
    small problems is finite (`total` has 11,100 prompts).

    Args:
        kind: One of `KINDS`.
        split: Which split's prompts to keep.
        count: Items wanted.
        seed: Seed of the generator; the split and kind are mixed in.

    Raises:
        ValueError: The kind is unknown, or the split holds fewer than `count` different prompts.
    """
    if kind not in _MAKERS:
        raise ValueError(f"kind {kind!r} is not one of {KINDS}")
    rng = random.Random(f"{seed}/{kind}/{split}")
    make = _MAKERS[kind]
    found: list[Example] = []
    seen: set[str] = set()
    stale = 0
    while len(found) < count:
        example = make(rng)
        key = normalise(example.prompt or example.answer)
        if split_of(example) != split or (split != "train" and key in seen):
            stale += 1
            if stale > 200_000:
                raise ValueError(f"{kind}/{split} has only {len(found)} prompts, not {count}")
            continue
        stale = 0
        seen.add(key)
        found.append(example)
    return found


def words() -> list[str]:
    """Every word the world uses, sorted; the tokenizer makes each one piece."""
    rng = random.Random(0)
    groups = (_SIZES, _COLOURS, _ANIMALS, _VERBS, _PLACES, _NEAR, _MOVES, REASONING_WORDS)
    text = [w for group in groups for w in group]
    for make in _MAKERS.values():
        for _ in range(20):
            example = make(rng)
            text += normalise(f"{example.prompt} {example.answer}").split()
    return sorted({w for w in text if w.isalpha()} - {"a", "q"})
