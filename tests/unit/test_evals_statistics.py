"""Standard errors and intervals against theory; the n-gram baselines against their formulas."""

import math
import os
import tracemalloc
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentforge.evals.ngram import (
    START,
    Bigram,
    Pairs,
    Unigram,
    nats_per_token,
    pairs_of,
    pairs_of_sequences,
)
from agentforge.evals.stats import (
    accuracy,
    disagreement_rate,
    paired_bootstrap,
    wilson_interval,
)


def test_accuracy_of_a_proportion() -> None:
    got = accuracy([1, 0, 0, 1, 1, 0, 0, 0, 0, 0])
    assert got.value == pytest.approx(0.3)
    assert got.stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 10))
    assert accuracy([]).n == 0
    assert math.isnan(accuracy([]).value)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        accuracy([1.5])
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        accuracy([math.nan])


def test_wilson_interval() -> None:
    low, high = wilson_interval(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # textbook value
    assert wilson_interval(0.0, 20)[0] == 0.0
    assert wilson_interval(0.0, 20)[1] > 0.1, "0 of 20 does not mean impossible"
    with pytest.raises(ValueError, match="positive"):
        wilson_interval(0.5, 0)


def test_bootstrap_covers_and_repeats() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(60):
        easy = rng.random(150)
        theirs = (rng.random(150) < easy).astype(float)
        ours = (rng.random(150) < np.minimum(1, easy + 0.1)).astype(float)
        interval = paired_bootstrap(ours.tolist(), theirs.tolist(), seed=trial, resamples=300)
        hits += interval.low <= 0.095 <= interval.high  # E min(1, U + .1) - E U = .095
    assert hits >= 51, "95 % intervals cover the truth in about 57 of 60"
    again = [paired_bootstrap([1, 0, 1, 1], [0, 0, 1, 0], seed=5) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0].mean == 0.5


def test_bootstrap_uses_the_pairing() -> None:
    noise = np.random.default_rng(0).random(200)
    interval = paired_bootstrap((noise + 0.01).tolist(), noise.tolist(), seed=0)
    assert interval.low == pytest.approx(0.01)
    assert interval.high == pytest.approx(0.01)
    with pytest.raises(ValueError, match="equal"):
        paired_bootstrap([1.0], [1.0, 0.0], seed=0)
    with pytest.raises(ValueError, match="level"):
        paired_bootstrap([1.0], [1.0], seed=0, level=1.0)


def test_disagreement_compares_answers() -> None:
    assert disagreement_rate(["a", "b", "c", "d"], ["a", "x", "c", "y"]) == 0.5
    assert disagreement_rate([(1, 2)], [(1, 3)]) == 1.0
    with pytest.raises(ValueError, match="equal"):
        disagreement_rate([], [])


def test_pairs_know_sequence_starts() -> None:
    pairs = pairs_of(np.array([5, 6, 7, 8, 9]), np.array([0, 2, 2, 5, 5]))
    assert pairs.previous.tolist() == [START, 5, START, 7, 8]
    assert pairs.token.tolist() == [5, 6, 7, 8, 9]
    parts = [np.array([5, 6]), np.array([], dtype=int), np.array([7, 8, 9])]
    again = pairs_of_sequences(parts)
    assert again.previous.tolist() == pairs.previous.tolist()
    assert pairs_of(np.array([4, 5])).previous.tolist() == [START, 4]
    assert pairs_of_sequences([]).token.size == 0
    with pytest.raises(ValueError, match="offsets"):
        pairs_of(np.array([1, 2]), np.array([0, 1]))


sequences = st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=8).filter(any)


@given(sequences)
def test_both_models_are_proper(corpus: list[list[int]]) -> None:
    pairs = pairs_of_sequences([np.array(s, dtype=np.int32) for s in corpus])
    unigram, bigram = Unigram(pairs, 9), Bigram(pairs, 9)
    assert unigram.probabilities().sum() == pytest.approx(1.0, abs=1e-12)
    assert (unigram.probabilities() > 0).all()
    for previous in range(START, 9):
        p = bigram.probabilities(previous)
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        assert (p > 0).all()


@given(sequences)
def test_bigram_is_the_formula(corpus: list[list[int]]) -> None:
    pairs = pairs_of_sequences([np.array(s, dtype=np.int32) for s in corpus])
    unigram = Unigram(pairs, 9, alpha=1.0)
    bigram = Bigram(pairs, 9, unigram)
    following: dict[int, Counter[int]] = defaultdict(Counter)
    tokens: Counter[int] = Counter()
    for sequence in corpus:
        for before, token in zip([START, *sequence], sequence, strict=False):
            following[before][token] += 1
            tokens[token] += 1
    for before in range(START, 9):
        for token in range(9):
            lower = (tokens[token] + 1) / (tokens.total() + 9)
            seen = following[before]
            types, count = len(seen), seen.total()
            expected = (seen[token] + types * lower) / (count + types) if count else lower
            got = bigram.log_prob(np.array([before]), np.array([token]))[0]
            assert got == pytest.approx(math.log(expected), rel=1e-12)


def markov(n: int, seed: int, size: int = 30) -> tuple[np.ndarray, float]:
    """Tokens of a random Markov chain and its entropy rate in nats."""
    world = np.random.default_rng(0)
    rows = world.dirichlet(np.full(size, 0.2), size=size)
    rng = np.random.default_rng(seed)
    tokens = np.empty(n, dtype=np.int32)
    cumulative = rows.cumsum(axis=1)
    draws = rng.random(n)
    state = 0
    for i in range(n):
        state = min(int(np.searchsorted(cumulative[state], draws[i])), size - 1)
        tokens[i] = state
    stationary = np.linalg.matrix_power(rows, 200)[0]
    entropy = -(stationary[:, None] * rows * np.log(np.maximum(rows, 1e-300))).sum()
    return tokens, float(entropy)


def test_bigram_reaches_the_entropy_of_a_markov_chain() -> None:
    train, entropy = markov(40_000, 1)
    held_out, _ = markov(10_000, 2)
    pairs, test = pairs_of(train), pairs_of(held_out)
    unigram, bigram = Unigram(pairs, 30), Bigram(pairs, 30)
    loss = nats_per_token(bigram, test)
    assert loss == pytest.approx(entropy, abs=0.04)
    assert loss > entropy - 0.04
    assert nats_per_token(unigram, test) > loss + 0.5


def test_tuned_smoothing_is_no_straw_man() -> None:
    """Zipf text with many unseen types: the tuned alpha beats add-one on held-out tokens."""
    rng = np.random.default_rng(7)
    zipf = 1.0 / np.arange(1, 50_270) ** 1.1
    zipf /= zipf.sum()
    train, held_out = (pairs_of(rng.choice(50_269, 20_000, p=zipf)) for _ in range(2))
    tuned, add_one = Unigram(train, 50_269), Unigram(train, 50_269, alpha=1.0)
    assert tuned.alpha < 1.0
    assert nats_per_token(tuned, held_out) < nats_per_token(add_one, held_out) - 0.1
    alphas = np.logspace(-3, 1, 9)
    best = min(nats_per_token(Unigram(train, 50_269, a), held_out) for a in alphas)
    assert nats_per_token(tuned, held_out) < best + 0.01
    assert tuned.probabilities().sum() == pytest.approx(1.0, abs=1e-9)
    full = Bigram(train, 50_269)
    assert full.probabilities(int(train.token[0])).sum() == pytest.approx(1.0, abs=1e-9)


def test_memory_per_target_stays_small() -> None:
    """Under 120 bytes a target at the full vocabulary: 0.6 GB for 5 million."""
    rng = np.random.default_rng(1)
    n = 1_000_000
    pairs = pairs_of(rng.integers(0, 50_269, n).astype(np.int32))  # worst case: all pairs distinct
    tracemalloc.start()
    bigram = Bigram(pairs, 50_269)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120 * n
    assert math.isfinite(nats_per_token(bigram, Pairs(pairs.previous[:10], pairs.token[:10])))


def test_ids_outside_the_vocabulary_are_refused() -> None:
    good = pairs_of(np.array([1, 2, 3]))
    for model in (Unigram, Bigram):
        with pytest.raises(ValueError, match="not all in"):
            model(good, 3)
        with pytest.raises(ValueError, match="at least one"):
            model(pairs_of(np.array([], dtype=np.int32)), 3)
        with pytest.raises(ValueError, match="not all in"):
            model(good, 4).log_prob(np.array([-2]), np.array([0]))
    with pytest.raises(ValueError, match="no targets"):
        nats_per_token(Unigram(good, 4), pairs_of(np.array([], dtype=np.int32)))


@pytest.mark.records
@pytest.mark.skipif("AGENTFORGE_TEST_DATA" not in os.environ, reason="no real records")
def test_on_real_text_the_bigram_beats_the_unigram() -> None:
    folder = Path(os.environ["AGENTFORGE_TEST_DATA"]) / "tiny_stories"
    text = b"".join(p.read_bytes() for p in sorted(folder.glob("*.jsonl")))[:400_000]
    data = np.frombuffer(text, dtype=np.uint8)
    train, held_out = pairs_of(data[: len(data) * 4 // 5]), pairs_of(data[len(data) * 4 // 5 :])
    unigram, bigram = Unigram(train, 256), Bigram(train, 256)
    assert nats_per_token(bigram, held_out) < nats_per_token(unigram, held_out) - 0.3
    assert nats_per_token(unigram, held_out) < math.log(256)
