"""From examples to micro-batches: nothing lost, nothing twice, right targets, the same order."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from agentforge.config.load import load_config
from agentforge.data.batching import IGNORE, STRETCH, micro_batches
from agentforge.data.corpus import Corpus, encode
from agentforge.data.example import Example, answer_text, prompt_text
from agentforge.data.prepare import prepare
from agentforge.data.sampler import MixSampler
from agentforge.data.splits import SPLITS
from agentforge.data.world import KINDS, generate
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.evals.ngram import Pairs
from agentforge.phases.cognate.baselines import target_pairs

TOKENIZER = world_tokenizer()
CORPORA = {k: encode(k, k, generate(k, "train", 60, 3), TOKENIZER, 96) for k in KINDS}
ITEMS = [(name, i) for name, corpus in CORPORA.items() for i in range(len(corpus))]


def question(prompt: str, answer: str) -> Example:
    return Example(prompt=prompt, answer=answer, dataset="d", category="world", difficulty=3)


def text(words: str) -> Example:
    return Example(prompt="", answer=words, dataset="d", category="language")


# --- encoding -------------------------------------------------------------------------------------


def test_an_item_is_prompt_answer_and_end() -> None:
    corpus = encode("d", "c", [question("reverse 1 2.", "2 1.")], TOKENIZER, 96)
    prompt = TOKENIZER.encode(prompt_text("reverse 1 2."))
    answer = TOKENIZER.encode(" 2 1.")
    assert corpus.item(0).tolist() == [*prompt, *answer, TOKENIZER.eos_id]
    assert corpus.first_target.tolist() == [len(prompt)]
    assert corpus.target_count == len(answer) + 1
    assert corpus.difficulty.tolist() == [3]
    everything = encode(
        "d", "c", [question("reverse 1 2.", "2 1.")], TOKENIZER, 96, train_on_prompts=True
    )
    assert everything.first_target.tolist() == [1]
    assert everything.target_count == len(prompt) + len(answer)


@pytest.mark.parametrize("room", [8, 9, 12, 17])
def test_a_long_prompt_loses_its_start_and_the_answer_stays(room: int) -> None:
    example = question(f"remember {' '.join('123456789')}.", "4 5 6.")
    whole = [*TOKENIZER.encode(prompt_text(example.prompt)), *TOKENIZER.encode(" 4 5 6.")]
    whole.append(TOKENIZER.eos_id)
    corpus = encode("d", "c", [example], TOKENIZER, room)
    assert corpus.item(0).tolist() == whole[-room:]
    assert corpus.cut == (1 if room < len(whole) else 0)
    answer = corpus.item(0)[corpus.first_target[0] :].tolist()
    assert answer == [*TOKENIZER.encode(" 4 5 6."), TOKENIZER.eos_id]


@pytest.mark.parametrize(("digits", "room"), [(9, 8), (4, 5), (4, 6), (4, 7), (7, 9)])
def test_an_answer_that_fills_the_room_is_cut_and_counted(digits: int, room: int) -> None:
    answer = " ".join("123456789"[:digits])
    corpus = encode("d", "c", [question("reverse.", answer)], TOKENIZER, room)
    item = corpus.item(0).tolist()
    assert len(item) <= room
    assert 1 <= corpus.first_target[0] < len(item)
    whole = [
        *TOKENIZER.encode(prompt_text("reverse.")),
        *TOKENIZER.encode(f" {answer}"),
        TOKENIZER.eos_id,
    ]
    assert corpus.cut == int(len(whole) > room)


def test_an_answer_cut_behind_a_one_token_prompt_is_counted() -> None:
    class OneToken(type(TOKENIZER)):  # type: ignore[misc]
        def encode_batch(self, texts: list[str], **_: bool) -> list[list[int]]:
            return [[7] if t.startswith("Q:") else [9] * 20 for t in texts]

    tokenizer = OneToken.__new__(OneToken)
    tokenizer.__dict__ |= TOKENIZER.__dict__
    corpus = encode("d", "c", [question("x", "y")], tokenizer, 8)
    assert corpus.item(0).tolist() == [7] + [9] * 7
    assert corpus.cut == 1


@pytest.mark.parametrize("room", [4, 7, 100])
def test_long_text_is_split_into_pieces(room: int) -> None:
    words = "the big red dog saw the old cat near the river."
    whole = [*TOKENIZER.encode(words), TOKENIZER.eos_id]
    corpus = encode("d", "c", [text(words)], TOKENIZER, room)
    pieces = [corpus.item(i).tolist() for i in range(len(corpus))]
    joined = sum(pieces, [])
    assert joined == whole[: len(joined)]
    assert len(whole) - len(joined) <= 1  # a last piece of one token predicts nothing
    assert all(2 <= len(p) <= room for p in pieces)
    assert set(corpus.first_target.tolist()) == {1}
    assert corpus.cut == 0


def test_nothing_to_encode_gives_an_empty_corpus() -> None:
    for examples in ([], [text("")]):
        corpus = encode("d", "c", examples, TOKENIZER, 16)
        assert len(corpus) == 0
        assert corpus.target_count == 0
        assert corpus.offsets.tolist() == [0]


# --- micro-batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 50, 97, 400, 10**6])
def test_every_item_once_within_the_budget(budget: int) -> None:
    batches = micro_batches(CORPORA, ITEMS, budget, TOKENIZER.pad_id)
    rows = [row for b in batches for row in b.rows]
    assert sorted(rows) == list(range(len(ITEMS)))
    for b in batches:
        assert b.ids.shape == b.targets.shape == b.valid.shape
        assert b.ids.numel() <= budget or b.ids.shape[0] == 1
        lengths = b.valid.sum(1)
        assert int(lengths.max()) == b.ids.shape[1]
        assert int(lengths.max()) <= STRETCH * int(lengths.min())
    assert sum(b.target_count for b in batches) == sum(c.target_count for c in CORPORA.values())
    assert sum(b.valid_count for b in batches) == sum(
        len(c.tokens) - len(c) for c in CORPORA.values()
    )


def test_targets_are_the_next_tokens_of_the_answer_only() -> None:
    for b in micro_batches(CORPORA, ITEMS, 300, TOKENIZER.pad_id):
        for line, row in enumerate(b.rows):
            name, index = ITEMS[row]
            item = CORPORA[name].item(index)
            first, last = int(CORPORA[name].first_target[index]), len(item) - 1
            assert b.valid[line].tolist() == [i < last for i in range(b.ids.shape[1])]
            for i in range(b.ids.shape[1]):
                if i >= last:
                    assert int(b.ids[line, i]) == TOKENIZER.pad_id
                    assert int(b.targets[line, i]) == IGNORE
                    continue
                assert int(b.ids[line, i]) == item[i]
                wanted = int(item[i + 1]) if i + 1 >= first else IGNORE
                assert int(b.targets[line, i]) == wanted


def test_answers_read_back_from_the_targets() -> None:
    examples = generate("total", "train", 60, 3)
    items = [("total", i) for i in range(60)]
    for b in micro_batches(CORPORA, items, 500, TOKENIZER.pad_id):
        for line, row in enumerate(b.rows):
            targets = b.targets[line]
            ids = targets[targets != IGNORE].tolist()
            assert ids[-1] == TOKENIZER.eos_id
            assert TOKENIZER.decode(ids) == answer_text(examples[row])


def test_batches_depend_on_the_items_alone() -> None:
    chosen = [ITEMS[i] for i in np.random.default_rng(0).permutation(len(ITEMS))[:77]]
    first = micro_batches(CORPORA, chosen, 333, TOKENIZER.pad_id)
    second = micro_batches(dict(reversed(CORPORA.items())), chosen, 333, TOKENIZER.pad_id)
    assert [b.rows for b in first] == [b.rows for b in second]
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, second, strict=True))
    twice = micro_batches(CORPORA, [ITEMS[5], ITEMS[5]], 333, TOKENIZER.pad_id)
    assert [b.rows for b in twice] == [(0, 1)]
    assert micro_batches(CORPORA, [], 333, TOKENIZER.pad_id) == []


# --- sampler --------------------------------------------------------------------------------------

SIZES = {"a": 7, "b": 50, "c": 3}


def test_an_epoch_has_no_repeats_and_the_next_another_order() -> None:
    sampler = MixSampler(SIZES, seed=1)
    epochs = [[i for _, i in sampler.draw({"b": 1.0}, 50)] for _ in range(3)]
    assert all(sorted(e) == list(range(50)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert sampler.drawn == 150


def test_epochs_hold_across_batches_of_any_size_and_mixes() -> None:
    sampler, drawn = MixSampler(SIZES, seed=2), []
    for step in range(60):
        drawn += sampler.draw({"a": 1.0, "b": 2.0 if step % 2 else 0.0, "c": 0.5}, 5)
    for name, size in SIZES.items():
        found = [i for n, i in drawn if n == name]
        for start in range(0, len(found) - size + 1, size):
            assert sorted(found[start : start + size]) == list(range(size))


def test_the_mix_is_what_was_asked_for() -> None:
    sampler = MixSampler(SIZES, seed=3)
    counts = Counter(n for _ in range(400) for n, _ in sampler.draw({"a": 6, "b": 3, "c": 1}, 25))
    for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        assert counts[name] / 10_000 == pytest.approx(share, abs=0.02)
    alone = sampler.draw({"a": 0.0, "b": 0.0, "c": 0.4}, 9)
    assert {n for n, _ in alone} == {"c"}
    assert len(alone) == 9


@pytest.mark.parametrize("steps", [0, 1, 17])
def test_a_saved_cursor_continues_identically(steps: int) -> None:
    mix = {"a": 0.5, "b": 0.3, "c": 0.2}
    sampler = MixSampler(SIZES, seed=4)
    for _ in range(steps):
        sampler.draw(mix, 6)
    state = json.loads(json.dumps(sampler.state()))
    expected = [sampler.draw(mix, 6) for _ in range(20)]
    fresh, used = MixSampler(SIZES, seed=4), MixSampler(SIZES, seed=4)
    for _ in range(31):
        used.draw(mix, 9)
    for other in (fresh, used):
        other.load_state(state)
        assert [other.draw(mix, 6) for _ in range(20)] == expected
    assert MixSampler(SIZES, seed=5).draw(mix, 40) != MixSampler(SIZES, seed=4).draw(mix, 40)


# --- a run's data, and the baselines' view of them ------------------------------------------------


def test_prepared_world_follows_the_configuration() -> None:
    config = load_config(preset="smoke", env={}).config
    data = prepare(config)
    assert list(data.train) == list(KINDS)
    world = config.data.world
    assert {len(c) for c in data.train.values()} == {world.train_items}
    for split, count in (("search", world.search_items), ("report", world.report_items)):
        assert {len(c) for c in data.held_out[split].values()} == {count}
    assert set(data.held_out) == set(SPLITS) - {"train"}
    assert data.inventory is None
    weights = data.weights({"total": 3.0, "recall": 1.0}, 1)
    assert weights == pytest.approx(dict.fromkeys(KINDS, 0.0) | {"total": 0.75, "recall": 0.25})
    other = prepare(config.model_copy(update={"seed": config.seed + 1}))
    assert not np.array_equal(other.train["total"].tokens, data.train["total"].tokens)
    held = [d.held_out["report"]["recall"].tokens for d in (data, other)]
    assert np.array_equal(*held), "held-out items are the same for every seed"


def model_targets(corpora: dict[str, Corpus]) -> Counter[tuple[int, int]]:
    items = [(n, i) for n, c in corpora.items() for i in range(len(c))]
    pairs: Counter[tuple[int, int]] = Counter()
    for b in micro_batches(corpora, items, 512, TOKENIZER.pad_id):
        wanted = b.targets != IGNORE
        pairs.update(zip(b.ids[wanted].tolist(), b.targets[wanted].tolist(), strict=True))
    return pairs


@pytest.mark.parametrize("everything", [False, True])
def test_ngram_baselines_see_exactly_the_models_targets(everything: bool) -> None:
    corpora = {
        k: encode(k, k, generate(k, "train", 25, 1), TOKENIZER, 30, train_on_prompts=everything)
        for k in KINDS
    }
    found: Pairs = target_pairs(corpora.values())
    assert Counter(
        zip(found.previous.tolist(), found.token.tolist(), strict=True)
    ) == model_targets(corpora)
    assert len(found.token) == sum(c.target_count for c in corpora.values())
