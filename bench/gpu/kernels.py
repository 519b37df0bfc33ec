"""What is timed, and a row of the results for each."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from agentforge_kernels.triton.configs import CONFIG_TYPES
from agentforge_kernels.triton.devices import Family
from agentforge_kernels.triton.fused import MOST_FUSED_COLUMNS
from agentforge_kernels.triton.problems import ZERO_SHARE, Problem, make_problem, tokens_of

from bench.gpu.gpu import Gpu, Limits, Timer

SHAPES = (
    (512, 512),
    (1536, 512),
    (512, 1536),
    (2560, 2560),
    (6912, 2560),
    (2560, 6912),
    (4096, 4096),
)
"""(rows, columns): layers of a 25M model, of BitNet b1.58 2B, of an 8B model."""
QUICK_SHAPES = ((512, 512), (2560, 6912))
HEAD_SHAPES = ((32_000, 512), (128_256, 2560))
TOKENS = (1, 2, 4, 8, 16, 64, 512)
ZEROS = (0.0, 0.25, 0.5, 0.75, 0.9)
"""Share of zero tiles, of zero activations."""


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement; attributes as those of ``problems.Problem``."""

    operation: str
    rows: int
    columns: int
    tokens: int
    zero_share: float

    def problem(self, device: torch.device, family: Family) -> Problem:
        """The call; with a norm where a model's layer has one."""
        return make_problem(
            self.operation,
            self.rows,
            self.columns,
            self.tokens,
            device,
            family,
            norm=self.operation in ("quantize", "fused"),
            zero_share=self.zero_share,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One case on one device.

    Attributes:
        operation: Key of ``configs.CONFIG_TYPES``.
        rows, columns, tokens: Of the call.
        zero_share: Share of zero tiles or activations.
        cold_us: Median microseconds, nothing in the second-level cache.
        graph_us: Median microseconds in a CUDA graph, warm.
        bytes: Device memory that must move.
        products: int8 multiplications.
        share_of_roofline: The slower of both limits over ``cold_us``.
        bound: Which limit that is, ``memory`` or ``multiply``.
        memory_gb_s: Limit of the memory, measured.
        multiply_tops: Limit of int8 operations (two a multiplication), measured.
        device: Name of the GPU.
        capability: Compute capability or architecture.
        clocks: Of multiprocessors and memory.
        versions: Of the software.
    """

    operation: str
    rows: int
    columns: int
    tokens: int
    zero_share: float
    cold_us: float
    graph_us: float
    bytes: int
    products: int
    share_of_roofline: float
    bound: str
    memory_gb_s: float
    multiply_tops: float
    device: str
    capability: str
    clocks: str
    versions: str


COLUMNS = tuple(item.name for item in fields(Row))


def cases(
    family: Family, quick: bool = False, operations: Sequence[str] = tuple(CONFIG_TYPES)
) -> Iterator[Case]:
    """Every kernel the family has, at the shapes and token counts that lead to it."""
    for operation in operations:
        fewest, most = tokens_of(operation, family)
        shapes = QUICK_SHAPES if quick else SHAPES
        if operation.startswith("int8"):
            shapes = HEAD_SHAPES[:1] if quick else HEAD_SHAPES
        if operation == "quantize":
            shapes = tuple(dict.fromkeys((1, columns) for _, columns in shapes))
        shares = (0.0,)
        if operation in ZERO_SHARE:
            shares = (ZERO_SHARE[operation],) if quick else ZEROS
        for rows, columns in shapes:
            if operation == "fused" and columns > MOST_FUSED_COLUMNS:
                continue
            for tokens in (1,) if operation == "activation_sparse" else TOKENS:
                if tokens >= fewest and (most is None or tokens <= most):
                    for share in shares:
                        yield Case(operation, rows, columns, tokens, share)


def measure(
    case: Case, device: torch.device, gpu: Gpu, limits: Limits, cold: Timer, graph: Timer
) -> Row:
    """Time one case.

    Raises:
        RuntimeError: A timer gave no time above zero.
    """
    problem = case.problem(device, gpu.family)
    cold_us, graph_us = cold(problem.run), graph(problem.run)
    if cold_us <= 0.0 or graph_us <= 0.0:
        raise RuntimeError(f"{case}: timed as {cold_us} and {graph_us} us")
    limit_us = {
        "memory": 1e6 * problem.bytes / limits.bytes_per_second,
        "multiply": 1e6 * problem.products / limits.products_per_second,
    }
    bound = max(limit_us, key=lambda name: limit_us[name])
    return Row(
        case.operation,
        problem.rows,
        problem.columns,
        problem.tokens,
        problem.zero_share,
        round(cold_us, 3),
        round(graph_us, 3),
        problem.bytes,
        problem.products,
        round(limit_us[bound] / cold_us, 4),
        bound,
        round(limits.bytes_per_second / 1e9, 1),
        round(2 * limits.products_per_second / 1e12, 2),
        gpu.name,
        gpu.capability,
        gpu.clocks,
        gpu.versions,
    )


def write(rows: Iterable[Row], path: Path) -> None:
    """The results as CSV, replacing what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(astuple(row) for row in rows)


def line(row: Row) -> str:
    """A result for the reader."""
    zeros = f", {row.zero_share:.0%} zeros" if row.zero_share else ""
    shape = f"{row.rows} x {row.columns}, {row.tokens} token{'s' if row.tokens > 1 else ''}{zeros}"
    return (
        f"{row.operation:<18} {shape:<38} {row.cold_us:9.1f} us cold  {row.graph_us:9.1f} us in a "
        f"graph  {row.share_of_roofline:6.1%} of the {row.bound} roofline"
    )
