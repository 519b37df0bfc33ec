"""``data fetch``: copy datasets from the hub into the local layout, for machines without one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agentforge.data.files import write_atomic
from agentforge.data.hub import HubSession, HubUnavailable
from agentforge.data.registry import REGISTRY, DatasetEntry, entry
from agentforge.data.sources import HELD_OUT_CAP
from agentforge.errors import DataError


@dataclass(frozen=True, slots=True)
class FetchResult:
    """What became of one dataset.

    Attributes:
        name: Registry name.
        status: ``written``, ``present`` (nothing to do), or ``failed``.
        files: Files of the dataset in the local folder.
        records: Records written in this call.
        problem: Why it failed; empty otherwise.
    """

    name: str
    status: Literal["written", "present", "failed"]
    files: tuple[Path, ...]
    records: int = 0
    problem: str = ""


def fetch_datasets(names: Sequence[str], data_dir: str | Path) -> tuple[FetchResult, ...]:
    """Download datasets as ``DATA_DIR/NAME/train.jsonl`` and ``test.jsonl``.

    ``test.jsonl`` holds the hub's held-out splits. Stored sets are copied whole with all columns;
    streamed ones up to their cap (and `HELD_OUT_CAP`) with the columns the formatter reads. Each
    file appears complete or not at all, and one that exists is not fetched again, so an
    interrupted call is simply repeated. One dataset's failure does not stop the others.

    Args:
        names: Registry names; empty: all that are on by default.
        data_dir: Folder to write to; made if missing.

    Raises:
        DataError: A name is unknown, there is no network (known within seconds), or the folder
            cannot be written.
    """
    items = [entry(name) for name in names] or [item for item in REGISTRY if item.default_on]
    folder = Path(data_dir).expanduser()
    session = HubSession()
    results: list[FetchResult] = []
    for item in items:
        target = folder / item.folders[0]
        lacking = [path for path, _ in _plan(item, target) if not path.exists()]
        if not lacking:
            files = tuple(path for path, _ in _plan(item, target))
            results.append(FetchResult(item.name, "present", files))
            continue
        closed = session.offline_reason()
        if closed is not None and any(result.status != "present" for result in results):
            results.append(FetchResult(item.name, "failed", (), 0, closed))
            continue
        if closed is not None:
            raise DataError(
                f"cannot fetch {item.name}: {closed}",
                remedy="run this where there is internet (HF_ENDPOINT may name a mirror), "
                "then copy the folder",
            )
        results.append(_fetch(item, target, lacking, session))
    return tuple(results)


def _plan(item: DatasetEntry, target: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """Local file and the hub splits it holds."""
    plan = [(target / "train.jsonl", item.train_splits)]
    if item.held_out_splits:
        plan.append((target / "test.jsonl", item.held_out_splits))
    return plan


def _fetch(
    item: DatasetEntry, target: Path, lacking: Sequence[Path], session: HubSession
) -> FetchResult:
    files: list[Path] = []
    records = 0
    try:
        for path, splits in _plan(item, target):
            if path in lacking:
                limit = 0
                if item.streaming:
                    limit = item.cap if path.stem == "train" else HELD_OUT_CAP
                count = _Counter(session.rows(item, splits, limit))
                write_atomic(path, count)
                records += count.seen
            files.append(path)
    except HubUnavailable as error:
        return FetchResult(item.name, "failed", tuple(files), records, str(error))
    except OSError as error:
        raise DataError(
            f"cannot write to {target}: {error.strerror or error}",
            remedy="name a folder that can be written and has room (--data-dir)",
        ) from error
    return FetchResult(item.name, "written", tuple(files), records)


class _Counter:
    """JSON lines of rows, counting them as they go."""

    def __init__(self, rows: Iterator[dict[str, Any]]) -> None:
        self._rows = rows
        self.seen = 0

    def __iter__(self) -> Iterator[str]:
        for row in self._rows:
            self.seen += 1
            yield json.dumps(row, ensure_ascii=False) + "\n"
        if not self.seen:
            raise HubUnavailable("the hub gave no record")
