"""Memory that was freed goes back to the system at once, where it would otherwise stay resident."""

from __future__ import annotations

import ctypes
import sys


def return_free_memory() -> None:
    """glibc keeps freed blocks up to 32 MB for itself; between the matrices of a large model that
    is half a gigabyte. Does nothing on other systems.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
