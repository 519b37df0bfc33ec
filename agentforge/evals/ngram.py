"""Unigram and bigram language models over token ids: the baselines a trained model must beat.

Both are fitted on (previous token, token) pairs, so that they can be given exactly the targets the
model was trained on, and measured on exactly the held-out targets the model is measured on. They
are meant to be good: the unigram's smoothing is tuned on its own training data, and the bigram
backs off to it by Witten and Bell's estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]

START = -1
"""Previous token of the first token of a sequence."""

_ALPHAS = np.logspace(-5, 1, 61)  # 1.0 (add-one) is among them


@dataclass(frozen=True, slots=True)
class Pairs:
    """Targets with what precedes them.

    Attributes:
        previous: Token before each target, or `START`, (n,).
        token: The targets, (n,).
    """

    previous: npt.NDArray[np.int32]
    token: npt.NDArray[np.int32]


class TokenModel(Protocol):
    """Anything that gives a log-probability to a token after a token."""

    def log_prob(self, previous: Ids, token: Ids) -> Floats:
        """Log-probability in nats of each target, (n,) float64.

        Raises:
            ValueError: No targets, or an id outside the vocabulary.
        """
        ...


def pairs_of(tokens: Ids, offsets: Ids | None = None) -> Pairs:
    """All tokens of some sequences as targets; the first of each follows `START`.

    Args:
        tokens: Token ids of all sequences, end to end, (n,).
        offsets: Start of each sequence and the end of the last one, rising, (sequences + 1,).
            None: one sequence. Empty sequences are allowed.

    Raises:
        ValueError: Offsets that do not cover `tokens`.
    """
    token = np.asarray(tokens).astype(np.int32)
    bounds = np.array([0, token.size]) if offsets is None else np.asarray(offsets)
    if bounds.size < 1 or bounds[0] != 0 or bounds[-1] != token.size or (np.diff(bounds) < 0).any():
        raise ValueError(f"offsets must rise from 0 to the {token.size} tokens")
    previous = np.empty_like(token)
    previous[1:] = token[:-1]
    starts = bounds[:-1]
    previous[starts[starts < token.size]] = START
    return Pairs(previous=previous, token=token)


def pairs_of_sequences(sequences: Sequence[Ids]) -> Pairs:
    """`pairs_of` for a list of sequences."""
    lengths = np.array([len(s) for s in sequences], dtype=np.int64)
    flat = np.concatenate(sequences) if len(sequences) else np.empty(0, dtype=np.int32)
    return pairs_of(flat, np.concatenate([[0], lengths.cumsum()]))


def nats_per_token(model: TokenModel, pairs: Pairs) -> float:
    """Mean negative log-probability of the targets in nats.

    Raises:
        ValueError: There are no targets.
    """
    if pairs.token.size == 0:
        raise ValueError("no targets to measure on")
    return float(-model.log_prob(pairs.previous, pairs.token).mean())


class Unigram:
    """``p(w) = (c(w) + alpha) / (N + alpha V)``, additive smoothing.

    Args:
        pairs: Training targets; their predecessors are not used.
        vocabulary: Number of token ids V.
        alpha: Added to every count, > 0. None: the value among 61 from 1e-5 to 10, add-one
            included, under which every training token is likeliest when it is left out of the
            counts itself.

    Raises:
        ValueError: No targets, an id outside the vocabulary, or `alpha` not positive.
    """

    def __init__(self, pairs: Pairs, vocabulary: int, alpha: float | None = None) -> None:
        _check(pairs.previous, pairs.token, vocabulary)
        counts = np.bincount(pairs.token, minlength=vocabulary).astype(np.float64)
        self.vocabulary = vocabulary
        self.alpha = _best_alpha(counts) if alpha is None else alpha
        if not self.alpha > 0:
            raise ValueError(f"alpha {alpha} must be positive")
        total = counts.sum() + self.alpha * vocabulary
        self._p: Floats = (counts + self.alpha) / total

    def probabilities(self) -> Floats:
        """The distribution over the vocabulary, (V,); a view, not to be written."""
        return self._p

    def log_prob(self, previous: Ids, token: Ids) -> Floats:
        """Log-probability of each target; `previous` is checked, but not used."""
        _check(np.asarray(previous), np.asarray(token), self.vocabulary)
        result: Floats = np.log(self._p[np.asarray(token)])
        return result


class Bigram:
    """Interpolated bigram with Witten-Bell smoothing (Witten and Bell 1991; method C).

    ``p(w | u) = (c(u, w) + T(u) p1(w)) / (c(u) + T(u))`` with T(u) the number of different tokens
    seen after u and p1 the unigram above; after a u never seen, p1 alone. `START` is a context
    like any token. Memory: 16 bytes a distinct pair; 5 million targets at V = 50,269 take
    0.2 GB at most while fitting and 0.45 GB while being measured.

    Args:
        pairs: Training targets.
        vocabulary: Number of token ids V.
        unigram: The lower order; None: fitted on the same pairs.

    Raises:
        ValueError: No targets, or an id outside the vocabulary.
    """

    def __init__(self, pairs: Pairs, vocabulary: int, unigram: Unigram | None = None) -> None:
        _check(pairs.previous, pairs.token, vocabulary)
        self.vocabulary = vocabulary
        self.unigram = unigram or Unigram(pairs, vocabulary)
        # Context START (-1) is row 0, token u is row u + 1; 50,270 rows x 50,269 fit in int64.
        keys = self._keys(pairs.previous, pairs.token)
        keys.sort()
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        self._pair_keys = keys[first]
        self._pair_counts = np.diff(np.concatenate([first, [keys.size]])).astype(np.float64)
        rows = vocabulary + 1
        seen = self._pair_keys // vocabulary
        self._context_counts = np.bincount(seen, weights=self._pair_counts, minlength=rows)
        self._context_types = np.bincount(seen, minlength=rows).astype(np.float64)

    def _keys(self, previous: Ids, token: Ids) -> npt.NDArray[np.int64]:
        keys = previous.astype(np.int64)
        keys += 1
        keys *= self.vocabulary
        keys += token
        return keys

    def log_prob(self, previous: Ids, token: Ids) -> Floats:
        """Log-probability of each target given the token before it (or `START`)."""
        previous, token = np.asarray(previous), np.asarray(token)
        _check(previous, token, self.vocabulary)
        keys = self._keys(previous, token)
        at = np.minimum(np.searchsorted(self._pair_keys, keys), self._pair_keys.size - 1)
        counts = np.where(self._pair_keys[at] == keys, self._pair_counts[at], 0.0)
        lower = self.unigram.probabilities()[token]
        types = self._context_types[previous + 1]
        total = self._context_counts[previous + 1] + types
        unseen = total == 0
        mixed = (counts + types * lower) / np.where(unseen, 1.0, total)
        result: Floats = np.log(np.where(unseen, lower, mixed))
        return result

    def probabilities(self, previous: int) -> Floats:
        """The distribution over the vocabulary after one token (or `START`), (V,)."""
        tokens = np.arange(self.vocabulary)
        result: Floats = np.exp(self.log_prob(np.full(self.vocabulary, previous), tokens))
        return result


def _check(previous: Ids, token: Ids, vocabulary: int) -> None:
    if token.size == 0 or token.shape != previous.shape:
        raise ValueError("need at least one target, and one predecessor for each")
    lowest, highest = int(token.min()), int(max(token.max(), previous.max()))
    if lowest < 0 or int(previous.min()) < START or highest >= vocabulary:
        raise ValueError(f"token ids {lowest}..{highest} are not all in 0..{vocabulary - 1}")


def _best_alpha(counts: Floats) -> float:
    """The alpha that maximises the leave-one-out likelihood of the training tokens."""
    total = counts.sum()
    if total < 2:
        return 1.0
    values, multiplicity = np.unique(counts[counts > 0], return_counts=True)
    weight = values * multiplicity  # tokens whose type occurs that often
    likelihoods = [
        float((weight * np.log((values - 1 + a) / (total - 1 + a * counts.size))).sum())
        for a in _ALPHAS
    ]
    return float(_ALPHAS[int(np.argmax(likelihoods))])
