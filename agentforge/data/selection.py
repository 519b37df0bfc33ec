"""Which rows a cap keeps, and which split each example belongs to."""

from __future__ import annotations

import hashlib

from agentforge.data.example import Example
from agentforge.data.splits import Split, split_key, split_of

_HELD_OUT: tuple[Split, ...] = ("search", "rescore", "report")


def chosen_rows(name: str, total: int, limit: int) -> list[int]:
    """Row numbers a cap keeps: the ``limit`` smallest by hash of name and number, in row order.

    A hash rather than the head, because many sets are sorted (HellaSwag by source, ARC by exam);
    the same rows are kept on every machine, and a larger cap keeps a superset.

    Args:
        name: What tells sets apart, such as ``gsm8k/train``.
        total: Rows there are.
        limit: Rows to keep at most.
    """
    if total <= limit:
        return list(range(total))
    order = sorted(range(total), key=lambda row: _digest(f"{name}:{row}"))
    return sorted(order[:limit])


def held_out_split_of(example: Example) -> Split:
    """The split of an example out of a file that must not be trained on: never ``train``.

    It is `split_of` where that is held out already, else one of the three by a second hash, so
    that equal keys share a split here too.
    """
    split = split_of(example)
    if split != "train":
        return split
    return _HELD_OUT[_digest("held out:" + split_key(example)) % len(_HELD_OUT)]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
