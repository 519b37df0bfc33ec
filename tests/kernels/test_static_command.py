"""``python -m agentforge_kernels.verify``: its table, its JSON, its exit codes, its limits file."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from agentforge_kernels.verify import __main__ as command
from agentforge_kernels.verify import limits, report
from agentforge_kernels.verify.report import Reports, StaticReport

from tests.kernels import probe_kernels as probes

CASE = probes.gemv_case(targets=("sm_75",))


@pytest.fixture(scope="module")
def good() -> StaticReport:
    compiled = probes.report_of(CASE, "sm_75")
    return dataclasses.replace(compiled, triton=limits.RATCHETED[0])


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, good: StaticReport) -> list[Reports]:
    """The command sees one case, a limits file of its own, and what is put in this list."""
    given = [Reports([good], [])]
    monkeypatch.setattr(command, "CASES", (CASE,))
    monkeypatch.setattr(command, "CASES_BY_NAME", {CASE.name: CASE})
    monkeypatch.setattr(command, "report_everything", lambda _targets, _names: given[0])
    monkeypatch.setattr(limits, "LIMITS_FILE", tmp_path / "limits.json")
    return given


def test_update_then_judge(
    answer: list[Reports], good: StaticReport, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--update-limits"]) == 0
    assert limits.read_limits(limits.LIMITS_FILE) == {
        "good_gemv": {"sm_75": {good.triton: limits.figures(good)}}
    }
    assert command.main([]) == 0
    assert "good_gemv  sm_75" in capsys.readouterr().out

    answer[0] = Reports([dataclasses.replace(good, registers=good.registers + 8)], [])
    assert command.main([]) == 1
    assert "registers 55" in capsys.readouterr().err


def test_json_is_the_whole_of_standard_output(
    answer: list[Reports], capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["--update-limits", "--json"])
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["case"], entry["registers"]) == ("good_gemv", answer[0].reports[0].registers)


def test_a_kernel_that_does_not_compile_fails_and_changes_no_limits(
    answer: list[Reports], capsys: pytest.CaptureFixture[str]
) -> None:
    answer[0] = Reports([], ["good_gemv does not compile for sm_75"])
    assert command.main(["--update-limits"]) == 1
    assert not limits.LIMITS_FILE.exists()
    assert command.main([]) == 1
    text = capsys.readouterr().err
    assert "does not compile" in text
    assert "good_gemv on sm_75: no report" in text


def test_a_missed_gate_fails_even_when_limits_are_written(
    answer: list[Reports], good: StaticReport, capsys: pytest.CaptureFixture[str]
) -> None:
    answer[0] = Reports([dataclasses.replace(good, spill_bytes=4)], [])
    assert command.main(["--update-limits"]) == 1
    assert "spilled registers" in capsys.readouterr().err


def test_a_version_without_figures_is_noted(
    answer: list[Reports], good: StaticReport, capsys: pytest.CaptureFixture[str]
) -> None:
    limits.write_limits({}, limits.LIMITS_FILE)
    answer[0] = Reports([dataclasses.replace(good, triton="99.0.0")], [])
    assert command.main(["--target", "sm_75", "--kernel", "good_gemv"]) == 0
    assert "no ratchet exists" in capsys.readouterr().err
    assert command.main(["--update-limits"]) == 1
    assert "99.0.0" in capsys.readouterr().err
    assert limits.read_limits(limits.LIMITS_FILE) == {}


@pytest.mark.parametrize("wrong", [["--kernel", "none_such"], ["--target", "sm_30"]])
@pytest.mark.usefixtures("answer")
def test_unknown_names_are_a_usage_error(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(wrong)
    assert stopped.value.code == 2


class PoolWithADeadWorker:
    """Stands for a pool whose worker was ended by a failed assertion of a compiler."""

    def __init__(self, **_options: object) -> None:
        pass

    def __enter__(self) -> PoolWithADeadWorker:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def submit(self, *_work: object) -> Future[Reports]:
        future: Future[Reports] = Future()
        future.set_exception(BrokenProcessPool())
        return future


def test_a_compiler_that_ends_its_process_is_said_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ProcessPoolExecutor", PoolWithADeadWorker)
    with pytest.raises(RuntimeError, match="ended its process while compiling for sm_75"):
        report.report_everything(["sm_75"])
