"""Every kernel's compiled code, executed thread by thread, against the reference."""

from __future__ import annotations

import pytest
import torch
from agentforge_kernels.verify.all_cases import CASES
from agentforge_kernels.verify.cases import KernelCase
from agentforge_kernels.verify.ptx.case_runner import run_ptx
from agentforge_kernels.verify.targets import CUDA, EXECUTED

EXECUTIONS = [
    pytest.param(case, target, id=f"{case.name}-{target}")
    for case in CASES
    for target in EXECUTED
    if target in case.targets
]


WRITTEN = {
    "quantize_tokens": {"q", "scale", "total"},
    "gather_nonzero": {"column", "value", "count"},
    "multiply_columns": {"partial"},
    "ternary_gemv_split": {"totals"},
}
"""Arguments a kernel may change; ``output`` for all others."""


@pytest.mark.parametrize(("case", "target"), EXECUTIONS)
def test_compiled_code_computes_what_the_reference_says(case: KernelCase, target: str) -> None:
    """In every schedule; bounds, alignment, barriers and shared memory are watched."""
    after = run_ptx(case, target)
    for name, value in case.build_checked(0).items():
        may_change = name in WRITTEN.get(case.kernel.fn.__name__, {"output"})
        if isinstance(value, torch.Tensor) and not may_change:
            # By bytes: NaN among the inputs is equal to itself.
            same = torch.equal(value.view(torch.uint8), after[name].view(torch.uint8))
            assert same, f"{name} is an input and was changed"


def test_every_case_for_nvidia_is_executed() -> None:
    missing = [
        case.name
        for case in CASES
        if set(case.targets) & set(CUDA) and not set(case.targets) & set(EXECUTED)
    ]
    assert missing == []
    assert {case.kernel.fn.__name__ for case in CASES} == {
        param.values[0].kernel.fn.__name__ for param in EXECUTIONS
    }
