"""Every kernel, compiled for every GPU it ships for, against absolute gates and its own figures.

One pass over all cases and targets (about 0.3 s of processor time for each pair) serves all tests
here; ``python -m agentforge_kernels.verify`` prints the same as a table.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator

import agentforge_kernels.triton
import pytest
from agentforge_kernels.verify import limits
from agentforge_kernels.verify.all_cases import CASES, CASES_BY_NAME
from agentforge_kernels.verify.report import Reports, report_everything
from agentforge_kernels.verify.targets import TARGETS
from triton.runtime.jit import JITFunction


@pytest.fixture(scope="module")
def reports() -> Reports:
    return report_everything()


@pytest.fixture(scope="module")
def verdict(reports: Reports) -> limits.Verdict:
    return limits.judge(reports.reports, limits.read_limits(limits.LIMITS_FILE), CASES)


def kernels_with_programs() -> Iterator[JITFunction]:
    """Every kernel of the package that is launched: public, and asks for its program's number."""
    package = agentforge_kernels.triton
    for module in pkgutil.iter_modules(package.__path__):
        for name, thing in vars(
            importlib.import_module(f"{package.__name__}.{module.name}")
        ).items():
            if isinstance(thing, JITFunction) and not name.startswith("_"):
                if "program_id(" in inspect.getsource(thing.fn):
                    yield thing


def test_every_kernel_has_a_case() -> None:
    covered = {case.kernel.fn for case in CASES}
    launched = {kernel.fn for kernel in kernels_with_programs()}
    assert launched, "no kernels found: the search is broken"
    assert sorted(kernel.__name__ for kernel in launched - covered) == []


def test_every_target_has_cases() -> None:
    for target in TARGETS:
        roles = {case.role for case in CASES if target in case.targets}
        assert roles >= {"gemv", "masked_gemv", "gemm", "other"}, f"{target}: only {roles}"


def test_every_kernel_compiles(reports: Reports) -> None:
    assert reports.failures == []


@pytest.mark.parametrize("name", CASES_BY_NAME)
def test_gates_hold(name: str, verdict: limits.Verdict) -> None:
    assert [text for text in verdict.gates if text.startswith(f"{name} on ")] == []


@pytest.mark.parametrize("name", CASES_BY_NAME)
def test_nothing_is_worse_than_checked_in(name: str, verdict: limits.Verdict) -> None:
    assert [text for text in verdict.ratchet if text.startswith(f"{name} on ")] == []


def test_nothing_else_is_wrong(verdict: limits.Verdict) -> None:
    """Stale entries, or a sentence that begins with no case's name."""
    names = tuple(f"{name} on " for name in CASES_BY_NAME)
    assert [text for text in verdict.gates + verdict.ratchet if not text.startswith(names)] == []
    for note in verdict.notes:
        warnings.warn(note, stacklevel=1)
