"""Layouts of stored weights, made when first needed and kept as long as the weight itself.

A backend reads weights in an order of its own (64-row panels on the CPU). The operations take the
stored form, which is the same on every machine, and find its layout here: by the memory the stored
tensor lies in, held weakly, and by its version, so that a weight changed in place is laid out anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from agentforge_kernels.backend import Backend, Layout

Key = tuple[str, int, int, tuple[int, ...], int, str]


class LaidOut(NamedTuple):
    """A weight in the order one backend reads it.

    Attributes:
        tensor: The weight; its shape is the backend's affair.
        layout: Which order that is.
    """

    tensor: Tensor
    layout: Layout


class _Entry(NamedTuple):
    version: int
    laid_out: LaidOut


_cache: dict[Key, _Entry] = {}


def dense_layout(codes: Tensor, columns: int, backend: Backend) -> LaidOut:
    """Layout of stored codes uint8 ``[rows, padded(columns) / 4]`` for a backend."""
    return _find("dense", codes, columns, backend, backend.lay_out_dense)


def column_layout(codes: Tensor, rows: int, backend: Backend) -> LaidOut:
    """Layout of a stored column form uint8 ``[columns, padded(rows) / 4]`` for a backend."""
    return _find("columns", codes, rows, backend, backend.lay_out_columns)


def int8_layout(weight: Tensor, backend: Backend) -> LaidOut:
    """Layout of an int8 weight ``[rows, columns]`` for a backend."""
    return _find("int8", weight, 0, backend, lambda stored, _: backend.lay_out_int8(stored))


def tile_layout(
    tiles: Tensor, backend: Backend, lay_out: Callable[[Tensor], tuple[Tensor, Layout]]
) -> LaidOut:
    """Layout of stored tiles uint8 ``[count, 256]`` for a backend with an order of its own."""
    return _find("tiles", tiles, 0, backend, lambda stored, _: lay_out(stored))


def keep(codes: Tensor, columns: int, backend: Backend, laid_out: LaidOut) -> None:
    """Make ``laid_out`` the layout of stored codes (after it was copied into an arena)."""
    _keep(_key("dense", codes, columns, backend), codes, laid_out)


def forget(stored: Tensor) -> None:
    """Let go of every layout of a stored tensor, after a change that torch does not count."""
    storage = stored.untyped_storage()._cdata
    for key in [key for key in _cache if key[1] == storage]:
        _cache.pop(key, None)


def _keep(key: Key, stored: Tensor, laid_out: LaidOut) -> None:
    _cache[key] = _Entry(_version(stored), laid_out)
    # torch keeps one Python object a storage, which ends when the storage does.
    weakref.finalize(stored.untyped_storage(), _cache.pop, key, None).atexit = False


def _find(
    form: str,
    stored: Tensor,
    size: int,
    backend: Backend,
    lay_out: Callable[[Tensor, int], tuple[Tensor, Layout]],
) -> LaidOut:
    key = _key(form, stored, size, backend)
    entry = _cache.get(key)
    if entry is not None and entry.version == _version(stored):
        return entry.laid_out
    # For real, even while a mode such as FakeTensorMode watches.
    with _disable_current_modes():
        laid_out = LaidOut(*lay_out(stored, size))
    # A layout that is the stored tensor itself costs nothing to make, and kept here would never be
    # freed: it would hold its own owner.
    if laid_out.tensor.untyped_storage()._cdata != stored.untyped_storage()._cdata:
        _keep(key, stored, laid_out)
    return laid_out


def _key(form: str, stored: Tensor, size: int, backend: Backend) -> Key:
    storage = stored.untyped_storage()
    return form, storage._cdata, stored.data_ptr(), tuple(stored.shape), size, backend.name


def _version(stored: Tensor) -> int:
    """Counts changes in place; tensors made in inference mode do not count (always -1)."""
    return -1 if stored.is_inference() else stored._version
