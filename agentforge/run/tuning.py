"""Changing one tunable value of a running phase."""

from __future__ import annotations

import json

from pydantic import JsonValue, ValidationError

from agentforge.config.keys import Key, is_number, is_text, nearest, schema_keys
from agentforge.config.load import parse_value
from agentforge.config.schema import RunConfig
from agentforge.errors import ConfigError


def apply_change(config: RunConfig, key: str, value: JsonValue) -> RunConfig:
    """`config` with one tunable value changed and everything validated anew.

    Args:
        config: The configuration in force.
        key: Dotted key, such as ``storage.checkpoint_interval``.
        value: The new value; text is read as a TOML value, as ``--set`` does.

    Raises:
        ConfigError: The key is unknown or not tunable, or the value is out of its bounds.
    """
    known = schema_keys().get(key)
    if known is None:
        near = nearest(key)
        raise ConfigError(
            f"{key}: no such key" + (f"; nearest: {near}" if near else ""), remedy=_tunables()
        )
    if not known.tunable:
        raise ConfigError(f"{key} cannot change while a phase runs", remedy=_tunables())
    if isinstance(value, str) and not is_text(known.annotation):
        value = parse_value(value.strip())
    if is_number(known.annotation) and isinstance(value, (bool, str)):
        raise _out_of_bounds(known, value)
    tree = config.model_dump()
    here = tree
    *path, last = key.split(".")
    for part in path:
        here = here[part]
    here[last] = value
    try:
        return RunConfig.model_validate(tree)
    except ValidationError:
        raise _out_of_bounds(known, value) from None


def value_of(config: RunConfig, key: str) -> str:
    """The JSON text of one value of `config` by its dotted key."""
    here: JsonValue = config.model_dump(mode="json")
    for part in key.split("."):
        assert isinstance(here, dict)
        here = here[part]
    return json.dumps(here)


def _out_of_bounds(key: Key, value: object) -> ConfigError:
    return ConfigError(f"{key.name} = {value!r}: allowed: {key.allowed}", remedy=key.description)


def _tunables() -> str:
    names = [key.name for key in schema_keys().values() if key.tunable]
    return f"these can: {', '.join(names)}"
