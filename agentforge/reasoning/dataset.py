"""A set of reasoning examples on disk: `examples.jsonl`, one a line, and `metadata.json`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentforge.errors import DataError
from agentforge.reasoning.example import ReasoningExample
from agentforge.reasoning.strategies import STRATEGIES
from agentforge.reasoning.validate import Fault, fault_of

EXAMPLES, METADATA = "examples.jsonl", "metadata.json"
LEAST_SHARE = 0.8
"""Of the target that must be valid: 20,000 of 25,000."""
WARN_SHARE = 0.9
"""Of the tried examples that should be valid; below it somebody should look why."""


class SetMetadata(BaseModel):
    """What is known of a set besides its examples.

    Attributes:
        target: Examples that were aimed at.
        tried: Examples that were looked at, valid or not.
        faults: Invalid ones by reason.
        cost_usd: What generating it cost, as text (exact decimal).
        source: Who wrote it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: int = Field(ge=1)
    tried: int = Field(ge=0)
    faults: dict[str, int] = {}
    cost_usd: str = "0"
    source: str = ""


@dataclass(frozen=True, slots=True)
class ReasoningSet:
    """A set read from disk; every example is valid and its id unique.

    Attributes:
        path: Its folder.
        examples: In the order of the file.
        metadata: Its counts.
        faults: Lines of the file that are not usable, by reason.
    """

    path: Path
    examples: tuple[ReasoningExample, ...]
    metadata: SetMetadata
    faults: dict[Fault, int]

    @property
    def by_strategy(self) -> dict[str, int]:
        """Valid examples of each of the ten strategies."""
        found = Counter(e.strategy for e in self.examples)
        return {s.name: found[s.name] for s in STRATEGIES}

    @property
    def valid_share(self) -> float:
        """Valid examples of those that were tried; 1 where nothing was counted."""
        # Lines that the file itself holds are counted even where its metadata forgot them.
        tried = max(self.metadata.tried, len(self.examples) + sum(self.faults.values()))
        return len(self.examples) / tried if tried else 1.0

    @property
    def accepted(self) -> bool:
        """Enough of the target, and all ten strategies."""
        enough = len(self.examples) >= LEAST_SHARE * self.metadata.target
        return enough and all(self.by_strategy.values())

    @property
    def needs_attention(self) -> bool:
        """So many were invalid that the generator should be looked at."""
        return self.valid_share < WARN_SHARE

    def require_accepted(self) -> None:
        """Go on only with a set that is good enough to train on.

        Raises:
            DataError: It is not, and why.
        """
        if self.accepted:
            return
        lacking = [name for name, count in self.by_strategy.items() if not count]
        raise DataError(
            f"{self.path}: {len(self.examples):,} valid examples of {self.metadata.target:,} "
            f"wanted (at least {100 * LEAST_SHARE:.0f} %)"
            + (f"; none of {', '.join(lacking)}" if lacking else ""),
            remedy="go on with `agentforge-tui data generate --out` of the same folder",
        )


def read_set(folder: str | Path) -> ReasoningSet:
    """Read and validate a set.

    A last line that is cut (a crash while writing) is left out; any other damaged line is an error.

    Raises:
        DataError: A file is missing or damaged; the line is named.
    """
    path = Path(folder).expanduser()
    metadata = _read_metadata(path / METADATA)
    found: list[ReasoningExample] = []
    faults: Counter[Fault] = Counter()
    seen: set[str] = set()
    for number, line, last in _lines(path / EXAMPLES):
        try:
            example = ReasoningExample.model_validate_json(line)
        except ValidationError as error:
            if last and not line.endswith("}"):
                break
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"{path / EXAMPLES} line {number}: {where or 'the line'}: {first['msg']}",
                remedy="remove or repair the line",
            ) from None
        fault = "duplicate" if example.id in seen else fault_of(example)
        if fault is not None:
            faults[fault] += 1
            continue
        seen.add(example.id)
        found.append(example)
    return ReasoningSet(path, tuple(found), metadata, dict(faults))


def _read_metadata(path: Path) -> SetMetadata:
    try:
        return SetMetadata.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise DataError(
            f"{path} cannot be read: {text}",
            remedy="name a folder that `agentforge-tui data generate` wrote",
        ) from None


def _lines(path: Path) -> list[tuple[int, str, bool]]:
    """Number, text, whether it is the last one; blank lines are left out."""
    try:
        rows = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            remedy="name a folder that `agentforge-tui data generate` wrote",
        ) from None
    kept = [(i, row) for i, row in enumerate(rows, 1) if row.strip()]
    return [(i, row, place == len(kept) - 1) for place, (i, row) in enumerate(kept)]


def metadata_json(metadata: SetMetadata) -> str:
    """The metadata file's text."""
    return json.dumps(metadata.model_dump(), indent=1) + "\n"
