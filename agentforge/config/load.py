"""Where a configuration comes from: defaults < preset < file < environment < --set < flags.

Every value remembers its origin, and all mistakes of all origins are told at once. A data mix is
replaced as a whole by a file or by ``--set cognate.base.mix={...}``; one share of it is changed
with ``--set cognate.base.mix.math=0.5``. Everything else is merged table by table.
"""

from __future__ import annotations

import datetime
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from agentforge.config.explain import Problem, config_error, explain
from agentforge.config.keys import (
    find_key,
    is_list,
    is_number,
    is_text,
    nearest,
    section_names,
)
from agentforge.config.presets import preset_names, preset_path, read_toml
from agentforge.config.schema import RunConfig
from agentforge.errors import ConfigError

ENV_PREFIX = "AGENTFORGE_"
RESERVED_ENV = frozenset({"AGENTFORGE_TEST_DATA", "AGENTFORGE_KILL_TRIALS", "AGENTFORGE_NO_SKIPS"})
"""Variables of that prefix that are not configuration keys: they belong to the tests."""

DEFAULT_PRESET = "demo"
RECORDS_PRESET = "laptop"
"""What runs when only ``--data-dir`` is given."""

_SAVED = "saved"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A validated configuration and where each of its values came from.

    Attributes:
        config: The configuration.
        provenance: Dotted key -> origin: ``default``, ``preset demo``, ``file PATH``,
            ``env AGENTFORGE_X``, ``--set`` or the flag. Every leaf of the configuration is in it.
    """

    config: RunConfig
    provenance: dict[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``config show``."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """One leaf that one origin sets."""

    path: tuple[str, ...]
    value: Any
    origin: str

    @property
    def name(self) -> str:
        """The dotted key."""
        return ".".join(self.path)


def load_config(
    *,
    preset: str | None = None,
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, tuple[str, object]] | None = None,
) -> Loaded:
    """Build the configuration of a run.

    Without `preset` the name is taken from ``AGENTFORGE_PRESET``, then from the file's own
    ``preset`` key; without a file it is ``laptop`` when a data folder is given by flag, else
    ``demo``. A file without a preset stands alone.

    Args:
        preset: Name of a shipped preset.
        file: A TOML file laid over the preset.
        env: The environment; default: that of the process.
        sets: ``key=value`` texts of ``--set``; values are TOML, bare text is allowed.
        flags: Dotted key -> (flag, value) of command-line flags that stand for one key.

    Raises:
        ConfigError: With every mistake found: origin, key, value seen, what is allowed, and the
            nearest known name of an unknown key.
    """
    env = os.environ if env is None else env
    flags = flags or {}
    problems: list[Problem] = []
    file_table = read_toml(file) if file is not None else {}
    name = preset or env.get(f"{ENV_PREFIX}PRESET") or file_table.pop("preset", None)
    file_table.pop("preset", None)
    if name is None and file is None:
        name = RECORDS_PRESET if "data.data_dir" in flags else DEFAULT_PRESET
    if name is not None and not isinstance(name, str):
        raise ConfigError(
            f"{file}: preset = {name!r}: allowed: text",
            remedy=f"presets: {', '.join(preset_names())}",
        )

    assignments: list[Assignment] = []
    if name is not None:
        base = read_toml(preset_path(name))
        base.pop("preset", None)
        assignments += _flatten(base, (), f"preset {name}", problems)
        assignments.append(Assignment(("preset",), name, f"preset {name}"))
    if file is not None:
        assignments += _flatten(file_table, (), f"file {file}", problems)
    assignments += _from_env(env, problems)
    assignments += _from_sets(sets, problems)
    for key, (flag, value) in flags.items():
        assignments.append(Assignment(tuple(key.split(".")), value, flag))
    return _build(assignments, problems)


def with_overrides(
    config: RunConfig,
    provenance: Mapping[str, str],
    sets: Sequence[str],
    flags: Iterable[tuple[str, str, object]] = (),
) -> Loaded:
    """A configuration with ``--set`` texts and flags applied, such as a resumed run's.

    Args:
        config: The configuration so far.
        provenance: Its origins.
        sets: ``key=value`` texts.
        flags: (dotted key, flag, value) of flags that stand for one key.

    Raises:
        ConfigError: As `load_config`.
    """
    problems: list[Problem] = []
    assignments = [
        *_flatten(config.model_dump(mode="json"), (), _SAVED, problems),
        *_from_sets(sets, problems),
        *(Assignment(tuple(key.split(".")), value, flag) for key, flag, value in flags),
    ]
    loaded = _build(assignments, problems)
    kept = {
        key: provenance.get(key, "default") if origin == _SAVED else origin
        for key, origin in loaded.provenance.items()
    }
    return Loaded(loaded.config, kept)


def show_rows(loaded: Loaded) -> list[Row]:
    """Key, value and origin of every leaf, in the schema's order."""
    return [
        Row(key, _text(value), loaded.provenance.get(key, "default"))
        for key, value in leaves(loaded.config)
    ]


def leaves(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """Every leaf of a configuration as (dotted key, value); a mix gives one leaf a share."""
    yield from _leaves(config, "")


def _build(assignments: Sequence[Assignment], problems: list[Problem]) -> Loaded:
    """Lay the assignments over one another and validate the whole."""
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for item in assignments:
        if _put(tree, item):
            for key in [k for k in origins if k.startswith(f"{item.name}.")]:
                del origins[key]
            origins[item.name] = item.origin
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise config_error([*problems, *explain(error, origins)]) from None
    if config.data.source == "world" and config.data.data_dir is not None:
        origin = origins.get("data.data_dir", "default")
        if origin in ("--data-dir", "--set"):
            problems.append(
                Problem(
                    "data.data_dir",
                    f"data.data_dir = {config.data.data_dir!r} (from {origin}): the preset "
                    f"{config.preset} trains on the built-in world (data.source = 'world') and "
                    "would read nothing of that folder; take --preset laptop, or "
                    "--set data.source=records with mixes of the records' categories",
                )
            )
    if problems:
        raise config_error(problems)
    provenance = {}
    for key, _ in leaves(config):
        parent = key.rsplit(".", 1)[0]  # a mix set as a whole gives its origin to its shares
        provenance[key] = origins.get(key) or origins.get(parent) or "default"
    return Loaded(config, provenance)


def _put(tree: dict[str, Any], item: Assignment) -> bool:
    """Set one leaf; False when a part of its path is a value and not a table."""
    here = tree
    for part in item.path[:-1]:
        below = here.setdefault(part, {})
        if not isinstance(below, dict):
            return False
        here = below
    here[item.path[-1]] = dict(item.value) if isinstance(item.value, dict) else item.value
    return True


def _flatten(
    table: Mapping[str, Any], path: tuple[str, ...], origin: str, problems: list[Problem]
) -> Iterator[Assignment]:
    """The leaves a table sets; unknown keys and wrong kinds of value become problems."""
    for name, value in table.items():
        here = (*path, name)
        dotted = ".".join(here)
        key = find_key(here)
        if key is not None:
            if is_number(key.annotation) and isinstance(value, (bool, str)):
                problems.append(Problem(dotted, _wrong(dotted, value, origin, key.allowed)))
            else:
                yield Assignment(here, value, origin)
        elif dotted not in section_names():
            problems.append(Problem(dotted, _unknown(dotted, origin)))
        elif isinstance(value, dict):
            yield from _flatten(value, here, origin, problems)
        else:
            problems.append(Problem(dotted, _wrong(dotted, value, origin, "a table of keys")))


def _from_env(env: Mapping[str, str], problems: list[Problem]) -> Iterator[Assignment]:
    for variable in sorted(env):
        if not variable.startswith(ENV_PREFIX) or variable in RESERVED_ENV:
            continue
        if variable == f"{ENV_PREFIX}PRESET":
            continue
        dotted = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        yield from _from_text(dotted, env[variable], f"env {variable}", problems)


def _from_sets(sets: Sequence[str], problems: list[Problem]) -> Iterator[Assignment]:
    for text in sets:
        dotted, equals, value = text.partition("=")
        dotted = dotted.strip()
        if not equals or not dotted:
            problems.append(
                Problem(dotted, f"--set {text}: allowed: KEY=VALUE, such as cognate.base.steps=50")
            )
        elif dotted == "preset":
            problems.append(Problem(dotted, f"--set {text}: a preset is chosen with --preset"))
        else:
            yield from _from_text(dotted, value.strip(), "--set", problems)


def _from_text(
    dotted: str, text: str, origin: str, problems: list[Problem]
) -> Iterator[Assignment]:
    """The assignments of one key and the text of its value."""
    path = tuple(dotted.split("."))
    key = find_key(path)
    value = parse_value(text)
    if key is None:
        if dotted in section_names() and isinstance(value, dict):
            yield from _flatten(value, path, origin, problems)
        elif dotted in section_names():
            problems.append(Problem(dotted, _wrong(dotted, text, origin, "a table of keys")))
        else:
            problems.append(Problem(dotted, _unknown(dotted, origin)))
        return
    if is_number(key.annotation) and isinstance(value, bool):
        problems.append(Problem(dotted, _wrong(dotted, value, origin, key.allowed)))
        return
    if is_text(key.annotation) and not isinstance(value, str):
        value = text
    elif is_list(key.annotation) and not isinstance(value, list):
        value = [parse_value(part.strip()) for part in text.split(",") if part.strip()]
    yield Assignment(path, value, origin)


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself when it is none (``1e-3`` is a number, ``cuda`` text)."""
    try:
        value = tomllib.loads(f"v = {text}")
    except tomllib.TOMLDecodeError:
        return text
    if list(value) != ["v"]:
        return text
    parsed = value["v"]
    # No key holds a date; 2026-01-02 is a name here.
    dates = (datetime.date, datetime.time)
    return text if isinstance(parsed, dates) else parsed


def _leaves(value: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in type(value).model_fields:
        item = getattr(value, name)
        if isinstance(item, BaseModel):
            yield from _leaves(item, f"{prefix}{name}.")
        elif isinstance(item, dict):
            for entry, below in item.items():
                if isinstance(below, BaseModel):
                    yield from _leaves(below, f"{prefix}{name}.{entry}.")
                else:
                    yield f"{prefix}{name}.{entry}", below
        else:
            yield f"{prefix}{name}", item


def _unknown(dotted: str, origin: str) -> str:
    near = nearest(dotted)
    return f"{dotted} (from {origin}): no such key{f'; nearest: {near}' if near else ''}"


def _wrong(dotted: str, value: object, origin: str, allowed: str) -> str:
    return f"{dotted} = {value!r} (from {origin}): allowed: {allowed}"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_text(v) for v in value) + "]"
    return str(value)
