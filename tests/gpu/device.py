"""Whether there is a GPU to test on; read by tests/conftest.py, so torch is imported when asked."""

from __future__ import annotations

NO_DEVICE = "no CUDA device"
"""Reason of the only skips that continuous integration accepts (AGENTFORGE_NO_SKIPS)."""


def has_device() -> bool:
    """Whether torch sees a CUDA or HIP device."""
    import torch

    return torch.cuda.is_available()
