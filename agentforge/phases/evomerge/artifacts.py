"""The files of Phase 2: the champion, and the log of the whole search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from torch import Tensor

from agentforge.data.tokenizers import TextTokenizer
from agentforge.errors import CheckpointError
from agentforge.phases.evomerge.evolution import PHASE
from agentforge.phases.evomerge.history import Evolution
from agentforge.phases.evomerge.members import Member
from agentforge.phases.evomerge.search import Search
from agentforge.run.artifacts import note_artifact
from agentforge.run.atomic import write_atomic
from agentforge.run.context import RunContext
from agentforge.run.tensor_file import SavedFile, file_sha256, save_model

CHAMPION = f"{PHASE}.champion"
LOG = f"{PHASE}.evolution_log"


def save_search(search: Search, evolution: Evolution) -> None:
    """Write the log of the finished search.

    It holds every recipe, from which every member can be merged again; a resumed engine reads it
    back instead of searching again.
    """
    folder = search.context.layout.artifacts / PHASE
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "evolution_log.json"
    write_atomic(path, json.dumps(evolution.to_json(), indent=1) + "\n")
    note_artifact(
        search.context, PHASE, LOG, SavedFile(path, path.stat().st_size, file_sha256(path))
    )


def load_search(search: Search) -> Evolution | None:
    """The finished search of this run; None when it is not finished.

    Raises:
        CheckpointError: A file is missing or altered.
    """
    log = _file(search.context, LOG)
    if log is None:
        return None
    try:
        text = log.path.read_text(encoding="utf-8")
        if file_sha256(log.path) != log.sha256:
            raise ValueError("it was altered since it was written")
        evolution = Evolution.from_json(json.loads(text))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{log.path} cannot be read back: {error}",
            remedy="restore the file, or run the phase again in a new run",
        ) from None
    search.add(evolution.members)
    return evolution


def save_champion(
    search: Search,
    evolution: Evolution,
    member: Member,
    weights: Mapping[str, Tensor],
    tokenizer: TextTokenizer,
) -> SavedFile:
    """Write the winner with its recipe, what it merges, and its whole descent."""
    context = search.context
    path = context.layout.artifacts / PHASE / "champion.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    lineage = [m.to_json() for m in evolution.lineage(member)]
    parents = {p.name: p.sha256 for p in search.family.models}
    saved = save_model(
        path,
        weights,
        {
            "model": "champion",
            "base_sha256": search.family.base.sha256,
            "parents": json.dumps(parents),
            "parent_weights": json.dumps(search.parent_hashes),
            "behaviour": json.dumps(asdict(member.behaviour)),
            "recipe": member.recipe.to_json(),
            "sources": json.dumps(member.candidate.sources),
            "lineage": json.dumps(lineage),
            "shapes": context.config.model.model_dump_json(),
            "vocab_size": str(search.base["embedding.table"].shape[0]),
            "tokenizer": tokenizer.fingerprint,
        },
    )
    note_artifact(context, PHASE, CHAMPION, saved)
    return saved


def _file(context: RunContext, name: str) -> SavedFile | None:
    artifact = context.manifest.artifacts.get(name)
    if artifact is None:
        return None
    return SavedFile(context.layout.root / artifact.path, artifact.bytes, artifact.sha256)
