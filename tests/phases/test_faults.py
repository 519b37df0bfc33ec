"""Bad input and bad machines, through the command line: one clear message, the right exit code,
nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentforge.errors import ExitCode, RunError
from agentforge.events import LogLine, RunEnded
from agentforge.run.supervisor import start_worker
from tests.phases.smoke_runs import console, events, finish, hashes, kill_after, new_run

ROOT = Path(__file__).parents[2]


def batch(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run ``agentforge-tui --batch`` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "agentforge.cli", "--batch", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(),
        check=False,
    )


def environment() -> dict[str, str]:
    """This process's, with the checkout importable."""
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tui")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def newest_checkpoint(run: Path) -> Path:
    return sorted(p for p in (run / "checkpoints").iterdir() if p.name[0].isdigit())[-1]


def test_a_truncated_checkpoint_is_told_of_and_the_one_before_is_used(tmp_path: Path) -> None:
    whole, broken = new_run(tmp_path / "whole"), new_run(tmp_path / "broken")
    assert finish(whole) == ExitCode.OK, console(whole)
    assert kill_after(broken, 60, signal.SIGTERM)
    file = newest_checkpoint(broken.root) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert finish(broken) == ExitCode.OK, console(broken)
    told = [e for e in events(broken, "log_line") if isinstance(e, LogLine)]
    assert any("truncated" in e.text and file.parent.name in e.text for e in told)
    assert hashes(broken) == hashes(whole)


def test_an_altered_model_file_ends_the_run_with_its_name(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    base = run.artifacts / "cognate" / "base.safetensors"
    engine = start_worker(run)
    while not base.exists():  # not after so many events: a busy machine logs more of them a step
        assert engine.poll() is None, console(run)
        time.sleep(0.01)
    engine.send_signal(signal.SIGTERM)
    assert engine.wait(timeout=60) == ExitCode.SUSPENDED
    data = bytearray(base.read_bytes())
    data[-1] ^= 1
    base.write_bytes(bytes(data))
    assert finish(run) == ExitCode.RUN_FAILED
    ended = events(run, "run_ended")[-1]
    assert isinstance(ended, RunEnded)
    assert "base.safetensors is altered" in ended.reason
    assert "Traceback" not in console(run)


def test_a_second_engine_is_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path, "cognate.base.steps=500")
    first = start_worker(run)
    while not events(run, "step_done"):
        assert first.poll() is None, console(run)
    with pytest.raises(RunError, match=f"pid {first.pid}"):
        start_worker(run)
    second = subprocess.run(
        [sys.executable, "-m", "agentforge.run.worker", str(run.root)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert second.returncode == ExitCode.RUN_FAILED
    assert str(first.pid) in second.stderr
    assert first.poll() is None, "the first engine must not notice"
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) == ExitCode.SUSPENDED


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own, of the size the test asks for."""
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)],
            check=False,
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_a_full_disk_is_refused_before_the_start(small_disk: Path) -> None:
    done = batch("--preset", "smoke", "--run-dir", str(small_disk))
    assert done.returncode == ExitCode.PREFLIGHT
    assert "disk" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("small_disk", ["80m"], indirect=True)
def test_a_disk_that_fills_up_leaves_a_run_that_goes_on_elsewhere(
    small_disk: Path, tmp_path: Path
) -> None:
    run = new_run(small_disk, "storage.prune_below_gb=0", "storage.suspend_below_gb=0")
    assert kill_after(run, 40, signal.SIGTERM)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    assert finish(run) in (ExitCode.PREFLIGHT, ExitCode.SUSPENDED), console(run)
    assert "Traceback" not in console(run)
    filler.unlink()
    moved = tmp_path / "moved"
    shutil.copytree(run.root, moved / run.root.name)
    done = batch("--resume", run.root.name, "--run-dir", str(moved), "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    assert json.loads(done.stdout)["gates"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--set", "cognate.bse.steps=3"), ExitCode.USAGE, ("cognate.bse", "cognate.base")),
        (
            ("--set", "cognate.base.steps=0"),
            ExitCode.USAGE,
            ("cognate.base.steps", "0", "at least 1"),
        ),
        (("--set", "cognate.batch_size=many"), ExitCode.USAGE, ("batch_size", "many")),
        (("--preset", "smok"), ExitCode.USAGE, ("smok", "smoke")),
        (("--config", "/no/such.toml"), ExitCode.USAGE, ("/no/such.toml",)),
        (("--resume", "nothing"), ExitCode.RUN_FAILED, ("nothing",)),
    ],
)
def test_wrong_use_is_one_clear_message(
    arguments: tuple[str, ...], code: ExitCode, words: tuple[str, ...], tmp_path: Path
) -> None:
    preset = () if arguments[0] in ("--preset", "--config", "--resume") else ("--preset", "smoke")
    done = batch(*preset, *arguments, "--run-dir", str(tmp_path))
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing may be left behind"


def records(folder: Path, name: str, lines: list[str]) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"question": "q", "answer": "a #### 1"}', '{"question": "q"'], ("train.jsonl:2",)),
        (['{"frage": "q", "answer": "a #### 1"}'], ("train.jsonl:1", "question")),
        ([""], ("gsm8k",)),
    ],
)
def test_broken_records_name_file_and_line(
    lines: list[str], words: tuple[str, ...], tmp_path: Path, records_dir: Path
) -> None:
    folder = records(tmp_path / "data", "gsm8k", lines)
    shutil.copytree(records_dir / "gpt2_tokenizer", folder / "gpt2_tokenizer")
    done = batch(
        *("--preset", "laptop", "--data-dir", str(folder), "--run-dir", str(tmp_path / "runs")),
        *("--set", 'data.datasets=["gsm8k"]', "--set", "data.use_hub=false"),
    )
    assert done.returncode == ExitCode.PREFLIGHT, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_data_folder_is_refused(tmp_path: Path) -> None:
    done = batch(
        "--preset", "laptop", "--data-dir", str(tmp_path / "no"), "--run-dir", str(tmp_path)
    )
    assert done.returncode == ExitCode.PREFLIGHT
    assert str(tmp_path / "no") in done.stderr
