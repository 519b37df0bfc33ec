"""The tuner: every operation in the interpreter with a timer of the test's own, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from agentforge_kernels import tune
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.triton import configs, problems
from agentforge_kernels.triton.candidates import candidates
from agentforge_kernels.triton.config_table import TABLE
from agentforge_kernels.triton.configs import (
    CONFIG_TYPES,
    Config,
    GemvConfig,
    Int8GemvConfig,
    bucket_of,
    lookup,
)
from agentforge_kernels.triton.devices import FAMILIES, Family
from agentforge_kernels.triton.problems import Problem, tokens_of
from agentforge_kernels.triton.user_configs import PATH_VARIABLE, read_user_configs
from agentforge_kernels.verify.interpreter import interpreted

CPU = torch.device("cpu")
SLOW, FAST = GemvConfig(4, 4, 128), GemvConfig(2, 4, 64)


@pytest.fixture(autouse=True)
def no_user_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "kernels.json"
    monkeypatch.setenv(PATH_VARIABLE, str(path))
    return path


class CountingTimer:
    """Runs the call; the first one timed takes 100 us, each further one less."""

    def __init__(self, step: float = 10.0) -> None:
        self.calls = 0
        self._step = step

    def __call__(self, call: Callable[[], object]) -> float:
        call()
        self.calls += 1
        return 100.0 - self._step * (self.calls - 1)


def used(operation: str) -> list[Family]:
    """A family without and one with matrix units, where the operation is used there."""
    return [family for family in ("turing", "ampere") if tokens_of(operation, family)[1] != 0]


@pytest.mark.parametrize(
    ("operation", "family"),
    [(operation, family) for operation in CONFIG_TYPES for family in used(operation)],
)
def test_every_operation_is_tuned(operation: str, family: Family) -> None:
    tokens = tokens_of(operation, family)[0]
    shipped = lookup(operation, family, 20, 128, tokens)
    other = next(config for config in candidates(operation, family, tokens) if config != shipped)
    timer = CountingTimer()
    with interpreted():
        timed = tune.tune(operation, 20, 128, tokens, CPU, family, timer, [shipped, other])
    assert timer.calls == 2
    assert timed.before == (shipped, 100.0)
    assert timed.best == (other, 90.0)
    assert timed.refused == ()
    assert timed.key[:2] == (operation, family)


def problem_of(result: Callable[[], int]) -> Callable[..., Problem]:
    """In place of ``make_problem``: looks a matvec's configuration up and returns a number."""

    def make(operation: str, rows: int, columns: int, tokens: int, *_: Any, **__: Any) -> Problem:
        def run() -> tuple[torch.Tensor, ...]:
            return (torch.tensor(result()),)

        return Problem(operation, rows, columns, tokens, 0.0, run, run, 1, 1)

    return make


def tune_fake(
    monkeypatch: pytest.MonkeyPatch,
    result: Callable[[Config], int],
    times: dict[Config, float],
) -> tune.Timed:
    """Tune a matvec that computes ``result(config)`` and takes ``times[config]``."""
    asked: list[Config] = []

    def run() -> int:
        asked.append(lookup("gemv", "turing", 512, 512, 1))
        return result(asked[-1])

    def timer(call: Callable[[], object]) -> float:
        call()
        return times[asked[-1]]

    monkeypatch.setattr(problems, "make_problem", problem_of(run))
    return tune.tune("gemv", 512, 512, 1, CPU, "turing", timer, list(times))


def test_candidates_with_another_result_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = lookup("gemv", "turing", 512, 512, 1)
    timed = tune_fake(
        monkeypatch,
        lambda config: config.num_warps,
        {shipped: 50.0, replace(shipped, num_warps=8): 1.0},
    )
    assert timed.best == (shipped, 50.0)
    assert len(timed.refused) == 1
    assert "another result" in timed.refused[0]


def test_candidates_that_raise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = lookup("gemv", "turing", 512, 512, 1)
    bad, good = replace(shipped, num_warps=8), replace(shipped, num_warps=1)

    def result(config: Config) -> int:
        if config == bad:
            raise RuntimeError("out of resource: shared memory\nmore")
        return 1

    timed = tune_fake(monkeypatch, result, {shipped: 50.0, bad: 1.0, good: 40.0})
    assert timed.best == (good, 40.0)
    assert timed.refused == (f"{bad}: RuntimeError: out of resource: shared memory",)


def test_what_is_hardly_faster_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = lookup("gemv", "turing", 512, 512, 1)
    other = replace(shipped, num_warps=8)
    timed = tune_fake(monkeypatch, lambda _: 1, {shipped: 50.0, other: 49.5})
    assert timed.best == (shipped, 50.0)


def test_a_call_that_never_asks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "make_problem", problem_of(lambda: 1))
    with pytest.raises(KernelInputError, match="tokens: 1"):
        tune.tune("gemv", 512, 512, 1, CPU, "turing", CountingTimer())


@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_hold_all_that_is_checked_in(family: Family) -> None:
    for entry in TABLE:
        if family in entry.families:
            assert entry.config in candidates(entry.operation, family, 512)
    for operation, kind in CONFIG_TYPES.items():
        assert {type(config) for config in candidates(operation, family, 1)} == {kind}


def test_candidates_take_no_more_tokens_than_there_are() -> None:
    for tokens, most in ((1, 1), (3, 4), (100, 8)):
        found = candidates("int8_gemv", "turing", tokens)
        assert {c.tokens for c in found if isinstance(c, Int8GemvConfig)} <= {1, 2, 4, 8}
        assert max(c.tokens for c in found if isinstance(c, Int8GemvConfig)) == most
    with pytest.raises(KernelInputError, match="operation"):
        candidates("matmul", "turing", 1)


def run_command(*arguments: str, tried: list[Config] | None = None) -> int:
    machine: tuple[torch.device, Family, str] = (CPU, "turing", "a GPU of the test's")
    with interpreted():
        return tune.main(arguments, timer=CountingTimer(), machine=machine, tried=tried)


def test_the_command_writes_what_later_lookups_read(
    no_user_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("--op", "gemv", "--shape", "20x128", tried=[SLOW, FAST]) == 0
    assert lookup("gemv", "turing", 20, 128, 1) == FAST
    document = json.loads(no_user_file.read_text())
    assert document["device"] == "a GPU of the test's"
    said = capsys.readouterr().out
    assert str(no_user_file) in said
    assert "operation  rows x columns  tokens  before us  best us  gain   best" in said
    assert "gemv       20 x 128        1       100.0      80.0     1.25x  GemvConfig(" in said


def test_other_lines_of_the_file_stay(no_user_file: Path, tmp_path: Path) -> None:
    assert run_command("--op", "gemv", "--shape", "20x128", tried=[SLOW]) == 0
    assert run_command("--op", "gemv", "--shape", "20x512", tried=[FAST]) == 0
    assert read_user_configs(no_user_file) == {
        ("gemv", "turing", bucket_of(20, 128, 1)): SLOW,
        ("gemv", "turing", bucket_of(20, 512, 1)): FAST,
    }
    elsewhere = tmp_path / "other.json"
    options = ("--op", "gemv", "--shape", "20x128", "--output", str(elsewhere))
    assert run_command(*options, tried=[FAST]) == 0
    assert read_user_configs(elsewhere).values()


def test_a_file_of_something_else_is_not_overwritten(
    no_user_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_user_file.write_text("my diary")
    with pytest.warns(UserWarning, match="is not used"):
        assert run_command("--op", "gemv", "--shape", "20x128", tried=[FAST]) == 1
    assert no_user_file.read_text() == "my diary"
    assert "was not written" in capsys.readouterr().err


def test_nothing_that_runs_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("--op", "int8_gemm", "--tokens", "64") == 1
    assert "none of these operations runs" in capsys.readouterr().err


def test_without_a_gpu_one_sentence_and_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "nothing to tune: no CUDA or HIP device is visible to torch\n"


@pytest.mark.parametrize(
    "arguments",
    [["--shape", "5"], ["--shape", "0x5"], ["--tokens", "-1"], ["--op", "matmul"], ["stray"]],
)
def test_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tune.main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_help_needs_no_triton() -> None:
    code = (
        "import sys; from agentforge_kernels import tune\n"
        "try:\n    tune.main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert 'triton' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--shape ROWSxCOLUMNS" in done.stdout


def test_the_default_run_has_every_operation_once() -> None:
    assert set(tune.OPERATIONS) == set(CONFIG_TYPES)
    for family in FAMILIES:
        work = list(tune._work(tune._parser().parse_args([]), family))
        assert len(work) == len(set(work))
        run = {operation for operation, *_ in work}
        never = {name for name in CONFIG_TYPES if tokens_of(name, family)[1] == 0}
        assert run == set(CONFIG_TYPES) - never
        heads = {(rows, columns) for name, rows, columns, _ in work if name.startswith("int8")}
        assert heads == set(tune.HEAD_SHAPES)


def test_use_is_undone_and_checks_its_type() -> None:
    shipped = lookup("gemv", "turing", 64, 512, 1)
    with configs.use("gemv", FAST) as asked:
        with configs.use("gemv", SLOW):
            assert lookup("gemv", "turing", 64, 512, 1) == SLOW
        assert lookup("gemv", "turing", 64, 512, 1) == FAST
    assert asked == [("gemv", "turing", bucket_of(64, 512, 1))]
    assert lookup("gemv", "turing", 64, 512, 1) == shipped
    with pytest.raises(KernelInputError, match="gemm: GemvConfig; allowed: GemmConfig"):
        with configs.use("gemm", FAST):
            pass
