"""Kernel cases of the dense kernels."""

from __future__ import annotations

from agentforge_kernels.verify import matmul_cases, quantizer_cases
from agentforge_kernels.verify.cases import KernelCase

CASES: tuple[KernelCase, ...] = (*matmul_cases.CASES, *quantizer_cases.CASES)
