"""The C++ extension, when it was built: ``extension`` is the module, or ``None`` with a reason.

A wheel built without a compiler has no extension; the package then computes the same results with
``torch._int_mm``. :mod:`agentforge_kernels.native.threads` says how many threads a call may use.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch  # noqa: F401  (before the extension, which then binds to torch's OpenMP runtime)

__all__ = ["extension", "unavailable_reason"]

_NAME = "agentforge_kernels.native._extension"
_reason: str | None = None
extension: ModuleType | None = None
try:
    extension = import_module(_NAME)
except ModuleNotFoundError as error:
    if error.name != _NAME:
        raise
    _reason = "the extension was not built (no C++ compiler when the package was installed)"
except ImportError as error:
    _reason = f"the extension does not load: {error}"


def unavailable_reason() -> str | None:
    """Why ``extension`` is ``None``, in words for the user; ``None`` when it is there."""
    return _reason
