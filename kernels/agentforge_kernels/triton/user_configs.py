"""Configurations tuned on the user's own GPU: one JSON file that goes before the checked-in table.

Its path is ``AGENTFORGE_KERNELS_CONFIGS``, else ``agentforge/kernels.json`` under the XDG cache
directory. A file that cannot be used is named in one warning and the checked-in table is used.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path

from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.triton.configs import CONFIG_TYPES, Config, Key
from agentforge_kernels.triton.devices import FAMILIES

PATH_VARIABLE = "AGENTFORGE_KERNELS_CONFIGS"
FILE_VERSION = 1


def user_config_path() -> Path:
    """Where the user's configurations are, whether or not the file exists."""
    if chosen := os.environ.get(PATH_VARIABLE):
        return Path(chosen)
    cache_home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache_home) / "agentforge" / "kernels.json"


def user_table() -> Mapping[Key, Config]:
    """The user's configurations; empty without a file. Each path is read once a process."""
    return _table_of(user_config_path())


def forget_user_table() -> None:
    """Read the file again at the next look-up."""
    _table_of.cache_clear()


@cache
def _table_of(path: Path) -> Mapping[Key, Config]:
    if not path.exists():
        return {}
    try:
        return read_user_configs(path)
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{path} is not used: {error}. The checked-in kernel configurations apply; write the "
            "file anew with `python -m agentforge_kernels.tune` or delete it.",
            stacklevel=2,
        )
        return {}


def read_user_configs(path: Path) -> dict[Key, Config]:
    """Read and check a file of configurations.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not JSON, or (:class:`KernelInputError`) not what ``write_user_configs``
            writes.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    version = document.get("version") if isinstance(document, dict) else None
    if version != FILE_VERSION:
        raise KernelInputError("version", version, str(FILE_VERSION))
    entries = document.get("entries")
    if not isinstance(entries, list):
        raise KernelInputError("entries", type(entries).__name__, "a list")
    return dict(_entry(entry, position) for position, entry in enumerate(entries))


def _entry(entry: object, position: int) -> tuple[Key, Config]:
    place = f"entries[{position}]"
    if not isinstance(entry, dict):
        raise KernelInputError(place, type(entry).__name__, "an object")
    operation, family, bucket = (entry.get(name) for name in ("operation", "family", "bucket"))
    if not isinstance(operation, str) or operation not in CONFIG_TYPES:
        raise KernelInputError(f"{place}.operation", operation, ", ".join(CONFIG_TYPES))
    if family not in FAMILIES:
        raise KernelInputError(f"{place}.family", family, ", ".join(FAMILIES))
    if (
        not isinstance(bucket, list)
        or len(bucket) != 3
        or not all(type(size) is int and size >= 1 for size in bucket)
    ):
        raise KernelInputError(f"{place}.bucket", bucket, "three sizes: rows, columns, tokens")
    values = entry.get("config")
    if not isinstance(values, dict):
        raise KernelInputError(f"{place}.config", values, "an object")
    try:
        config = CONFIG_TYPES[operation](**values)
    except TypeError as error:
        raise KernelInputError(
            f"{place}.config", str(error), f"the fields of {CONFIG_TYPES[operation].__name__}"
        ) from None
    return (operation, family, (bucket[0], bucket[1], bucket[2])), config


def write_user_configs(path: Path, table: Mapping[Key, Config], device: str) -> None:
    """Write configurations so that they are read back; replaces the file in one step.

    Args:
        path: Usually ``user_config_path()``.
        table: What was found, by operation, family and shape bucket.
        device: Name of the GPU they were measured on, for the reader.
    """
    entries = [
        {"operation": operation, "family": family, "bucket": bucket, "config": asdict(config)}
        for (operation, family, bucket), config in table.items()
    ]
    document = {"version": FILE_VERSION, "device": device, "entries": entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    forget_user_table()
