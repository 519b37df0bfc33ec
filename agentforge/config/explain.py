"""Validation errors in words: key, origin, value seen, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from agentforge.config.keys import Key, find_key
from agentforge.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration: the key and the whole sentence about it."""

    key: str
    text: str


def config_error(problems: Sequence[Problem]) -> ConfigError:
    """One error that tells of all problems."""
    remedy = "`agentforge-tui config show` lists every key with its value and origin"
    if len(problems) == 1:
        return ConfigError(problems[0].text, remedy=remedy)
    lines = "\n".join(f"  {i}. {p.text}" for i, p in enumerate(problems, 1))
    return ConfigError(f"{len(problems)} mistakes in the configuration:\n{lines}", remedy=remedy)


def explain(error: ValidationError, origins: Mapping[str, str]) -> list[Problem]:
    """What pydantic found, one sentence a mistake.

    Args:
        error: The failed validation.
        origins: Dotted key -> where its value came from.
    """
    problems: list[Problem] = []
    for item in error.errors(include_url=False):
        path = tuple(str(part) for part in item["loc"])
        key, known = _owner(path)
        dotted = ".".join(known) or "configuration"
        if item["type"] == "missing":
            text = f"{'.'.join(path)}: is required and has no default"
            if path == ("cognate",):
                text += '; start from a preset: preset = "demo" in the file, or --preset'
        elif item["type"] == "value_error" or key is None:
            text = f"{dotted}: {_cause(item['msg'])}{_origins_named(dotted, item['msg'], origins)}"
        else:
            where = _origin(dotted, origins)
            entry = "".join(f"[{part}]" for part in path[len(known) :])
            allowed = key.allowed
            if key.table and dotted != key.name:
                allowed = allowed.removeprefix("table, each share ")
            text = f"{dotted}{entry} = {_seen(item['input'])}{where}: allowed: {allowed}"
        problems.append(Problem(dotted, text))
    return problems


def _owner(path: tuple[str, ...]) -> tuple[Key | None, tuple[str, ...]]:
    """The leaf an error belongs to (an entry of a list belongs to the list), and its path."""
    for length in range(len(path), 0, -1):
        key = find_key(path[:length])
        if key is not None:
            return key, path[:length]
    return None, path


def _origin(dotted: str, origins: Mapping[str, str]) -> str:
    origin = origins.get(dotted) or origins.get(dotted.rsplit(".", 1)[0])
    return f" (from {origin})" if origin else ""


def _origins_named(dotted: str, message: str, origins: Mapping[str, str]) -> str:
    """Where the values came from that the message of a whole section names."""
    named = []
    for word in dict.fromkeys(re.findall(r"[a-z_.]+", message)):
        origin = origins.get(f"{dotted}.{word}")
        if origin:
            named.append(f"{word} from {origin}")
    if dotted in origins:
        named.append(f"from {origins[dotted]}")
    return f" ({', '.join(named)})" if named else ""


def _cause(message: str) -> str:
    return message.removeprefix("Value error, ")


def _seen(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
