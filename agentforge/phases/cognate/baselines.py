"""Unigram and bigram models of the same training records, by category."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from agentforge.data.corpus import Corpus
from agentforge.data.prepare import Prepared
from agentforge.evals.ngram import Bigram, Pairs, Unigram, nats_per_token


def category_names(data: Prepared) -> dict[str, list[str]]:
    """Held-out corpora of the report split by category, both in a fixed order."""
    found: dict[str, list[str]] = {}
    for name, corpus in data.held_out["report"].items():
        found.setdefault(corpus.category, []).append(name)
    return found


def target_pairs(corpora: Iterable[Corpus]) -> Pairs:
    """(previous token, target) of every token that carries loss, as the model sees them."""
    previous, token = [], []
    for corpus in corpora:
        place = np.arange(len(corpus.tokens)) - np.repeat(
            corpus.offsets[:-1], np.diff(corpus.offsets)
        )
        wanted = place >= np.repeat(corpus.first_target, np.diff(corpus.offsets))
        where = np.flatnonzero(wanted)
        previous.append(corpus.tokens[where - 1])
        token.append(corpus.tokens[where])
    return Pairs(previous=np.concatenate(previous), token=np.concatenate(token))


def ngram_losses(data: Prepared) -> dict[str, Mapping[str, float]]:
    """Nats per token on the report split by category.

    Both are fitted on all training records, as the model was. ``unigram`` and ``bigram`` are the
    better of that fit and one on the category's own records alone, so that a category is not
    helped by a baseline spoiled by the others.
    """
    vocabulary = data.tokenizer.vocab_size
    everything = target_pairs(data.train.values())
    together = (Unigram(everything, vocabulary), Bigram(everything, vocabulary))
    unigram, bigram = {}, {}
    for category, names in category_names(data).items():
        held_out = target_pairs(data.held_out["report"][n] for n in names)
        own = [c for c in data.train.values() if c.category == category]
        alone = target_pairs(own) if own else everything
        unigram[category] = min(
            nats_per_token(together[0], held_out),
            nats_per_token(Unigram(alone, vocabulary), held_out),
        )
        bigram[category] = min(
            nats_per_token(together[1], held_out),
            nats_per_token(Bigram(alone, vocabulary), held_out),
        )
    return {"unigram": unigram, "bigram": bigram}
