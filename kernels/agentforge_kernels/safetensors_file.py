"""One safetensors file, written whole or not at all, and read only when every byte is as written.

The format (https://huggingface.co/docs/safetensors) is eight bytes of header length, a JSON header,
then the raw little-endian values. The header's metadata names our format and version and holds a
SHA-256 of the whole file (with zeros in its own place): a flipped bit in a code is a valid code, so
nothing but a checksum can tell. It guards against accidents, not against a forger; what a forger
could write is refused by the checks of :mod:`agentforge_kernels.files`.

Files are read with the safetensors library. They are written here because the library's writer puts
metadata keys in a random order, so that equal tensors would give different files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from torch import Tensor

from agentforge_kernels.errors import KernelInputError

DTYPES: dict[torch.dtype, str] = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
MOST_HEADER_BYTES = 1 << 24
"""16 MB, some 100,000 tensors: a longer header is refused before memory is taken for it."""

_HEADER = "header"
_NO_DIGEST = b"0" * 64
_INTACT = "an intact file written by agentforge_kernels.files.save_tensors"


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> str:
    """Replace ``path`` by a file of these tensors; equal content gives equal bytes.

    The bytes go to a temporary file in the same folder, are synced, and take the name over: a
    reader, or a crash, sees the old file or the new one.

    Args:
        path: The file.
        tensors: Tensors of any strides and device, in one of ``DTYPES``.
        metadata: Text by name; ``sha256`` is added.

    Returns:
        The SHA-256 in the file's metadata.

    Raises:
        OSError: The system refuses to write; an old file is untouched.
    """
    # Wide types first, so that every tensor begins at a multiple of its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {
        "__metadata__": dict(sorted({**metadata, "sha256": _NO_DIGEST.decode()}.items()))
    }
    values = []
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        values.append(_raw(tensor))
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    length = len(text).to_bytes(8, "little")
    digest = hashlib.sha256(length + text)
    for piece in values:
        digest.update(piece)
    # Found once: inside a JSON string a quotation mark is escaped.
    place = text.index(b'"sha256":"' + _NO_DIGEST) + len(b'"sha256":"')
    text = text[:place] + digest.hexdigest().encode() + text[place + len(_NO_DIGEST) :]
    _replace(path, [length, text, *values])
    return digest.hexdigest()


def read_safetensors(
    path: Path, format_name: str, newest_version: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the metadata of a file.

    Args:
        path: The file.
        format_name: What its metadata must have as ``format``.
        newest_version: Highest ``version`` that can be read.

    Raises:
        KernelInputError: No whole safetensors file, of another format, newer, or altered; names the
            file and the key.
        OSError: The file is missing or cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MOST_HEADER_BYTES, size - 8):
            refuse(path, _HEADER, f"{length} bytes of header in {size} bytes of file", _INTACT)
        metadata, end = _parse(path, file.read(length))
        _check_format(path, metadata, format_name, newest_version)
        if size != 8 + length + end:
            word = "truncated" if size < 8 + length + end else "longer than its header says"
            refuse(path, _HEADER, f"{word}: {size} bytes, not {8 + length + end}", _INTACT)
        file.seek(0)
        data = file.read(size)
    _check_digest(path, data, length, metadata.get("sha256", ""))
    try:
        tensors = load_bytes(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError, OverflowError) as error:
        refuse(path, _HEADER, str(error), _INTACT)
    return dict(sorted(tensors.items())), metadata


def refuse(path: Path, key: str, seen: object, allowed: str, remedy: str = "") -> NoReturn:
    """Raise :class:`KernelInputError` for ``key`` of a file."""
    shown = key if key.isprintable() else ascii(key)
    raise KernelInputError(f"{path}: {shown}", seen, allowed, remedy) from None


def in_short(value: object) -> str:
    """A value read from JSON for a message: never long, never deep."""
    return type(value).__name__ if isinstance(value, dict | list) else f"{value!r:.80}"


def _parse(path: Path, text: bytes) -> tuple[dict[str, str], int]:
    """Metadata and length of the data section, from a header nobody has checked."""
    try:
        header: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(path, _HEADER, f"no JSON ({error})", _INTACT)
    if not isinstance(header, dict):
        refuse(path, _HEADER, f"a JSON {type(header).__name__}", "a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        refuse(path, "__metadata__", "other things than text", "text by name")
    end = 0
    for name, entry in header.items():
        if not isinstance(entry, dict):
            refuse(path, name, in_short(entry), "a JSON object")
        if entry.get("dtype") not in list(DTYPES.values()):
            refuse(path, name, f"dtype {in_short(entry.get('dtype'))}", ", ".join(DTYPES.values()))
        offsets = entry.get("data_offsets")
        if (
            not isinstance(offsets, list)
            or len(offsets) != 2
            or not all(isinstance(offset, int) and offset >= 0 for offset in offsets)
        ):
            refuse(path, name, f"data_offsets {in_short(offsets)}", "two byte offsets")
        end = max(end, offsets[1])
    return metadata, end


def _check_format(
    path: Path, metadata: Mapping[str, str], format_name: str, newest_version: int
) -> None:
    if metadata.get("format") != format_name:
        seen = f"a file of format {in_short(metadata.get('format'))}"
        refuse(path, "format", seen, f"{format_name!r}")
    version = metadata.get("version", "")
    if not (version.isascii() and version.isdecimal() and len(version) < 10) or int(version) < 1:
        refuse(path, "version", in_short(version), f"1 to {newest_version}")
    if int(version) > newest_version:
        refuse(
            path,
            "version",
            version,
            f"1 to {newest_version}",
            "The file is newer than this package: install a newer agentforge_kernels.",
        )


def _check_digest(path: Path, data: bytes, length: int, stored: str) -> None:
    head = data[: 8 + length]
    if len(stored) != len(_NO_DIGEST) or not stored.isascii():
        refuse(path, "sha256", in_short(stored), "64 hexadecimal digits")
    digest = hashlib.sha256(head.replace(stored.encode(), _NO_DIGEST, 1))
    digest.update(memoryview(data)[8 + length :])
    if digest.hexdigest() != stored:
        seen = f"{digest.hexdigest()[:12]}..., written was {stored[:12]}..."
        refuse(path, "sha256", f"the file is altered: {seen}", _INTACT)


def _raw(tensor: Tensor) -> memoryview:
    """The tensor's values as bytes in row-major order, without a copy where none is needed."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _replace(path: Path, pieces: list[bytes | memoryview]) -> None:
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".tmp-{path.name}-", dir=path.parent)
        try:
            try:
                if hasattr(os, "fchmod"):
                    os.fchmod(handle, 0o644)
                for piece in pieces:
                    _write_all(handle, piece)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(path.parent)
    except OSError as error:  # the system names the temporary file, or none
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write_all(handle: int, data: bytes | memoryview) -> None:
    """``os.write`` until every byte is written (one call takes at most 2 GB)."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(handle)
    finally:
        os.close(handle)
