"""Kernel cases of the sparse and int8 kernels: every line of their table, small launches.

The shapes hold what goes wrong: a block of rows without tiles, parts of a block beyond the last
row, a last step that is not full, columns that are no multiple of 16, tokens beyond the last.
"""

from __future__ import annotations

from agentforge_kernels.verify import activation_sparse_cases, block_sparse_cases, int8_cases
from agentforge_kernels.verify.cases import KernelCase

CASES: tuple[KernelCase, ...] = (
    *block_sparse_cases.CASES,
    *activation_sparse_cases.CASES,
    *int8_cases.CASES,
)
"""All of them."""
