"""What ``data check`` tells: for each of the 16 datasets, found where, how much, or what lacks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from agentforge.config.schema import DataConfig
from agentforge.data.example import Category
from agentforge.data.hub import HubSession, HubUnavailable
from agentforge.data.registry import REGISTRY, DatasetEntry, Stage
from agentforge.data.sources import chosen_entries, data_folder, find_raw, load_raw
from agentforge.errors import DataError

Status = Literal["local", "cache", "hub", "missing", "broken"]


@dataclass(frozen=True, slots=True)
class InventoryRow:
    """One dataset's line of ``data check``.

    Attributes:
        name: Registry name.
        title: Name in print.
        category: What mixes count.
        stage: First curriculum stage.
        licence: As its authors state it.
        hub: Hub id, config and revision.
        chosen: Whether a run with this configuration would use it.
        why_off: Why it is off by default; empty when it is on.
        status: Where it was found; ``hub``: the hub has it and it would be downloaded; ``broken``:
            found but wrong.
        where: Folder, or hub id with commit; empty when it was not found.
        stand_in: Hand-written local records, not data of that set.
        records: Records there; None when unknown before a download.
        train: Training examples they give; None when unknown.
        skipped: What is left out and why, one text; empty when nothing.
        problem: What is missing or wrong; empty when all is well.
    """

    name: str
    title: str
    category: Category
    stage: Stage
    licence: str
    hub: str
    chosen: bool
    why_off: str
    status: Status
    where: str = ""
    stand_in: bool = False
    records: int | None = None
    train: int | None = None
    skipped: str = ""
    problem: str = ""


def check_data(config: DataConfig) -> tuple[InventoryRow, ...]:
    """Look for all 16 datasets, chosen or not; read local and cached ones whole.

    The hub is only asked whether it has the others: nothing is downloaded. A broken dataset is a
    row with its problem, not an exception, so that one look shows all of them. Each dataset is
    looked at by itself; a run also drops from ``train`` what is held out in another dataset.

    Raises:
        DataError: A name in ``config.datasets`` is unknown, or the data folder is missing.
    """
    chosen = {item.name for item in chosen_entries(config)}
    folder = data_folder(config)
    session = HubSession() if config.use_hub else None
    rows: list[InventoryRow] = []
    for item in REGISTRY:
        row = _row(item, item.name in chosen)
        try:
            raw = find_raw(item, folder, session, config.max_records, download=False)
            loaded = load_raw(item, raw)
        except HubUnavailable as error:
            rows.append(_remote(item, row, session, str(error)))
        except DataError as error:
            rows.append(replace(row, status="broken", problem=str(error)))
        else:
            rows.append(
                replace(
                    row,
                    status=loaded.found,
                    where=loaded.where,
                    stand_in=loaded.stand_in,
                    records=loaded.records,
                    train=len(loaded.examples["train"]),
                    skipped=", ".join(f"{n} {reason}" for reason, n in loaded.skipped.items()),
                )
            )
    return tuple(rows)


def _row(item: DatasetEntry, chosen: bool) -> InventoryRow:
    return InventoryRow(
        name=item.name,
        title=item.title,
        category=item.category,
        stage=item.stage,
        licence=item.licence,
        hub=f"{item.hub_id} ({item.config}) @ {item.revision}",
        chosen=chosen,
        why_off=item.off_reason,
        status="missing",
    )


def _remote(
    item: DatasetEntry, row: InventoryRow, session: HubSession | None, here: str
) -> InventoryRow:
    """The row of a dataset that is not on this machine: does the hub have it?"""
    if session is None:
        return replace(row, problem=here)
    try:
        commit = session.commit(item)
    except HubUnavailable as error:
        return replace(row, problem=f"{here}; {error}")
    return replace(row, status="hub", where=f"hub {item.hub_id} at commit {commit}")
