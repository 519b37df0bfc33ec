"""A batch run from the outside: streams, exit codes, stopping, resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentforge.cli import main

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_engine.py")


def environment(what: str = "") -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AGENTFORGE_")}
    path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": path, "FAKE_ENGINE": what, "HF_HUB_OFFLINE": "1"}


def command(runs: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(FAKE), "--run-dir", str(runs), *arguments]


def batch(runs: Path, *arguments: str, what: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(runs, "--batch", "--preset", "smoke", *arguments),
        env=environment(what),
        cwd=runs.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


def resume(runs: Path, *arguments: str, what: str = "", which: str = "latest"):
    return subprocess.run(
        command(runs, "--batch", "--resume", which, *arguments),
        env=environment(what),
        cwd=runs.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run with a missed gate that several tests look at, and what it said."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    return runs, batch(runs, "--json", "--set", "seed=9", "--on-alert", "ignore", what="missed")


def only_run(runs: Path) -> Path:
    (found,) = runs.iterdir()
    return found


def manifest(runs: Path) -> dict:
    return json.loads((only_run(runs) / "manifest.json").read_text())


def test_a_good_run_prints_its_result_only_on_stdout(runs):
    done = batch(runs)
    assert done.returncode == 0
    assert "cognate.diversity" in done.stdout
    assert "not in this run" in done.stdout
    assert f"directory: {only_run(runs)}" in done.stdout
    assert "phase cognate" in done.stderr
    assert "phase cognate" not in done.stdout
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr


def test_json_is_the_report_with_gates(finished):
    _, done = finished
    report = json.loads(done.stdout)
    assert done.returncode == 4
    assert report["exit_code"] == 4
    assert report["state"] == "finished"
    gates = {g["name"]: g["passed"] for g in report["gates"]}
    assert gates == {"cognate.diversity": False, "cognate.gsm8k": None}
    assert set(report["gates"][0]) >= {"name", "value", "op", "threshold", "n", "source", "passed"}


def test_the_manifest_holds_configuration_and_origins(finished):
    found = manifest(finished[0])
    assert found["config"]["seed"] == 9
    assert found["provenance"]["seed"] == "--set"
    assert found["provenance"]["on_alert"] == "--on-alert"
    assert found["hardware"]["cores"] >= 1


def test_bad_data_is_exit_3_with_the_remedy(runs):
    done = batch(runs, what="bad-data")
    assert done.returncode == 3
    assert "line 7 is not JSON" in done.stderr
    assert "fix or remove that line" in done.stderr


def test_a_defect_is_exit_1_and_its_traceback_is_in_the_log(runs):
    done = batch(runs, what="defect")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "ZeroDivisionError" in (only_run(runs) / "console.log").read_text()


def test_a_killed_engine_is_exit_1_and_says_how_to_go_on(runs):
    done = batch(runs, what="crash")
    assert done.returncode == 1
    assert "ended by signal 9 without a word" in done.stderr
    assert f"agentforge-tui --batch --resume {only_run(runs).name}" in done.stderr
    assert resume(runs).returncode == 0


def test_max_minutes_suspends_and_the_run_can_be_resumed(runs):
    done = batch(runs, "--max-minutes", "0.01", what="forever")
    assert done.returncode == 5
    assert "suspended; go on with: agentforge-tui --batch --resume" in done.stderr
    assert "suspended" in done.stdout
    again = resume(runs)
    assert again.returncode == 0
    assert "resumed" in again.stderr


def interrupt(runs: Path, number: int, what: str, presses: int) -> tuple[int, str]:
    """Start a run, send a signal so many times once it trains, and wait for its end."""
    process = subprocess.Popen(
        command(runs, "--batch", "--preset", "smoke"),
        env=environment(what),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    events = b""
    deadline = time.monotonic() + 30
    while b'"kind":"step_done"' not in events and time.monotonic() < deadline:
        time.sleep(0.05)
        events = b"".join(p.read_bytes() for p in runs.glob("*/events.jsonl"))
    for _ in range(presses):
        process.send_signal(number)
        time.sleep(0.4)
    _, stderr = process.communicate(timeout=30)
    return process.returncode, stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_interrupt_suspends(runs, number):
    code, stderr = interrupt(runs, number, "forever", 1)
    assert code == 5
    assert "suspending: a checkpoint is written" in stderr
    assert manifest(runs)["state"] == "suspended"


def test_the_third_interrupt_kills_an_engine_that_hangs(runs):
    code, stderr = interrupt(runs, signal.SIGINT, "ignores", 3)
    assert code == 130
    assert "aborting" in stderr
    assert "ended by signal 9" in stderr
    assert f"--run-dir {runs}" in stderr


def test_a_live_run_is_driven_by_control(runs, capsys):
    process = subprocess.Popen(
        command(runs, "--batch", "--preset", "smoke"),
        env=environment("forever"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def control(*arguments: str) -> tuple[int, str]:
        code = main(["control", "latest", *arguments, "--run-dir", str(runs)])
        out, err = capsys.readouterr()
        return code, out + err

    try:
        deadline = time.monotonic() + 30
        while not list(runs.glob("*/lock.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert control("pause")[1].startswith("pause done")
        assert control("resume")[0] == 0
        code, said = control("set", "cognate.optim.lr_scale=0.5")
        assert code == 0
        assert "1.0 -> 0.5" in said
        code, said = control("set", "model.d_model=64")
        assert code == 1
        assert "cannot change while a phase runs" in said
        second = resume(runs)
        assert second.returncode == 1
        assert "already runs" in second.stderr
        assert control("finish")[0] == 0
        stdout, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "cognate.diversity" in stdout
    finally:
        process.kill()
    code, said = control("pause")
    assert code == 1
    assert "no engine running" in said
    assert manifest(runs)["config"]["cognate"]["optim"]["lr_scale"] == 0.5


def test_a_resumed_run_keeps_what_its_checkpoint_rests_on(runs):
    batch(runs, "--max-minutes", "0.01", what="forever")
    before = manifest(runs)
    refused = resume(runs, "--set", "model.d_model=64")
    assert refused.returncode == 2
    assert "model.d_model = 64 (the run has 32)" in refused.stderr
    assert resume(runs, "--preset", "demo").returncode == 2
    assert manifest(runs) == before
    allowed = resume(runs, "--set", "storage.keep_last=5", "--on-alert", "stop")
    assert allowed.returncode == 0
    found = manifest(runs)
    assert found["config"]["storage"]["keep_last"] == 5
    assert found["config"]["on_alert"] == "stop"
    assert found["provenance"]["on_alert"] == "--on-alert"
    assert found["provenance"]["model.d_model"] == before["provenance"]["model.d_model"]


def test_resuming_a_finished_run_shows_its_result(finished):
    again = resume(finished[0])
    assert again.returncode == 4
    assert "nothing was left to do" in again.stdout


def test_resuming_a_run_that_is_not_there(finished):
    missing = resume(finished[0], which="nope")
    assert missing.returncode == 1
    assert "no run 'nope'" in missing.stderr
    assert only_run(finished[0]).name in missing.stderr


def test_a_folder_that_cannot_be_written_is_exit_3(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = batch(blocked)
    assert done.returncode == 3
    assert str(blocked) in done.stderr
    assert "Traceback" not in done.stderr


def test_alerts_are_told_at_once(runs):
    done = batch(runs, what="alert")
    assert "warning: Plateau: variance 0.0005 < 0.001; recommended: stop" in done.stderr


def test_a_reader_that_goes_away_is_no_mistake(finished):
    runs, _ = finished
    process = subprocess.Popen(
        command(runs, "report", "latest"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=30) == 0


def test_status_and_report_read_the_run(finished):
    runs, _ = finished
    status = subprocess.run(
        command(runs, "status", "--json"), env=environment(), capture_output=True, text=True
    )
    (row,) = json.loads(status.stdout)
    assert (row["state"], row["preset"], row["gates_met"]) == ("finished", "smoke", 0)
    report = subprocess.run(
        command(runs, "report", row["run_id"][-4:]),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert report.returncode == 0
    assert "cognate.diversity" in report.stdout
