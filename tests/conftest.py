"""Settings every test shares: no network, no compilation, and where real records are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
