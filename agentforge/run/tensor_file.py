"""Tensors in one safetensors file: written atomically, hashed while written, read back checked.

The format (https://huggingface.co/docs/safetensors) is eight bytes of header length, a JSON header,
then the raw little-endian values. Files are read with the safetensors library. They are written
here because the library's writer puts metadata keys in a random order (equal models would get
different hashes), refuses tensors that share memory, and hides the reason of a failed write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes

from agentforge.errors import CheckpointError
from agentforge.run.atomic import disk_error, sync_folder, write_all

Tensors = Mapping[str, torch.Tensor]

DTYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
HASH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file on disk, by its content."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The content of a model file; tensors are on the CPU."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    sha256: str


def save_model(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> SavedFile:
    """Write a model file; equal tensors and metadata give equal bytes.

    Tensors may share memory, be views, or lie on any device; the file holds each one whole.

    Args:
        path: The file; replaced atomically.
        tensors: Name -> tensor of any shape, in one of `DTYPES`.
        metadata: Text by name; ``format: pt`` is added, which other programs ask for.

    Raises:
        DiskFullError: No room; an old file is untouched.
        PreflightError: The folder cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".tmp-{path.name}-", dir=path.parent)
    except OSError as error:
        raise disk_error(error, path) from None
    try:
        try:
            os.fchmod(handle, 0o644)
            digest, size = _write(handle, tensors, {"format": "pt", **metadata})
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
    return SavedFile(path, size, digest)


def load_model(path: Path, *, expected: SavedFile | None = None) -> LoadedModel:
    """Read a model file.

    Args:
        path: The file.
        expected: What it was when it was written; anything else is an error.

    Raises:
        CheckpointError: It is missing, truncated, altered, or no safetensors file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", remedy=_REMEDY) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", remedy=_REMEDY) from None
    digest = hashlib.sha256(data).hexdigest()
    if expected is not None:
        problem = content_problem(path, len(data), digest, expected)
        if problem:
            raise CheckpointError(problem, remedy=_REMEDY)
    try:
        tensors = load_bytes(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file ({len(data)} bytes): {error}", remedy=_REMEDY
        ) from None
    return LoadedModel(dict(sorted(tensors.items())), metadata, digest)


def require_shapes(
    expected: Mapping[str, Sequence[int]], got: Tensors, *, where: str | Path
) -> None:
    """Refuse tensors of another model.

    Args:
        expected: Name -> shape of every tensor the model has.
        got: What was read.
        where: The file or folder it was read from, for the message.

    Raises:
        CheckpointError: Names the first tensors that are missing, foreign, or of another shape.
    """
    problems = [f"{name} is missing" for name in expected if name not in got]
    problems += [f"{name} is not of this model" for name in got if name not in expected]
    problems += [
        f"{name} has shape {tuple(got[name].shape)}, this model's is {tuple(shape)}"
        for name, shape in expected.items()
        if name in got and tuple(got[name].shape) != tuple(shape)
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{where} belongs to another model: {'; '.join(problems[:3])}{more}",
            remedy="resume with the configuration it was made with, or start a new run",
        )


def content_problem(path: Path, size: int, digest: str | None, expected: SavedFile) -> str:
    """How a file differs from what was written; empty when it does not."""
    if size != expected.bytes:
        word = "truncated" if size < expected.bytes else "altered"
        return f"{path} is {word}: {size} bytes, written were {expected.bytes}"
    if digest is not None and digest != expected.sha256:
        return f"{path} is altered: SHA-256 {digest[:12]}..., written was {expected.sha256[:12]}..."
    return ""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASH_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def tensor_bytes(tensors: Tensors) -> int:
    """Bytes the values of these tensors take in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _write(handle: int, tensors: Tensors, metadata: Mapping[str, str]) -> tuple[str, int]:
    """Write the whole file; its SHA-256 and length in bytes."""
    # Wide types first, so that every tensor begins at a multiple of its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    size = 0
    for piece in (len(text).to_bytes(8, "little"), text):
        write_all(handle, piece)
        digest.update(piece)
        size += len(piece)
    for name in names:
        values = _raw(tensors[name])
        write_all(handle, values)
        digest.update(values)
        size += len(values)
    return digest.hexdigest(), size


def _raw(tensor: torch.Tensor) -> memoryview:
    """The tensor's values as bytes in row-major order, without a copy where none is needed."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


_REMEDY = "take an intact copy, or an earlier checkpoint; resume does the latter by itself"
