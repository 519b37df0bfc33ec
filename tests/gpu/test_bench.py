"""The GPU benchmark's code in the interpreter, tiny, with timers of the test's own."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from agentforge_kernels.triton.configs import CONFIG_TYPES
from agentforge_kernels.triton.devices import FAMILIES, Family
from agentforge_kernels.triton.problems import tokens_of
from agentforge_kernels.verify.interpreter import interpreted

from bench.gpu import __main__ as command
from bench.gpu import gpu as gpu_module
from bench.gpu import kernels
from bench.gpu.gpu import COPY_BYTES, SQUARE, Gpu, Limits
from bench.gpu.kernels import COLUMNS, Case, Row

CPU = torch.device("cpu")
LIMITS = Limits(bytes_per_second=1e9, products_per_second=1e12)


def gpu_of(family: Family) -> Gpu:
    return Gpu("a GPU of the test's", family, "sm_00", "1 / 2 MHz", "versions")


def timer_of(us: float) -> Callable[[Callable[[], object]], float]:
    """Runs the call and claims a time."""

    def timer(call: Callable[[], object]) -> float:
        call()
        return us

    return timer


def tiny(case: Case) -> Case:
    return replace(case, rows=19, columns=130)


@pytest.mark.parametrize("family", ["turing", "ampere"])
def test_every_kernel_is_timed(family: Family, tmp_path: Path) -> None:
    """The first case of each operation that the family has, shrunk for the interpreter."""
    first: dict[str, Case] = {}
    for case in kernels.cases(family):
        first.setdefault(case.operation, case)
    assert set(first) == {name for name in CONFIG_TYPES if tokens_of(name, family)[1] != 0}
    rows = []
    with interpreted():
        for case in first.values():
            rows.append(
                kernels.measure(
                    tiny(case), CPU, gpu_of(family), LIMITS, timer_of(8.0), timer_of(2.0)
                )
            )
    path = tmp_path / "results" / "gpu.csv"
    kernels.write(rows, path)
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["operation"] for row in read] == list(first)
    assert tuple(read[0]) == COLUMNS
    assert {row["device"] for row in read} == {"a GPU of the test's"}
    assert all(row["cold_us"] == "8.0" and row["graph_us"] == "2.0" for row in read)
    for row in rows:
        assert row.operation in kernels.line(row)
        assert f"{row.share_of_roofline:6.1%}" in kernels.line(row)


def test_share_of_roofline_is_of_the_slower_limit() -> None:
    case = Case("gemv", 19, 130, 1, 0.0)
    problem = case.problem(CPU, "turing")
    arguments = (case, CPU, gpu_of("turing"))
    with interpreted():
        memory = kernels.measure(
            *arguments, Limits(1e9, 1e15), timer_of(problem.bytes / 1000 * 4), timer_of(1.0)
        )
        multiply = kernels.measure(
            *arguments, Limits(1e15, 1e12), timer_of(problem.products / 1e6 * 2), timer_of(1.0)
        )
    assert (memory.bound, memory.share_of_roofline) == ("memory", 0.25)
    assert (multiply.bound, multiply.share_of_roofline) == ("multiply", 0.5)
    assert memory.memory_gb_s == 1.0
    assert multiply.multiply_tops == 2.0


def test_a_timer_that_gives_nothing_is_an_error() -> None:
    with interpreted(), pytest.raises(RuntimeError, match=r"timed as 0\.0"):
        kernels.measure(
            Case("gemv", 19, 130, 1, 0.0),
            CPU,
            gpu_of("turing"),
            LIMITS,
            timer_of(0.0),
            timer_of(1.0),
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_cases_are_those_the_operations_take(family: Family) -> None:
    found = list(kernels.cases(family))
    assert len(found) == len(set(found))
    for case in found:
        fewest, most = tokens_of(case.operation, family)
        assert case.tokens >= fewest
        assert most is None or case.tokens <= most
    quick = list(kernels.cases(family, quick=True))
    assert {case.operation for case in quick} == {case.operation for case in found}
    assert len(quick) < len(found) / 2
    assert {c.operation for c in kernels.cases(family, operations=("gemv",))} == {"gemv"}


def test_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy reads and writes; products are of a matrix product, or dp4a's without matrix units."""
    monkeypatch.setattr(gpu_module, "COPY_BYTES", 1 << 10)
    monkeypatch.setattr(gpu_module, "SQUARE", 32)
    properties = SimpleNamespace(
        major=8, minor=0, name="NVIDIA A100", multi_processor_count=2, clock_rate=1_000_000
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    limits = gpu_module.measure_limits(CPU, timer_of(1000.0))
    assert limits.bytes_per_second == pytest.approx(2 * 1024 / 1e-3)
    assert limits.products_per_second == pytest.approx(32**3 / 1e-3)
    properties.major, properties.minor, properties.name = 7, 5, "NVIDIA GeForce GTX 1660"
    without = gpu_module.measure_limits(CPU, timer_of(1000.0))
    assert without.products_per_second == pytest.approx(2 * 64 * 4 * 1e9)
    assert COPY_BYTES == 256 << 20
    assert SQUARE == 4096


def test_no_clocks_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> Any:
        raise RuntimeError("no such device")

    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    assert gpu_module.clocks(CPU) == ""


def test_the_command_from_device_to_csv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything but the device itself."""
    made = Case.problem
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(command, "describe", lambda _: gpu_of("turing"))
    monkeypatch.setattr(command, "measure_limits", lambda *_: LIMITS)
    monkeypatch.setattr(command, "time_cold", timer_of(8.0))
    monkeypatch.setattr(command, "time_in_graph", timer_of(2.0))
    monkeypatch.setattr(Case, "problem", lambda case, _, family: made(tiny(case), CPU, family))
    path = tmp_path / "gpu.csv"
    with interpreted():
        assert command.main(["--quick", "--op", "fused", "--output", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["operation"] for row in rows} == {"fused"}
    said = capsys.readouterr().out
    assert f"{len(rows)} rows in {path}" in said
    assert "limits: 1 GB/s, 2.0 int8 TOPS" in said


def test_without_a_gpu_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "gpu.csv"
    assert command.main(["--output", str(path)]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "no CUDA or HIP device is visible to torch: no GPU kernel was timed\n"
    assert not path.exists()


def test_a_row_has_every_column() -> None:
    row = Row(*range(len(COLUMNS)))  # type: ignore[arg-type]
    assert tuple(asdict(row)) == COLUMNS
