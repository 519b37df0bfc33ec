"""Every kernel case of the product."""

from __future__ import annotations

from agentforge_kernels.verify.cases import KernelCase
from agentforge_kernels.verify.dense_cases import CASES as DENSE_CASES
from agentforge_kernels.verify.sparse_cases import CASES as SPARSE_CASES


def _by_unique_name(cases: tuple[KernelCase, ...]) -> dict[str, KernelCase]:
    found: dict[str, KernelCase] = {}
    for case in cases:
        if case.name in found:
            raise ValueError(f"two kernel cases are named {case.name}")
        found[case.name] = case
    return found


CASES_BY_NAME = _by_unique_name((*DENSE_CASES, *SPARSE_CASES))
CASES = tuple(CASES_BY_NAME.values())
