"""Settings every test shares: no network, no compilation, and where real records are."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.gpu.device import NO_DEVICE
from tests.kernels.native_level import NO_LEVEL_REASONS

# Read by the libraries when they are imported, so they are set before any test module is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture(scope="session")
def records_dir() -> Path:
    """The folder of real records; tests that need it are skipped where there is none."""
    folder = os.environ.get("AGENTFORGE_TEST_DATA")
    if not folder:
        pytest.skip("AGENTFORGE_TEST_DATA is not set")
    return Path(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped and why; without real records that must not go unseen."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    reasons = Counter(str(report.longrepr[2]) for report in skipped)
    terminalreporter.write_line(f"{len(skipped)} tests were skipped:")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"  {count} x {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With AGENTFORGE_NO_SKIPS a skipped test fails the run (continuous integration).

    Except those that need a GPU or instructions this machine does not have: they are counted; the
    bodies of the former run in the interpreter, the latter come back on a processor with them.
    """
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    excused = {f"Skipped: {reason}" for reason in (NO_DEVICE, *NO_LEVEL_REASONS)}
    unexcused = [report for report in skipped if str(report.longrepr[2]) not in excused]
    if unexcused and os.environ.get("AGENTFORGE_NO_SKIPS"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
