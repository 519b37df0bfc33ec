"""What is measured: operations, shapes, batches, threads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

DENSE = "ternary_linear"
COLD = "ternary_linear_cold"
BLOCK_SPARSE = "block_sparse"
ACTIVATION_SPARSE = "activation_sparse"
HEAD = "int8_linear"
QUANTIZE = "quantize_activations"

SHAPES = (
    (512, 512),
    (1536, 512),
    (512, 1536),
    (2048, 512),
    (2560, 2560),
    (6912, 2560),
    (2560, 6912),
    (4096, 4096),
)
"""(rows, columns): the layers of a 25M model, then those of BitNet b1.58 2B and of an 8B one."""
QUICK_SHAPES = ((512, 512), (1536, 512), (2560, 2560), (4096, 4096))
BATCHES = (1, 4, 16, 64, 256)
QUICK_BATCHES = (1, 16, 256)
HEAD_SHAPE = (50257, 512)
SPARSE_SHAPES = ((512, 1536), (512, 2048), (2560, 6912))
"""Down-projections: their input is what a squared ReLU leaves."""
ZEROS = (0, 10, 20, 30, 40, 50, 60, 70, 75, 80, 90, 95)
"""Per cent."""
QUANTIZED = ((1, 512), (1, 2560), (256, 512), (256, 2560))
"""(tokens, columns)."""

COLD_BYTES = 6 << 20
"""Packed weights of a cold case, used one matrix after the other: what the 25M model has."""


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement.

    Attributes:
        op: One of this module's operations.
        n, k, m: Rows (output features), columns (input features), tokens.
        threads: Threads of a call.
        copies: Matrices used in turn; 1 is hot.
        zeros: Per cent of blocks (block-sparse) or activations (activation-sparse) that are zero.
    """

    op: str
    n: int
    k: int
    m: int
    threads: int
    copies: int = 1
    zeros: int = 0

    @property
    def multiplies(self) -> int:
        """Multiply-accumulates of a call."""
        if self.op == QUANTIZE:
            return 0
        return self.m * self.n * self.k * (100 - self.zeros) // 100

    @property
    def weight_bytes(self) -> int:
        """Bytes a call has to read: packed weights (the activations, when quantising)."""
        if self.op == QUANTIZE:
            return 4 * self.m * self.k
        if self.op == HEAD:
            return self.n * self.k
        return packed_bytes(self.n, self.k) * (100 - self.zeros) // 100

    @property
    def label(self) -> str:
        """The operation as the results name it."""
        sparse = self.op in (BLOCK_SPARSE, ACTIVATION_SPARSE)
        return f"{self.op}_{self.zeros}" if sparse else self.op

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def packed_bytes(rows: int, columns: int) -> int:
    """Two bits a weight, rows padded to 64 and columns to 16."""
    return -(-rows // 64) * 64 * -(-columns // 16) * 16 // 4


def dense_cases(
    shapes: tuple[tuple[int, int], ...], batches: tuple[int, ...], threads: tuple[int, ...]
) -> list[Case]:
    """Dense cases, a shape's together; batch 1 also cold."""
    cases = []
    for n, k in shapes:
        for count in threads:
            cases += [Case(DENSE, n, k, m, count) for m in batches]
            copies = max(2, -(-COLD_BYTES // packed_bytes(n, k)))
            cases.append(Case(COLD, n, k, 1, count, copies=copies))
    return cases


def sparse_cases(
    shapes: tuple[tuple[int, int], ...], zeros: tuple[int, ...], threads: tuple[int, ...]
) -> list[Case]:
    """Block-sparse and activation-sparse cases, one token."""
    return [
        Case(op, n, k, 1, count, zeros=share)
        for n, k in shapes
        for op in (BLOCK_SPARSE, ACTIVATION_SPARSE)
        for count in threads
        for share in zeros
    ]
