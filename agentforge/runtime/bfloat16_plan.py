"""The same plan with bfloat16 weights: what shows how much of a speed-up is the weights' doing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from agentforge_kernels import Int8Weight, PackedTernary, unpack
from torch import Tensor

from agentforge.runtime.plan import DecodePlan, Linear, Step, Weight, loaded


def in_bfloat16(plan: DecodePlan) -> DecodePlan:
    """Every matrix as bfloat16 scale times code, its input unrounded; all other steps as they are.

    Embedding rows stay as they are stored: one row a token is read.
    """
    recursion = plan.recursion
    if recursion is not None:
        recursion = replace(
            recursion,
            blocks=tuple(_steps(block) for block in recursion.blocks),
            update=_steps(recursion.update),
            halt=_steps(recursion.halt),
        )
    return replace(plan, prelude=_steps(plan.prelude), recursion=recursion, head=_steps(plan.head))


def _steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    return tuple(
        replace(s, weight=_dequantised(loaded(s.weight))) if isinstance(s, Linear) else s
        for s in steps
    )


def _dequantised(weight: Weight) -> Tensor:
    if isinstance(weight, PackedTernary):
        weight = unpack(weight).float() * weight.scale.expand(weight.rows)[:, None]
    elif isinstance(weight, Int8Weight):
        weight = weight.weight.float() * weight.scale.expand(weight.rows)[:, None]
    return weight.to(torch.bfloat16)
