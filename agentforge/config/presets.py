"""The shipped presets and how a TOML file is read."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

from agentforge.errors import ConfigError


def preset_dir() -> Path:
    """The folder of the presets: the checkout's when there is one, else the installed copy."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "configs").is_dir():
        return checkout / "configs"
    return package / "configs"


def preset_names() -> tuple[str, ...]:
    """Names of the shipped presets, in alphabetical order."""
    return tuple(sorted(p.stem for p in preset_dir().glob("*.toml")))


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        ConfigError: When there is none of that name; names the nearest.
    """
    if name in preset_names():
        return preset_dir() / f"{name}.toml"
    near = difflib.get_close_matches(name, preset_names(), n=1, cutoff=0.5)
    hint = f"; nearest: {near[0]}" if near else ""
    remedy = f"presets: {_preset_list()}"
    if name.endswith(".toml") or "/" in name:
        remedy += f"; for a file of your own: --config {name}"
    raise ConfigError(f"--preset {name}: no such preset{hint}", remedy=remedy)


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        ConfigError: Missing or unreadable file, or a syntax error with line and column.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.stem, preset_names(), n=3, cutoff=0.4)
        hint = f"; nearest presets: {', '.join(near)}" if near else ""
        raise ConfigError(
            f"--config {path}: no such file{hint}", remedy=f"--preset takes: {_preset_list()}"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"--config {path}: cannot be read: {error.strerror}", remedy="give a readable TOML file"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8", remedy="save the file as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path}: {_toml_place(str(error))}",
            remedy='correct the TOML there (text needs quotes: key = "value")',
        ) from None


def _toml_place(message: str) -> str:
    found = re.search(r"\s*\(at (line \d+, column \d+)\)$", message)
    if found is None:
        return message.replace(" (at end of document)", ", at the end of the file")
    return f"{found.group(1)}: {message[: found.start()]}"


def _preset_list() -> str:
    return ", ".join(preset_names())
