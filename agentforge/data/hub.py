"""The Hugging Face hub: its cache, one probe for a whole call, bounded waits, plain reasons.

Measured with datasets 5.2 and huggingface_hub 2.4: without a network every dataset costs 23 s of
retries, and a server that accepts a connection and never answers costs minutes. Hence one probe,
one short question before each dataset, and no further attempt after a failure of the network.
``datasets`` (2 s to import) is imported only when there is something to load.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from agentforge.data.hub_mode import hub_mode
from agentforge.data.records import Record
from agentforge.data.registry import DatasetEntry
from agentforge.data.selection import chosen_rows
from agentforge.errors import DataError

PROBE_TIMEOUT_S = 4.0
"""The one probe: connect, or read the first byte."""
ASK_TIMEOUT_S = 10.0
"""The question for one dataset's commit."""


class HubUnavailable(Exception):  # noqa: N818 - a state of the world, with its reason
    """A dataset cannot be had from the hub or its cache; the text says why."""


@dataclass(frozen=True, slots=True)
class HubSplit:
    """Records of one hub split.

    Attributes:
        split: The hub's name for it.
        records: In the hub's order, at most as many as asked for.
        total: Rows the split has; -1 when it was streamed.
    """

    split: str
    records: tuple[Record, ...]
    total: int


@dataclass(frozen=True, slots=True)
class HubDataset:
    """What the hub or its cache gave for one registry entry."""

    found: Literal["cache", "hub"]
    where: str
    splits: tuple[HubSplit, ...]


class HubSession:
    """Access to hub and cache for the duration of one call.

    The network is probed at most once, when something first needs it. A network failure later on
    closes the network for the rest of the session. Progress bars and retry chatter are silenced.
    """

    def __init__(self) -> None:
        self._closed_because: str | None = None
        self._probed = False
        self._answered = False

    def offline_reason(self) -> str | None:
        """None when the hub answers; otherwise why it is not asked. Probes on the first call."""
        if not self._probed:
            self._probed = True
            self._closed_because = self._probe()
        return self._closed_because

    def commit(self, entry: DatasetEntry) -> str:
        """The commit ``entry.revision`` stands for now.

        Raises:
            HubUnavailable: No network, no such dataset or revision, or no answer in time.
        """
        closed = self.offline_reason()
        if closed is not None:
            raise HubUnavailable(closed)
        from huggingface_hub import HfApi

        try:
            info = HfApi(endpoint=endpoint()).dataset_info(
                entry.hub_id, revision=entry.revision, timeout=ASK_TIMEOUT_S
            )
        except Exception as error:  # the hub's errors share no base class across versions
            raise HubUnavailable(self.explain(error, entry)) from error
        return str(info.sha)

    def cached(self, entry: DatasetEntry, cap: int, held_out_cap: int) -> HubDataset | None:
        """Records of ``entry`` out of the cache of ``datasets``; None when it is not there.

        Args:
            entry: What to load.
            cap: Most records of one training split.
            held_out_cap: Most records of one held-out split.

        Raises:
            DataError: A column is missing.
        """
        if not _may_be_cached(entry):
            return None
        try:
            return self._load(entry, None, cap, held_out_cap)
        except DataError:
            raise
        except Exception:  # noqa: BLE001 - not cached, or unusable: the hub decides
            return None

    def load(self, entry: DatasetEntry, cap: int, held_out_cap: int) -> HubDataset:
        """Records of ``entry`` from the hub, which fills the cache; arguments as for `cached`.

        Raises:
            HubUnavailable: With the reason, for a report.
            DataError: A column is missing.
        """
        commit = self.commit(entry)
        try:
            return self._load(entry, commit, cap, held_out_cap)
        except (DataError, HubUnavailable):
            raise
        except Exception as error:
            raise HubUnavailable(self.explain(error, entry)) from error

    def rows(
        self, entry: DatasetEntry, splits: Sequence[str], limit: int
    ) -> Iterator[dict[str, Any]]:
        """Rows of some splits one after the other, straight from the hub.

        Args:
            entry: Whose.
            splits: Hub splits, in order.
            limit: Most rows of one split; 0: all.

        Raises:
            HubUnavailable: With the reason, also in the middle.
        """
        commit = self.commit(entry)
        try:
            with hub_mode(offline=False):
                table = _load_table(entry, commit)
                for split in splits:
                    part = _split_of(table, entry, split)
                    if entry.streaming:
                        part = part.select_columns(list(entry.columns))
                    for row in islice(part, limit or None):
                        yield dict(row)
        except (DataError, HubUnavailable, GeneratorExit):
            raise
        except Exception as error:
            raise HubUnavailable(self.explain(error, entry)) from error

    def file(self, repository: str, name: str) -> Path:
        """One file of a model repository, from the cache or the hub.

        Raises:
            HubUnavailable: It cannot be had.
        """
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(repository, name, local_files_only=True))
        except OSError:
            pass
        closed = self.offline_reason()
        if closed is not None:
            raise HubUnavailable(closed)
        try:
            return Path(hf_hub_download(repository, name, etag_timeout=ASK_TIMEOUT_S))
        except Exception as error:
            raise HubUnavailable(self.explain(error)) from error

    def explain(self, error: BaseException, entry: DatasetEntry | None = None) -> str:
        """One line for a report; a network failure also closes the network for this session."""
        name = type(error).__name__
        if name == "RepositoryNotFoundError":
            what = entry.hub_id if entry else "the repository"
            return f"the hub has no dataset {what} (or it is private): not found (404/401)"
        if name == "RevisionNotFoundError":
            return f"the hub's {entry.hub_id if entry else 'repository'} has no such revision"
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        if _is_network(error):
            self._probed = True
            kind = "stopped answering" if self._answered else "cannot be reached"
            self._closed_because = f"{endpoint()} {kind} ({name}: {first[:200]})"
            return self._closed_because
        return f"{name}: {first[:200]}"

    def _probe(self) -> str | None:
        """Ask the endpoint once; any answer, even an error status, means there is a network."""
        from huggingface_hub import constants, get_session

        if constants.HF_HUB_OFFLINE:
            return "the hub is switched off (HF_HUB_OFFLINE is set)"

        try:
            get_session().head(endpoint(), timeout=PROBE_TIMEOUT_S, follow_redirects=False)
        except Exception as error:  # httpx or requests, by the library's version
            kind = "did not answer" if "Timeout" in type(error).__name__ else "cannot be reached"
            return (
                f"{endpoint()} {kind} (one probe of {PROBE_TIMEOUT_S:g} s: {type(error).__name__})"
            )
        self._answered = True
        return None

    def _load(
        self, entry: DatasetEntry, commit: str | None, cap: int, held_out_cap: int
    ) -> HubDataset:
        """Load from the cache (``commit`` None) or from the hub, and take the rows out."""
        found: Literal["cache", "hub"] = "cache" if commit is None else "hub"
        with hub_mode(offline=commit is None):
            table = _load_table(entry, commit)
            splits: list[HubSplit] = []
            for number, split in enumerate((*entry.train_splits, *entry.held_out_splits)):
                limit = cap if number < len(entry.train_splits) else held_out_cap
                splits.append(_take(_split_of(table, entry, split), entry, split, limit))
        origin = f"{entry.hub_id} ({entry.config})"
        where = f"hub {origin} at commit {commit}" if commit else f"hub cache of {origin}"
        return HubDataset(found, where, tuple(splits))


def _load_table(entry: DatasetEntry, commit: str | None) -> Any:
    """All splits, by name; the one call of ``datasets`` in the package."""
    import datasets

    return datasets.load_dataset(
        entry.hub_id, entry.config, revision=commit, streaming=entry.streaming
    )


def _split_of(table: Any, entry: DatasetEntry, split: str) -> Any:
    if split not in table:
        raise HubUnavailable(f"{entry.hub_id} has no split {split!r}, only {', '.join(table)}")
    return table[split]


def endpoint() -> str:
    """The hub's address: ``HF_ENDPOINT`` or the public one, as huggingface_hub resolved it."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _take(rows: Any, entry: DatasetEntry, split: str, limit: int) -> HubSplit:
    """Rows of one split: a deterministic choice of a stored table, the head of a stream."""
    seen = rows.column_names
    missing = [c for c in entry.columns if seen is not None and c not in seen]
    if missing:
        raise DataError(
            f"{entry.hub_id} ({entry.config}), split {split}: dataset {entry.name} has no column "
            f"{missing[0]!r}; columns seen: {', '.join(seen)}",
            remedy="the dataset on the hub has changed: pin an older revision in the registry",
        )
    rows = rows.select_columns(list(entry.columns))
    if entry.streaming:
        numbered: Iterable[tuple[int, Any]] = enumerate(islice(rows, limit))
        total = -1
    else:
        total = len(rows)
        numbers = chosen_rows(f"{entry.name}/{split}", total, limit)
        numbered = zip(numbers, rows.select(numbers), strict=True)
    where = f"{entry.hub_id}/{entry.config}/{split}"
    records = tuple(Record(row, entry.name, f"{where} row {n}") for n, row in numbered)
    return HubSplit(split, records, total)


def _may_be_cached(entry: DatasetEntry) -> bool:
    """Whether the cache of ``datasets`` has a folder that could be this dataset's."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    owner = entry.hub_id.split("/")[0]
    return any(cache.expanduser().glob(f"{owner}___*"))


def _is_network(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is the network's."""
    while error is not None:
        module = type(error).__module__.split(".")[0]
        if isinstance(error, ConnectionError | TimeoutError) or "Timeout" in type(error).__name__:
            return True
        if module.startswith(("httpx", "requests", "urllib3")) and "Status" not in str(type(error)):
            return True
        error = error.__cause__
    return False
