"""pytest plugin: test the extension file that AGENTFORGE_TEST_EXTENSION names (`make sanitize`)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

NAME = "agentforge_kernels.native._extension"

spec = importlib.util.spec_from_file_location(NAME, os.environ["AGENTFORGE_TEST_EXTENSION"])
assert spec is not None
assert spec.loader is not None
extension = importlib.util.module_from_spec(spec)
spec.loader.exec_module(extension)
sys.modules[NAME] = extension

ONE_BYTE_TOO_FEW = """
import sys
from tests.kernels.sanitized_extension import extension, torch
panels = torch.zeros(extension.panels_bytes(64, 128), dtype=torch.uint8)
codes = torch.zeros(64 * 32 - 1, dtype=torch.uint8)
extension.unpack_panels(panels.data_ptr(), 64, 128, codes.data_ptr())
"""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Prove first that the sanitizer sees one byte written beyond a tensor."""
    probe = subprocess.run(
        [sys.executable, "-c", ONE_BYTE_TOO_FEW], capture_output=True, text=True, check=False
    )
    if "heap-buffer-overflow" not in probe.stderr:
        raise pytest.UsageError(f"the sanitizer is not at work: {probe.stderr or probe.returncode}")


__all__ = ["extension", "pytest_sessionstart", "torch"]
