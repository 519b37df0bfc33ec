"""What the sparse and int8 kernel cases share: numbers, expectations, the shipped lines."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from agentforge_kernels import reference
from agentforge_kernels.format import padded
from agentforge_kernels.triton.configs import BlockSparseConfig, Config, Int8GemvConfig
from agentforge_kernels.triton.devices import DOT4_INSTRUCTION, family_of_target
from agentforge_kernels.triton.sparse_configs import SPARSE_TABLE
from agentforge_kernels.verify.cases import Arguments
from agentforge_kernels.verify.targets import ALL, TARGETS

NOT_WRITTEN = -3.0e38
"""What outputs hold before a launch, so that one left out is seen."""
INSTRUCTIONS: dict[str, dict[str, object]] = {
    TARGETS[name].family: {"INSTRUCTION": DOT4_INSTRUCTION[family_of_target(name)]} for name in ALL
}
POINTERS = frozenset(
    {
        *("q", "activation_scale", "activation_sum", "weight_scale", "row_scale", "residual"),
        *("output", "tiles", "index", "start", "codes", "weight", "column", "value", "count"),
        "partial",
    }
)
"""Every argument that is a tensor: torch's allocations begin at multiples of 16 bytes."""
SMALL_BATCH = {1: 1, 2: 3, 4: 3, 8: 7}
"""Tokens of the small launch, by tokens a program takes together: the last program is not full."""


def shipped(operation: str) -> dict[Config, tuple[str, ...]]:
    """Configurations of an operation to the targets whose family has a line with them."""
    targets: dict[Config, set[str]] = {}
    for entry in SPARSE_TABLE:
        if entry.operation == operation:
            families = {name for name in ALL if family_of_target(name) in entry.families}
            targets.setdefault(entry.config, set()).update(families)
    return {
        config: tuple(name for name in ALL if name in found) for config, found in targets.items()
    }


@dataclass(frozen=True, slots=True)
class GemvVariant:
    """A configuration of a matvec as it is compiled.

    Attributes:
        config: One of the shipped lines.
        together: Tokens a program takes, ``TOKENS``.
        targets: Where a line leads to it.
    """

    config: BlockSparseConfig | Int8GemvConfig
    together: int
    targets: tuple[str, ...]


def gemv_variants(operation: str) -> list[GemvVariant]:
    """All variants; lines that differ in ``tokens`` alone compile to the same code and are one.

    Two and four tokens of more are looked at in the first line of each target, that for large
    matrices.
    """
    found: dict[tuple[Config, int], set[str]] = {}
    seen: set[str] = set()
    for entry in SPARSE_TABLE:
        config = entry.config
        if entry.operation != operation:
            continue
        assert isinstance(config, BlockSparseConfig | Int8GemvConfig)
        targets = {name for name in ALL if family_of_target(name) in entry.families}
        for together in SMALL_BATCH:
            between = 1 < together < config.tokens
            reachable = entry.tokens <= together <= config.tokens
            if reachable and not (between and targets <= seen):
                found.setdefault((replace(config, tokens=8), together), set()).update(targets)
        seen |= targets
    return [
        GemvVariant(config, together, tuple(name for name in ALL if name in targets))
        for (config, together), targets in found.items()
        if isinstance(config, BlockSparseConfig | Int8GemvConfig)
    ]


def draw_activations(
    generator: torch.Generator, tokens: int, columns: int, kind: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``q`` padded to 128 columns, scale and sum; kind 0: random, 1: all +-127, 2: all zero."""
    q = torch.randint(-127, 128, (tokens, columns), generator=generator, dtype=torch.int8)
    if kind == 1:
        q = torch.where(q < 0, -127, 127).to(torch.int8)
    elif kind == 2:
        q = torch.zeros_like(q)
    q = F.pad(q, (0, padded(columns) - columns)).contiguous()
    scale = torch.rand(tokens, generator=generator) + 0.01
    return q, scale, q.sum(dim=1, dtype=torch.int32)


def outputs(
    generator: torch.Generator, tokens: int, rows: int, with_residual: bool
) -> dict[str, Tensor | None]:
    """The arguments ``residual`` and ``output`` of a launch."""
    return {
        "residual": torch.randn(tokens, rows, generator=generator) if with_residual else None,
        "output": torch.full((tokens, rows), NOT_WRITTEN),
    }


def expected_outputs(
    accumulator: Tensor, scale: Tensor, weight_scale: Tensor, launch: Arguments
) -> Tensor:
    """What the reference makes of an accumulator and the launch's residual."""
    residual = launch["residual"]
    assert residual is None or isinstance(residual, Tensor)
    return reference.epilogue(accumulator, scale, weight_scale, residual)


def tensor_of(launch: Arguments, name: str) -> Tensor:
    """An argument that is a tensor."""
    value = launch[name]
    assert isinstance(value, Tensor)
    return value


def assert_equal(name: str, seen: Tensor, expected: Tensor) -> None:
    """Raise ``AssertionError`` naming the first element that differs."""
    different = (seen != expected) & ~(seen.isnan() & expected.isnan())
    assert not bool(different.any()), (
        f"{name}: {int(different.sum())} of {different.numel()} differ, first at "
        f"{different.nonzero()[0].tolist()}: {seen[different][0].item()}, expected "
        f"{expected[different][0].item()}"
    )
