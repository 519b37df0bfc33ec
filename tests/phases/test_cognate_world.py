"""The built-in world: its answers, its splits, its distances, its vocabulary."""

from __future__ import annotations

import random
import re

import pytest

from agentforge.config.load import load_config
from agentforge.data.corpus import encode
from agentforge.data.example import Example, answer_text, prompt_text
from agentforge.data.splits import SPLITS, Split, normalise, split_of
from agentforge.data.thinking_tokens import THINKING_TOKENS
from agentforge.data.world import KINDS, SKILLS, generate, sentence, words
from agentforge.data.world_tokenizer import world_tokenizer

TOKENIZER = world_tokenizer()
REPORT = {kind: generate(kind, "report", 400, seed=0) for kind in KINDS}


def digits(text: str) -> list[int]:
    return [int(d) for d in re.findall(r"\d", text)]


def expected(example: Example) -> str:
    """The answer, worked out from the prompt alone."""
    asked = digits(example.prompt)
    if example.dataset == "total":
        said, total = [], 0
        for d in asked:
            total += d
            said.append(total - 10 * (total // 10))
    elif example.dataset == "reverse":
        said = [asked[len(asked) - 1 - i] for i in range(len(asked))]
    else:
        said = asked
    return " ".join(str(d) for d in said) + "."


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "story"])
def test_every_answer_is_right(kind: str) -> None:
    for example in REPORT[kind]:
        assert example.answer == expected(example), example.prompt
        assert example.dataset == kind
        assert example.category == "world"


def test_prompts_are_what_a_person_would_type() -> None:
    forms = {
        "total": r"running totals of \d( \d){1,3}, last digits\?",
        "reverse": r"reverse \d( \d){3,6}\.",
        "recall": r"remember \d( \d){2,3}\. [a-z, ]+\. what did i say\?",
        "dialogue": r"remember \d( \d){1,2}\.\nA: yes\.\nQ: ([a-z, ]+\. )?what did i say\?",
        "story": r"",
    }
    for kind, examples in REPORT.items():
        assert all(re.fullmatch(forms[kind], e.prompt) for e in examples), kind
    for example in REPORT["story"]:
        assert re.fullmatch(r"[a-z, ]+\.", example.answer)
        assert 11 <= len(example.answer.split()) <= 13


def test_difficulty_is_the_size_of_the_problem() -> None:
    for kind in ("total", "reverse", "recall"):
        assert all(e.difficulty == len(digits(e.prompt)) for e in REPORT[kind])
        assert len({e.difficulty for e in REPORT[kind]}) > 1
    for example in REPORT["dialogue"]:
        between = example.prompt.split("\nQ: ")[1].removesuffix("what did i say?")
        assert example.difficulty == (1 if between else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_splits_are_disjoint(kind: str) -> None:
    found: dict[Split, set[str]] = {}
    for split in SPLITS:
        # Other seeds, as a run's own training items have.
        examples = generate(kind, split, 300, seed=11 if split == "train" else 0)
        assert all(split_of(e) == split for e in examples)
        found[split] = {normalise(e.prompt or e.answer) for e in examples}
        if split != "train":
            assert len(found[split]) == 300, "held-out prompts are all different"
    for a in SPLITS:
        for b in SPLITS:
            assert a == b or not found[a] & found[b]


@pytest.mark.parametrize("skill", SKILLS)
def test_there_are_a_thousand_report_prompts_a_skill(skill: str) -> None:
    examples = generate(skill, "report", 1000, seed=0)
    assert len({e.prompt for e in examples}) == 1000


def test_generation_repeats_itself_and_depends_on_seed_kind_and_split() -> None:
    assert generate("recall", "search", 30, 3) == generate("recall", "search", 30, 3)
    assert generate("recall", "search", 30, 3) != generate("recall", "search", 30, 4)
    assert generate("recall", "search", 20, 3) == generate("recall", "search", 30, 3)[:20]
    assert generate("recall", "train", 30, 3) != generate("recall", "search", 30, 3)


def test_generation_says_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="'sort' is not one of"):
        generate("sort", "train", 1, 0)


@pytest.mark.parametrize("window", [load_config(preset="demo", env={}).config.model.window])
def test_recalled_digits_lie_outside_the_attention_window(window: int) -> None:
    """Distance from the position that must write a digit back to that digit, in tokens."""
    assert window == 16
    ids = {TOKENIZER.token_to_id(f"\u2581{d}"): d for d in range(10)}
    nearest = 10**9
    for example in [*REPORT["recall"], *generate("recall", "train", 400, seed=8)]:
        prompt = TOKENIZER.encode(prompt_text(example.prompt))
        answer = TOKENIZER.encode(answer_text(example))
        whole = prompt + answer
        asked = [i for i, t in enumerate(prompt) if t in ids]
        said = [i for i, t in enumerate(whole) if t in ids and i >= len(prompt)]
        assert [ids[whole[i]] for i in said] == [ids[whole[i]] for i in asked]
        assert len(asked) == example.difficulty
        for source, target in zip(asked, said, strict=True):
            nearest = min(nearest, (target - 1) - source)
    assert nearest >= window  # visible is what lies less than `window` back
    assert nearest == 21


def test_other_skills_fit_into_the_window_or_the_context() -> None:
    context = load_config(preset="demo", env={}).config.model.context
    for kind, examples in REPORT.items():
        corpus = encode(kind, kind, examples, TOKENIZER, context)
        assert corpus.cut == 0
        assert len(corpus) == len(examples)


def test_the_vocabulary_is_small_with_the_thinking_tokens_last() -> None:
    assert TOKENIZER.vocab_size <= 512
    assert len(TOKENIZER.thinking_ids) == 12
    last = TOKENIZER.vocab_size
    assert TOKENIZER.thinking_ids == tuple(range(last - 12, last))
    names = tuple(TOKENIZER.id_to_token(i) for i in TOKENIZER.thinking_ids)
    assert names == THINKING_TOKENS
    assert world_tokenizer().fingerprint == TOKENIZER.fingerprint


def test_numbers_are_read_digit_by_digit() -> None:
    for text, count in (("12345", 5), (" 907", 3), ("3.14", 4), ("reverse 10 20", 5)):
        pieces = [TOKENIZER.id_to_token(i) or "" for i in TOKENIZER.encode(text)]
        assert sum(any(c.isdigit() for c in p) for p in pieces) == len(digits(text))
        assert all(sum(c.isdigit() for c in p) <= 1 for p in pieces)
        assert len(pieces) == count
    for entry in range(TOKENIZER.vocab_size):
        assert sum(c.isdigit() for c in TOKENIZER.id_to_token(entry) or "") <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_prompt_and_answer_comes_back(kind: str) -> None:
    unknown = TOKENIZER.token_to_id("<unk>")
    for example in REPORT[kind]:
        prompt, answer = prompt_text(example.prompt), answer_text(example)
        whole = TOKENIZER.encode(prompt + answer)
        assert unknown not in whole
        assert not set(whole) & {TOKENIZER.eos_id, TOKENIZER.pad_id, *TOKENIZER.thinking_ids}
        assert TOKENIZER.decode(whole) == (prompt + answer).lower()
        # The template's border is a token border, so that training sees what a prompt gives.
        assert whole == TOKENIZER.encode(prompt) + TOKENIZER.encode(answer)


def test_words_are_single_pieces_and_any_ascii_text_can_be_written() -> None:
    for word in words():
        assert len(TOKENIZER.encode(f" {word}")) == 1
    unknown = TOKENIZER.token_to_id("<unk>")
    for text in ("xylophone? (a+b)*c = {7}~", "tabs_and-dashes: \"quoted\" 'q' @#$%^&|\\/<>[]`;!"):
        ids = TOKENIZER.encode(text)
        assert unknown not in ids
        assert TOKENIZER.decode(ids) == text
    assert unknown in TOKENIZER.encode("\u00e9")


def test_special_tokens_cannot_be_typed() -> None:
    for token in ("<end>", "<pad>", *THINKING_TOKENS):
        assert not set(TOKENIZER.encode(token)) & {
            TOKENIZER.eos_id,
            TOKENIZER.pad_id,
            *TOKENIZER.thinking_ids,
        }
        assert len(TOKENIZER.encode(token, allow_special=True)) == 1


def test_sentences_have_many_forms() -> None:
    rng = random.Random(4)
    found = {sentence(rng) for _ in range(500)}
    assert len(found) > 490
    assert {s.count(",") for s in found} == {0, 1}
