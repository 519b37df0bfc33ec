"""Four disjoint splits by a hash of the normalised prompt: nothing measured was ever trained on."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from agentforge.data.example import Example

Split = Literal["train", "search", "rescore", "report"]
SPLITS: tuple[Split, ...] = ("train", "search", "rescore", "report")

_TENTHS: tuple[Split, ...] = ("train",) * 7 + ("search", "rescore", "report")
"""Seven tenths train; Phase 2 searches on one, re-scores on one; results are reported on one."""


def normalise(text: str) -> str:
    """Lower case, punctuation to blanks, single blanks: what makes two prompts the same."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def split_key(example: Example) -> str:
    """What decides the split: the normalised passage, else prompt, else text."""
    return normalise(example.group or example.prompt or example.answer)


def split_of(example: Example) -> Split:
    """The split of an example: equal keys always share one.

    Questions about one passage go together: of DROP's and BoolQ's questions a held-out one would
    otherwise come with a passage that was trained on.
    """
    return _of_key(split_key(example))


def split_of_text(text: str) -> Split:
    """The split of a question on its own."""
    return _of_key(normalise(text))


def _of_key(key: str) -> Split:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return _TENTHS[int.from_bytes(digest, "big") % 10]
