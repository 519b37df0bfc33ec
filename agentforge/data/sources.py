"""Loading the chosen datasets: local folder, then the hub's cache, then the hub.

Rules that hold for every dataset, wherever it is found:

- Nothing is skipped silently: a dataset is loaded, or stated as missing with the reason, or the
  call fails; a record becomes an example, or is counted under a reason, or is an error with file
  and line.
- Examples are split by the hash of the normalised prompt (`splits.split_of`). A record out of a
  held-out hub split (GSM8K test, PIQA validation, any local file not called ``train``) is never
  put into ``train``, and an example whose normalised prompt occurs in any held-out file of any
  loaded dataset is dropped from ``train``. So the four splits are disjoint, and no published
  test record is trained on.
- Order is the registry's, then the file's. Caps keep rows by hash of their number
  (`selection.chosen_rows`); only streams are cut at their head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentforge.config.schema import DataConfig
from agentforge.data.example import Example
from agentforge.data.hub import HubSession, HubUnavailable
from agentforge.data.records import Record, Skipped, read_jsonl
from agentforge.data.registry import REGISTRY, DatasetEntry, entry
from agentforge.data.selection import chosen_rows, held_out_split_of
from agentforge.data.splits import SPLITS, Split, split_key, split_of
from agentforge.errors import DataError

HELD_OUT_CAP = 3_000
"""Records kept of one held-out hub split: a thousand for each of search, re-score and report."""

Found = Literal["local", "cache", "hub"]


@dataclass(frozen=True, slots=True)
class LoadedDataset:
    """One dataset that was found, split and ready to encode.

    Attributes:
        entry: Its registry entry.
        found: Where.
        where: Folder, or hub id with commit.
        stand_in: Local records written by hand in the right columns, not data of that set.
        examples: By split; all four keys are present.
        records: Records the source holds (a stream: that were read).
        skipped: Count by reason; ``records`` is the examples plus these.
    """

    entry: DatasetEntry
    found: Found
    where: str
    stand_in: bool
    examples: Mapping[Split, tuple[Example, ...]]
    records: int
    skipped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Missing:
    """A chosen dataset that was not found, and why."""

    entry: DatasetEntry
    reason: str


@dataclass(frozen=True, slots=True)
class DataInventory:
    """What a run trains on, and what it does without; both in registry order."""

    loaded: tuple[LoadedDataset, ...]
    missing: tuple[Missing, ...]

    def examples(self, split: Split) -> list[Example]:
        """All examples of a split, in order."""
        return [example for part in self.loaded for example in part.examples[split]]


@dataclass(frozen=True, slots=True)
class Raw:
    """Records of one dataset as found, before formatting; file by file."""

    found: Found
    where: str
    stand_in: bool
    files: tuple[RawFile, ...]


@dataclass(frozen=True, slots=True)
class RawFile:
    """One local file or hub split: ``total`` records there, those kept by a cap in ``records``."""

    records: tuple[Record, ...]
    total: int
    held_out: bool


@dataclass(frozen=True, slots=True)
class _Formatted:
    """Examples of one dataset with whether each may be trained on."""

    entry: DatasetEntry
    raw: Raw
    examples: tuple[tuple[Example, bool], ...]
    skipped: Counter[str]


def chosen_entries(config: DataConfig) -> list[DatasetEntry]:
    """The registry entries a configuration asks for, in registry order.

    Raises:
        DataError: A name is unknown.
    """
    if not config.datasets:
        return [item for item in REGISTRY if item.default_on]
    wanted = {entry(name).name for name in config.datasets}
    return [item for item in REGISTRY if item.name in wanted]


def load_datasets(config: DataConfig) -> DataInventory:
    """Load every chosen dataset that can be found.

    Args:
        config: Which datasets, where to look, caps.

    Raises:
        DataError: A name is unknown; the data folder is missing; a local file is broken or a
            column wrong; a dataset holds no usable record; ``require_all`` is set and one is not
            found; nothing is found at all.
    """
    entries = chosen_entries(config)
    folder = data_folder(config)
    session = HubSession() if config.use_hub else None
    formatted: list[_Formatted] = []
    missing: list[Missing] = []
    for item in entries:
        try:
            raw = find_raw(item, folder, session, config.max_records)
        except HubUnavailable as error:
            missing.append(Missing(item, str(error)))
        else:
            formatted.append(_format(item, raw))
    if missing and (config.require_all or not formatted):
        raise _not_found(missing, config)
    never = {split_key(e) for part in formatted for e, held_out in part.examples if held_out}
    return DataInventory(tuple(_split(part, never) for part in formatted), tuple(missing))


def load_raw(item: DatasetEntry, raw: Raw) -> LoadedDataset:
    """Format and split one dataset by itself (leaks into other datasets are not looked for).

    Raises:
        DataError: A column is wrong or no record is usable.
    """
    part = _format(item, raw)
    return _split(part, {split_key(e) for e, held_out in part.examples if held_out})


def data_folder(config: DataConfig) -> Path | None:
    """The folder of local records, checked.

    Raises:
        DataError: It does not exist, is no folder, or cannot be listed.
    """
    if config.data_dir is None:
        return None
    folder = Path(config.data_dir).expanduser()
    if not folder.exists():
        problem = "does not exist"
    elif not folder.is_dir():
        problem = "is not a folder"
    else:
        try:
            next(folder.iterdir(), None)
            return folder
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
    raise DataError(
        f"data folder {folder} (data.data_dir or --data-dir) {problem}",
        remedy="name a folder that holds one folder a dataset, such as DATA_DIR/gsm8k/train.jsonl",
    )


def find_raw(
    item: DatasetEntry,
    folder: Path | None,
    session: HubSession | None,
    max_records: int = 0,
    *,
    download: bool = True,
) -> Raw:
    """Raw records of one dataset, from the first place that has it.

    Args:
        item: The dataset.
        folder: Folder of local records, or None.
        session: Access to the hub and its cache, or None to stay local.
        max_records: Cap on top of the registry's; 0: none.
        download: Whether the hub may be read from when the cache has nothing.

    Raises:
        HubUnavailable: Not found anywhere; the text names the places and reasons.
        DataError: A local file is broken, empty or unreadable.
    """
    cap = min(item.cap, max_records) if max_records else item.cap
    local = _local_folders(item, folder) if folder is not None else []
    if local:
        return _read_local(item, local, cap)
    here = f"not in {folder}" if folder is not None else "no data folder given"
    if session is None:
        raise HubUnavailable(f"{here}; hub switched off (data.use_hub = false)")
    held_out_cap = min(HELD_OUT_CAP, max_records) if max_records else HELD_OUT_CAP
    got = session.cached(item, cap, held_out_cap)
    if got is None and not download:
        raise HubUnavailable(f"{here}, nor in the hub's cache")
    if got is None:
        try:
            got = session.load(item, cap, held_out_cap)
        except HubUnavailable as error:
            raise HubUnavailable(f"{here}; {error}") from error
    files = [
        RawFile(s.records, max(s.total, len(s.records)), s.split not in item.train_splits)
        for s in got.splits
    ]
    return Raw(got.found, got.where, False, tuple(files))


def _local_folders(item: DatasetEntry, folder: Path) -> list[Path]:
    """Existing folders of a dataset; hand-written stand-ins only where there is nothing else."""
    stand_ins = [f"{name}_handwritten" for name in item.folders]
    try:
        for names in (item.folders, stand_ins):
            found = [folder / name for name in names if (folder / name).exists()]
            if found:
                return found
    except OSError as error:
        raise DataError(
            f"cannot look into {folder} for dataset {item.name}: {error.strerror or error}",
            remedy="check the permissions of the data folder",
        ) from error
    return []


def _read_local(item: DatasetEntry, folders: list[Path], cap: int) -> Raw:
    """All files of the folders, read and checked whole; then the cap."""
    files: list[RawFile] = []
    for folder in folders:
        for path in _jsonl_files(item, folder):
            records = read_jsonl(path, item.name)
            held_out = path.stem != "train"
            limit = HELD_OUT_CAP if held_out else cap
            kept = chosen_rows(f"{folder.name}/{path.stem}", len(records), limit)
            files.append(RawFile(tuple(records[row] for row in kept), len(records), held_out))
    where = ", ".join(str(folder) for folder in folders)
    return Raw("local", where, folders[0].name.endswith("_handwritten"), tuple(files))


def _jsonl_files(item: DatasetEntry, folder: Path) -> list[Path]:
    """``train.jsonl`` first, then the others by name."""
    try:
        found = [
            path
            for path in folder.iterdir()
            if path.suffix == ".jsonl" and not path.name.startswith(".")
        ]
    except OSError as error:
        raise DataError(
            f"cannot list {folder} of dataset {item.name}: {error.strerror or error}",
            remedy="it must be a readable folder with train.jsonl",
        ) from error
    if not found:
        raise DataError(
            f"{folder} of dataset {item.name} holds no .jsonl file",
            remedy="put train.jsonl there, or remove the folder to look for it on the hub",
        )
    return sorted(found, key=lambda path: (path.stem != "train", path.name))


def _format(item: DatasetEntry, raw: Raw) -> _Formatted:
    skipped: Counter[str] = Counter()
    examples: list[tuple[Example, bool]] = []
    for file in raw.files:
        over = file.total - len(file.records)
        if over:
            skipped["over the cap"] += over
        for record in file.records:
            result = item.formatter(record)
            if isinstance(result, Skipped):
                skipped[result.reason] += 1
            else:
                examples.append((result, file.held_out))
    if not examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise DataError(
            f"dataset {item.name} ({raw.where}) holds no usable record: {reasons or 'it is empty'}",
            remedy="fetch it again, or leave it out of data.datasets",
        )
    return _Formatted(item, raw, tuple(examples), skipped)


def _split(part: _Formatted, never: set[str]) -> LoadedDataset:
    """Put each example into its split; drop repeats and what leaks into ``train``."""
    splits: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    skipped = Counter(part.skipped)
    seen: set[tuple[str, str]] = set()
    for example, held_out in part.examples:
        split = held_out_split_of(example) if held_out else split_of(example)
        if (example.prompt, example.answer) in seen:
            skipped["repeated"] += 1
        elif split == "train" and split_key(example) in never:
            skipped["prompt or passage is in a held-out file"] += 1
        else:
            seen.add((example.prompt, example.answer))
            splits[split].append(example)
    return LoadedDataset(
        entry=part.entry,
        found=part.raw.found,
        where=part.raw.where,
        stand_in=part.raw.stand_in,
        examples={split: tuple(items) for split, items in splits.items()},
        records=sum(file.total for file in part.raw.files),
        skipped=dict(skipped),
    )


def _not_found(missing: Iterable[Missing], config: DataConfig) -> DataError:
    items = list(missing)
    listed = "\n  ".join(f"{item.entry.name}: {item.reason}" for item in items)
    count = f"{len(items)} chosen dataset{'s' if len(items) > 1 else ''}"
    why = "data.require_all is set" if config.require_all else "there is nothing to train on"
    return DataError(
        f"{count} not found, and {why}:\n  {listed}",
        remedy="give --data-dir, run 'agentforge-tui data fetch' where there is internet, "
        "or choose data.source = world",
    )
