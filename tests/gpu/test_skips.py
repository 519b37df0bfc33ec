"""In continuous integration a skipped test fails the run, unless it lacks a GPU or instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.device import NO_DEVICE
from tests.kernels.native_level import NO_LEVEL

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("reason", "exit_code"),
    [
        (NO_DEVICE, 0),
        ("no records", 1),
        (f"{NO_DEVICE} today", 1),
        (f"{NO_LEVEL} amxint8", 0),
        (f"{NO_LEVEL} portable", 1),
        (f"{NO_LEVEL} amxint8 today", 1),
    ],
)
def test_only_missing_hardware_excuses_a_skip(tmp_path: Path, reason: str, exit_code: int) -> None:
    test = tmp_path / "test_skipped.py"
    test.write_text(
        f"import pytest\n@pytest.mark.skipif(True, reason={reason!r})\n"
        "def test_skipped(): ...\ndef test_passes(): ...\n"
    )
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(test)],
        cwd=REPOSITORY,
        env={**os.environ, "AGENTFORGE_NO_SKIPS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert f"1 x Skipped: {reason}" in done.stdout
    assert "1 tests were skipped:" in done.stdout
