"""Raw records: reading JSON lines, and columns whose absence or type is named exactly.

A file that is wrong is an error with file and line: a record is never dropped without being
counted (`Skipped`) or reported (`DataError`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from agentforge.errors import DataError


@dataclass(frozen=True, slots=True)
class Skipped:
    """A well-formed record that holds nothing to learn from, such as a blank line of WikiText."""

    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """One raw record with the place it came from.

    The accessors return a column in one Python type or raise `DataError` naming the dataset, the
    place, the column, what was seen and what is expected.

    Attributes:
        values: Column name to value, as the hub delivers them.
        dataset: Registry name.
        where: ``file:line``, or hub id, split and row.
    """

    values: Mapping[str, Any]
    dataset: str
    where: str

    def has(self, column: str) -> bool:
        """Whether the column exists."""
        return column in self.values

    def text(self, column: str) -> str:
        """A text column, line ends as ``\\n``, lone surrogates replaced, ends stripped."""
        return clean(self._typed(column, str, "a text"))

    def texts(self, column: str) -> tuple[str, ...]:
        """A column that is a list of texts."""
        return self._texts(column, self._value(column))

    def flag(self, column: str) -> bool:
        """A boolean column."""
        return bool(self._typed(column, bool, "true or false"))

    def number(self, column: str) -> Decimal:
        """A number, written as a number or as text such as "51.0"."""
        value = self._value(column)
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                number = Decimal(str(value).strip().replace(",", ""))
            except InvalidOperation:
                number = Decimal("NaN")
            if number.is_finite() and abs(number.adjusted()) < 100:  # 1e999999 is no answer
                return number
        raise self.wrong(column, "a finite number")

    def index(self, column: str, size: int) -> int | None:
        """The number of the right choice as 0..size-1; None where the hub hides it ("" or -1)."""
        value = self._value(column)
        if value == "" or value == -1 or value == "-1":
            return None
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size:
            return value
        raise self.wrong(column, f"a number from 0 to {size - 1}")

    def nested_texts(self, column: str, key: str) -> tuple[str, ...]:
        """The list of texts ``key`` of a column that is a table, such as ``choices.label``."""
        return self._texts(f"{column}.{key}", self._nested(column, key))

    def nested_lists(self, column: str, key: str) -> tuple[tuple[str, ...], ...]:
        """The list of lists of texts ``key`` of a column that is a table."""
        value = self._nested(column, key)
        if not isinstance(value, list | tuple):
            raise self.wrong(f"{column}.{key}", "a list of lists of texts", value)
        return tuple(self._texts(f"{column}.{key}", item) for item in value)

    def wrong(self, column: str, expected: str, seen: object = ...) -> DataError:
        """The error for a column whose value is not what the dataset's form says."""
        if seen is ...:
            seen = self.values.get(column)
        shown = repr(seen)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return DataError(
            f"{self.where}: column {column!r} of dataset {self.dataset} is {shown} "
            f"({type(seen).__name__}), expected {expected}",
            remedy="correct the record or remove it; nothing is skipped silently",
        )

    def _value(self, column: str) -> Any:
        if column not in self.values:
            raise DataError(
                f"{self.where}: dataset {self.dataset} has no column {column!r}; "
                f"columns seen: {', '.join(sorted(self.values)) or 'none'}",
                remedy="use the column names of the dataset on the hub "
                "(agentforge-tui data list shows them)",
            )
        return self.values[column]

    def _typed(self, column: str, kind: type, expected: str) -> Any:
        value = self._value(column)
        if not isinstance(value, kind):
            raise self.wrong(column, expected)
        return value

    def _nested(self, column: str, key: str) -> Any:
        value = self._value(column)
        if not isinstance(value, Mapping) or key not in value:
            raise self.wrong(column, f"a table with the key {key!r}")
        return value[key]

    def _texts(self, column: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.wrong(column, "a list of texts", value)
        if not all(isinstance(item, str) for item in value):
            raise self.wrong(column, "a list of texts", value)
        return tuple(clean(item) for item in value)


def clean(text: str) -> str:
    """``\\r\\n`` to ``\\n``, lone surrogates (legal in JSON, not in UTF-8) to U+FFFD, stripped."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").strip()


def read_jsonl(path: Path, dataset: str) -> list[Record]:
    """All records of a JSON-lines file, in file order.

    Lines end at ``\\n`` only (texts may hold U+2028). Empty lines are allowed.

    Raises:
        DataError: The file cannot be read, is not UTF-8, a line is not a JSON object (with its
            number), or there is no record at all.
    """
    records: list[Record] = []
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                if raw.strip():
                    records.append(
                        Record(_parse(raw, path, number, dataset), dataset, f"{path}:{number}")
                    )
    except OSError as error:
        raise DataError(
            f"cannot read {path} of dataset {dataset}: {error.strerror or error}",
            remedy="check the path and its permissions",
        ) from error
    if not records:
        raise DataError(
            f"{path} of dataset {dataset} is empty: it holds no record",
            remedy="fetch the dataset again (agentforge-tui data fetch) or remove the file",
        )
    return records


def _parse(raw: bytes, path: Path, number: int, dataset: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {error.start + 1} of the line)"
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        problem = "is not JSON we can read: nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        problem = f"is not JSON we can read: {error}"
    else:
        if isinstance(value, dict):
            return value
        problem = f"is a JSON {type(value).__name__}, expected an object with columns"
    shown = raw.decode("utf-8", "replace").strip()
    raise DataError(
        f"{path}:{number}: this line of dataset {dataset} {problem}: "
        f"{shown[:60] + '...' if len(shown) > 60 else shown}",
        remedy="correct or remove that line, or fetch the dataset again",
    )
