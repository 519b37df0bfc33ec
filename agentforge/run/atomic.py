"""Files that are there whole or not at all, and what a refusing disk means to the user."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from agentforge.errors import PreflightError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""No space left on the device; the user's quota is used up."""


class DiskFullError(PreflightError):
    """The disk has no room left: the run stops, and its last checkpoint can be resumed."""

    code = "disk"


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace `path` by `data` so that a reader, or a crash, sees the old or the new file.

    The bytes go to a temporary file in the same folder, are synced, and take the name over; then
    the folder is synced. Text is written as UTF-8.

    Raises:
        DiskFullError: No room; the old file is untouched and the temporary one removed.
        PreflightError: The folder is missing, read-only or not ours.
    """
    if isinstance(data, str):
        data = data.encode()
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".tmp-{path.name}-", dir=path.parent)
    except OSError as error:
        raise disk_error(error, path) from None
    try:
        try:
            os.fchmod(handle, mode)
            write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise disk_error(error, path) from None
        raise


def write_all(handle: int, data: bytes | memoryview) -> None:
    """`os.write` until every byte is written (one call may take fewer)."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the bytes of a file that another library wrote survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(error: OSError, path: Path) -> PreflightError:
    """What to tell the user when the system refuses to write `path`."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return DiskFullError(
            f"{path}: the disk is full ({reason})",
            remedy="free some space (agentforge-tui clean --dry-run lists what can go), then "
            "continue with --resume",
        )
    if error.errno == errno.EROFS:
        remedy = "this file system is read-only; choose another folder with --run-dir"
    elif error.errno in (errno.EACCES, errno.EPERM):
        remedy = "you may not write there; choose another folder with --run-dir or change its owner"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT):
        remedy = "a file or folder on the way is missing or of the wrong kind; check the path"
    else:
        remedy = "check the disk, or choose another folder with --run-dir"
    return PreflightError(f"cannot write {path}: {reason}", remedy=remedy)
