"""Packed matrices on disk: many named tensors of any form of this package, in one file.

A matrix ``name`` is stored as the fields of its form, ``name.codes``, ``name.scale`` and so on; a
plain tensor as ``name``. What each name is stands in the file's metadata as JSON under ``tensors``:

================  =====================================================================
form              stored tensors; whole numbers in the description
================  =====================================================================
``packed``        ``codes`` (2 bits a weight), ``scale``; ``columns``
``packed_base3``  ``trits`` (1.6 bits a weight), ``scale``; ``columns``
``block_sparse``  ``tiles``, ``index``, ``start``, ``scale``; ``rows``, ``columns``
``columns``       ``codes``, ``scale``; ``rows``
``plain``         the tensor itself
================  =====================================================================

Reading builds the same frozen forms, whose construction checks dtype, shape and content, so nothing
unchecked leaves :func:`load_tensors`. Nothing is pickled: a file cannot run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import FORMAT_VERSION, PackedTernary, pack, unpack
from agentforge_kernels.int8 import Int8Weight
from agentforge_kernels.safetensors_file import (
    DTYPES,
    in_short,
    read_safetensors,
    refuse,
    write_safetensors,
)
from agentforge_kernels.sparse import BlockSparseTernary, ColumnTernary
from agentforge_kernels.trits import decode_trits, encode_trits

FORMAT_NAME = "agentforge-kernels"

_FORMS = {
    PackedTernary: "packed",
    BlockSparseTernary: "block_sparse",
    ColumnTernary: "columns",
    Int8Weight: "int8",
}
_LARGEST_SIZE = (1 << 31) - 1

Stored = PackedTernary | BlockSparseTernary | ColumnTernary | Int8Weight | Tensor
"""What a name in a file may stand for."""

_FIELDS: dict[str, tuple[str, ...]] = {
    "packed": ("codes", "scale"),
    "packed_base3": ("trits", "scale"),
    "block_sparse": ("tiles", "index", "start", "scale"),
    "columns": ("codes", "scale"),
    "int8": ("weight", "scale"),
    "plain": ("",),
}
"""Tensors a form is stored as: fields of the form, or the tensor itself."""
_SIZES: dict[str, tuple[str, ...]] = {
    "packed": ("columns",),
    "packed_base3": ("columns",),
    "block_sparse": ("rows", "columns"),
    "columns": ("rows",),
    "int8": (),
    "plain": (),
}
"""Whole numbers a form is described by."""


def save_tensors(
    path: str | Path, tensors: Mapping[str, Stored], *, dense: Literal["2bit", "1.6bit"] = "2bit"
) -> str:
    """Write named tensors to one safetensors file, atomically; equal content gives equal bytes.

    Args:
        path: The file; replaced whole or not at all.
        tensors: Forms of this package, or plain tensors (float64, float32, float16, bfloat16, int8,
            int32, int64, uint8) of any shape, strides and device. They are not changed.
        dense: How :class:`PackedTernary` is stored: as it is, or five weights to a byte, which is
            20 % smaller and is decoded when it is loaded.

    Returns:
        SHA-256 of the content, which the file carries and reading checks.

    Raises:
        KernelInputError: A name that cannot be stored or two that collide; a tensor of another
            kind, dtype, or without values (meta device).
        OSError: The system refuses to write; an old file is untouched.
    """
    if dense not in ("2bit", "1.6bit"):
        raise KernelInputError("dense", repr(dense), "'2bit' or '1.6bit'")
    stored: dict[str, Tensor] = {}
    described: dict[str, dict[str, object]] = {}
    for name, tensor in tensors.items():
        _check_name(name)
        form, fields = _take_apart(name, tensor, dense)
        described[name] = {"form": form, **{size: getattr(tensor, size) for size in _SIZES[form]}}
        for part, field in fields.items():
            key = _key(name, part)
            if key in stored:
                raise KernelInputError(f"tensors: {name}", f"{key} stored twice", "other names")
            if field.is_meta or field.layout != torch.strided or field.dtype not in DTYPES:
                raise KernelInputError(
                    f"tensors: {name}",
                    f"{field.dtype}, {field.layout}, device {field.device}",
                    f"strided tensors with values, {', '.join(str(dtype) for dtype in DTYPES)}",
                )
            stored[key] = field
    metadata = {
        "format": FORMAT_NAME,
        "version": str(FORMAT_VERSION),
        "tensors": json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
    }
    return write_safetensors(Path(path), stored, metadata)


def load_tensors(path: str | Path) -> dict[str, Stored]:
    """Read a file of :func:`save_tensors`; every form is checked before it is handed out.

    Memory is taken for what the file holds, never for a size it claims (1.6-bit weights grow to two
    bits). Dense weights are :class:`PackedTernary` however they were stored.

    Args:
        path: The file.

    Returns:
        Name -> form or plain tensor, on the CPU, sorted by name.

    Raises:
        KernelInputError: Truncated, altered, newer or foreign; a missing or surplus tensor, a wrong
            dtype, shape or content. Names the file and the key.
        OSError: The file is missing or cannot be read.
    """
    path = Path(path)
    stored, metadata = read_safetensors(path, FORMAT_NAME, FORMAT_VERSION)
    loaded: dict[str, Stored] = {}
    for name, description in _descriptions(path, metadata).items():
        form, sizes = _form_and_sizes(path, name, description)
        keys = [_key(name, part) for part in _FIELDS[form]]
        for key in keys:
            if key not in stored:
                refuse(path, key, "missing", f"the tensors of {form}: {', '.join(keys)}")
        fields = {part: stored.pop(_key(name, part)) for part in _FIELDS[form]}
        try:
            loaded[name] = _put_together(form, fields, sizes)
        except KernelInputError as error:
            refuse(path, _key(name, error.argument), error.seen, error.allowed, error.remedy)
    if stored:
        refuse(path, next(iter(stored)), "not described in the metadata", "described tensors")
    return dict(sorted(loaded.items()))


def _key(name: str, part: str) -> str:
    """What a field of a form, or the tensor itself, is called in the file."""
    return f"{name}.{part}" if part else name


def _take_apart(name: str, tensor: object, dense: str) -> tuple[str, dict[str, Tensor]]:
    """The form a tensor is stored in, and its stored tensors by field."""
    if isinstance(tensor, Tensor):
        return "plain", {"": tensor}
    if isinstance(tensor, PackedTernary) and dense == "1.6bit":
        return "packed_base3", {"trits": encode_trits(unpack(tensor)), "scale": tensor.scale}
    for kind, form in _FORMS.items():
        if isinstance(tensor, kind):
            return form, {part: getattr(tensor, part) for part in _FIELDS[form]}
    raise KernelInputError(
        f"tensors: {name}",
        type(tensor).__name__,
        "PackedTernary, BlockSparseTernary, ColumnTernary, Int8Weight or a tensor",
    )


def _put_together(form: str, fields: dict[str, Tensor], sizes: dict[str, int]) -> Stored:
    if form == "packed":
        return PackedTernary(fields["codes"], fields["scale"], sizes["columns"])
    if form == "packed_base3":
        return _decoded(fields["trits"], fields["scale"], sizes["columns"])
    if form == "block_sparse":
        tiles, index, start = fields["tiles"], fields["index"], fields["start"]
        return BlockSparseTernary(
            tiles, index, start, fields["scale"], sizes["rows"], sizes["columns"]
        )
    if form == "columns":
        return ColumnTernary(fields["codes"], fields["scale"], sizes["rows"])
    if form == "int8":
        return Int8Weight(fields["weight"], fields["scale"])
    return fields[""]


def _decoded(data: Tensor, scale: Tensor, columns: int) -> PackedTernary:
    try:
        trits = decode_trits(data, columns)
    except KernelInputError as error:
        raise KernelInputError("trits", error.seen, error.allowed) from None
    return pack(trits, scale)


def _descriptions(path: Path, metadata: Mapping[str, str]) -> dict[str, object]:
    try:
        described: Any = json.loads(metadata.get("tensors", ""))
    except (ValueError, RecursionError) as error:
        refuse(path, "tensors", f"no JSON ({error})", "a JSON object of descriptions")
    if not isinstance(described, dict):
        refuse(path, "tensors", f"a JSON {type(described).__name__}", "a JSON object")
    return described


def _form_and_sizes(path: Path, name: str, description: object) -> tuple[str, dict[str, int]]:
    form = description.get("form") if isinstance(description, dict) else None
    if not isinstance(description, dict) or not isinstance(form, str) or form not in _SIZES:
        refuse(
            path,
            name,
            f"described as {in_short(description)}, form {in_short(form)}",
            f"a form of {list(_SIZES)}",
        )
    sizes = {}
    for size in _SIZES[form]:
        value = description.get(size)
        if type(value) is not int or not 1 <= value <= _LARGEST_SIZE:
            refuse(path, f"{name}.{size}", in_short(value), f"a whole number, 1 to {_LARGEST_SIZE}")
        sizes[size] = value
    return form, sizes


def _check_name(name: object) -> None:
    try:
        good = isinstance(name, str) and name != "" and name != "__metadata__"
        str(name).encode()
    except UnicodeEncodeError:
        good = False
    if not good:
        raise KernelInputError("tensors", f"the name {name!r}", "text, not empty, not __metadata__")
