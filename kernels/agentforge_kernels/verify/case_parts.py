"""What the dense kernels' cases are put together from: data, oracles' comparisons, targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from agentforge_kernels.format import pack, padded, unpack_codes
from agentforge_kernels.triton.config_table import TABLE
from agentforge_kernels.triton.configs import Config
from agentforge_kernels.triton.devices import DOT4_INSTRUCTION, family_of_target
from agentforge_kernels.verify.cases import Arguments
from agentforge_kernels.verify.targets import ALL, TARGETS

NOT_WRITTEN = -3.0e38
"""What outputs hold before a launch, so that one left out is seen."""
INSTRUCTIONS: dict[str, dict[str, object]] = {
    TARGETS[name].family: {"INSTRUCTION": DOT4_INSTRUCTION[family_of_target(name)]} for name in ALL
}
POINTERS = frozenset(
    {
        *("q", "activation_scale", "activation_sum", "codes", "weight_scale", "residual"),
        *("output", "totals", "x", "norm_weight", "scale", "total"),
    }
)

SomeConfig = TypeVar("SomeConfig", bound=Config)


def shipped(kind: type[SomeConfig]) -> Iterator[tuple[SomeConfig, tuple[str, ...]]]:
    """Each configuration of a type in the table, with the targets whose family has it."""
    families: dict[SomeConfig, set[str]] = {}
    for entry in TABLE:
        if type(entry.config) is kind:
            families.setdefault(entry.config, set()).update(entry.families)
    for config, found in families.items():
        yield config, tuple(name for name in ALL if family_of_target(name) in found)


def draw(
    seed: int, tokens: int, rows: int, columns: int, scale_per_row: bool, with_residual: bool
) -> Arguments:
    """Arguments of a matmul in bytes, under the names of all kernels."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-127, 128, (tokens, columns), generator=generator, dtype=torch.int8)
    trits = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
    if seed % 3 == 1:
        q = torch.where(q < 0, -127, 127).to(torch.int8)
        q[0] = 127
        trits = torch.where(torch.arange(rows)[:, None] % 2 == 0, 1, -1).expand(rows, columns)
        trits = trits.to(torch.int8)
    elif seed % 3 == 2:
        q = torch.zeros_like(q)
    q = torch.nn.functional.pad(q, (0, padded(columns) - columns)).contiguous()
    weight_scale = torch.rand(rows if scale_per_row else 1, generator=generator) + 0.01
    return {
        "q": q,
        "activation_scale": torch.rand(tokens, generator=generator) + 0.01,
        "activation_sum": q.sum(dim=1, dtype=torch.int32),
        "codes": pack(trits, weight_scale).codes,
        "weight_scale": weight_scale,
        "residual": torch.randn(tokens, rows, generator=generator) if with_residual else None,
        "output": torch.full((tokens, rows), NOT_WRITTEN),
        "tokens": tokens,
        "rows": rows,
        "groups": padded(columns) // 128,
    }


def tensor_of(launch: Arguments, name: str) -> Tensor:
    """An argument that is a tensor in every launch of the case."""
    value = launch[name]
    assert isinstance(value, Tensor)
    return value


def bytes_of(launch: Arguments, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor that some kernels take as words."""
    return tensor_of(launch, name).view(dtype)


def trits_of(launch: Arguments) -> Tensor:
    """The weights behind ``codes``, padding included."""
    return unpack_codes(bytes_of(launch, "codes", torch.uint8))


def residual_of(launch: Arguments) -> Tensor | None:
    """The residual, where the case has one."""
    residual = launch["residual"]
    assert residual is None or isinstance(residual, Tensor)
    return residual


def check_equal(name: str, seen: Tensor, expected: Tensor) -> None:
    """Raise ``AssertionError`` unless all values are equal; NaN equals NaN."""
    different = (seen != expected) & ~(seen.isnan() & expected.isnan())
    assert not bool(different.any()), (
        f"{name}: {int(different.sum())} of {different.numel()} differ, first at "
        f"{different.nonzero()[0].tolist()}: {seen[different][0].item()}, expected "
        f"{expected[different][0].item()}"
    )


def check_close(name: str, seen: Tensor, expected: Tensor, tolerance: Tensor | float) -> None:
    """Raise ``AssertionError`` unless all differences are at most ``tolerance``; NaN equals NaN."""
    error = (seen.double() - expected.double()).abs()
    wrong = ~(error <= tolerance) & ~(seen.isnan() & expected.isnan())
    assert not bool(wrong.any()), (
        f"{name}: {int(wrong.sum())} of {wrong.numel()} further off than allowed, first at "
        f"{wrong.nonzero()[0].tolist()}: {seen[wrong][0].item()}, "
        f"expected {expected[wrong][0].item()}"
    )


def run_time_arguments(kernel: object, constexprs: dict[str, object]) -> tuple[str, ...]:
    """A kernel's arguments in its order, without those fixed at compile time."""
    names: list[str] = kernel.arg_names  # type: ignore[attr-defined]
    return tuple(name for name in names if name not in constexprs and name != "INSTRUCTION")
