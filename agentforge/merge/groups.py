"""Which group of merge weights a tensor belongs to, and which block of the model it lies in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

GroupName = Literal["attention", "ffn", "memory", "rest"]
GROUPS: tuple[GroupName, ...] = ("attention", "ffn", "memory", "rest")
"""Parts of the model that merge best in different proportions: each parent has a weight a group."""

NEVER_DROPPED = ("embedding.table",)
"""Tensors DARE leaves whole: a token's row is rarely trained, so most of it is base already, and
dropping entries of what is left loses the token."""

_BLOCK = re.compile(r"(prelude|core)\.(\d+)\.")


def group_of(name: str) -> GroupName:
    """The group of a tensor of `CognateLM.state_dict`."""
    if ".memory." in name or ".memory_gate." in name:
        return "memory"
    if ".attention." in name or ".attention_norm." in name:
        return "attention"
    if ".ffn." in name or ".ffn_norm." in name:
        return "ffn"
    return "rest"


def block_places(names: Iterable[str]) -> dict[str, int]:
    """For every tensor that lies in a block the block's place, prelude blocks first."""
    found = {name: match for name in names if (match := _BLOCK.match(name))}
    order = sorted({(m[1] == "core", int(m[2])) for m in found.values()})
    place = {block: i for i, block in enumerate(order)}
    return {name: place[m[1] == "core", int(m[2])] for name, m in found.items()}
