"""The schema seen as a flat list of dotted keys: what exists, what each one allows."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from agentforge.config.schema import RunConfig


@dataclass(frozen=True, slots=True)
class Key:
    """One configurable value.

    Attributes:
        name: Dotted name, such as ``cognate.base.steps``.
        annotation: Its type in the schema.
        description: One sentence for help and the configure screen.
        allowed: Type and bounds in words, such as ``integer from 16 to 8192``.
        tunable: True when it may change in a running phase.
        table: True for a free table of shares (a data mix), whose entries are keys of their own.
        required: True when the schema has no default for it.
    """

    name: str
    annotation: Any
    description: str
    allowed: str
    tunable: bool
    table: bool
    required: bool


@cache
def schema_keys() -> dict[str, Key]:
    """Every leaf of the schema by its dotted name, in the schema's order."""
    return {key.name: key for key in _walk(RunConfig, "")}


@cache
def section_names() -> frozenset[str]:
    """Every table of the schema by its dotted name (free tables of shares excluded)."""
    names: set[str] = set()
    for key in schema_keys():
        parts = key.split(".")
        names.update(".".join(parts[:i]) for i in range(1, len(parts)))
    return frozenset(names)


def find_key(path: tuple[str, ...]) -> Key | None:
    """The leaf that a path names or lies in; None when the path names no leaf.

    A path into a mix (``cognate.base.mix.math``) belongs to the mix.
    """
    keys = schema_keys()
    whole = keys.get(".".join(path))
    if whole is not None:
        return whole
    parent = keys.get(".".join(path[:-1]))
    return parent if parent is not None and parent.table else None


def nearest(name: str) -> str | None:
    """The known key or table most like `name`, or None when nothing is near."""
    known = [*schema_keys(), *sorted(section_names())]
    whole = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    # A right last part in the wrong table (base.steps, d_modell) is nearer than a similar spelling.
    by_last: dict[str, str] = {}
    for key in known:
        by_last.setdefault(key.rsplit(".", 1)[-1], key)
    last = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_last, n=1, cutoff=0.75)
    if whole and (not last or _ratio(name, whole[0]) >= 0.8):
        return whole[0]
    if last:
        same = [k for k in known if k.rsplit(".", 1)[-1] == last[0]]
        return max(same, key=lambda k: _ratio(name, k))
    return None


def is_text(annotation: Any) -> bool:
    """True for a type whose values are plain text (``str`` or ``str | None``)."""
    return set(_members(annotation)) <= {str, type(None)}


def is_number(annotation: Any) -> bool:
    """True for a type whose values are integers or floats."""
    return set(_members(annotation)) <= {int, float}


def is_list(annotation: Any) -> bool:
    """True for a type whose values are lists."""
    return get_origin(_bare(annotation)) is tuple


def _walk(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, info in model.model_fields.items():
        annotation = info.annotation
        dotted = f"{prefix}{name}"
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _walk(annotation, f"{dotted}.")
            continue
        if get_origin(annotation) is dict:
            key_type, value_type = get_args(annotation)
            if isinstance(value_type, type) and issubclass(value_type, BaseModel):
                for entry in get_args(key_type):
                    yield from _walk(value_type, f"{dotted}.{entry}.")
                continue
        extra = info.json_schema_extra
        yield Key(
            name=dotted,
            annotation=annotation,
            description=info.description or "",
            allowed=_allowed(annotation, info.metadata),
            tunable=isinstance(extra, dict) and bool(extra.get("tunable")),
            table=get_origin(annotation) is dict,
            required=info.is_required(),
        )


def _allowed(annotation: Any, metadata: list[Any]) -> str:
    """Type and bounds of a field in words."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        found = [m for mark in marks for m in _marks(mark)]
        return _allowed(inner, [*metadata, *found])
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        members = [a for a in get_args(annotation) if a is not type(None)]
        return " or ".join(_allowed(a, metadata) for a in members)
    if origin is Literal:
        return "one of " + ", ".join(str(v) for v in get_args(annotation))
    if origin is tuple:
        args = get_args(annotation)
        if args[-1] is Ellipsis:
            return f"list, each {_allowed(args[0], [])}"
        return f"list of {len(args)}, each {_allowed(args[0], [])}"
    if origin is dict:
        return f"table, each share {_allowed(get_args(annotation)[1], [])}"
    if annotation is bool:
        return "true or false"
    if annotation is str:
        return "text"
    word = "integer" if annotation is int else "number"
    return f"{word}{_bounds(metadata)}"


def _bounds(metadata: list[Any]) -> str:
    low = high = ""
    for mark in metadata:
        if isinstance(mark, annotated_types.Ge):
            low = f"{mark.ge}"
        elif isinstance(mark, annotated_types.Gt):
            low = f"above {mark.gt}"
        elif isinstance(mark, annotated_types.Le):
            high = f"{mark.le}"
        elif isinstance(mark, annotated_types.Lt):
            high = f"below {mark.lt}"
    if low and high:
        plain = not low.startswith("above") and not high.startswith("below")
        if plain:
            return f" from {low} to {high}"
        low = low if low.startswith("above") else f"at least {low}"
        return f" {low} and {high if high.startswith('below') else f'at most {high}'}"
    if low:
        return f" {low}" if low.startswith("above") else f" of at least {low}"
    return f" up to {high}" if high else ""


def _marks(mark: Any) -> list[Any]:
    return list(mark.metadata) if isinstance(mark, FieldInfo) else [mark]


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    bare = _bare(annotation)
    return get_args(bare) if get_origin(bare) in (Union, types.UnionType) else (bare,)


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
