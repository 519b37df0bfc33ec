"""The three models and their base, checked before anything is merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from agentforge.config.schema import SPECIALTIES, RunConfig
from agentforge.data.tokenizers import TextTokenizer
from agentforge.errors import CheckpointError, PreflightError
from agentforge.merge.validity import invalid_reason
from agentforge.model.behaviour import Behaviour
from agentforge.run.context import RunContext
from agentforge.run.tensor_file import LoadedModel, SavedFile, load_model

BASE = "base"
SAME_BASE = (
    "merge models that were trained from one base file (Phase 1 writes three of them), or set "
    "evomerge.require_common_base=false to see what becomes of it"
)


@dataclass(frozen=True, slots=True)
class Parent:
    """One model as it was read.

    Attributes:
        name: ``base``, a specialty, or the name of its file.
        weights: Tensors on the CPU.
        behaviour: How it is run.
        sha256: Hash of its file.
    """

    name: str
    weights: dict[str, Tensor]
    behaviour: Behaviour
    sha256: str


@dataclass(frozen=True, slots=True)
class Family:
    """The base and the three models that branched from it."""

    base: Parent
    models: tuple[Parent, Parent, Parent]


def load_family(
    context: RunContext, tokenizer: TextTokenizer, shapes: Mapping[str, torch.Size]
) -> Family:
    """Read the base and the three models; refuse what cannot be merged.

    Args:
        context: The run; names the files or has trained the models.
        tokenizer: Its fingerprint must be theirs.
        shapes: Of every tensor of the configured model.

    Raises:
        PreflightError: A file is missing or damaged, or does not belong to the others: what is
            wrong with each is said.
    """
    config = context.config
    base_file, files = _files(context)
    base = _read(base_file, BASE)
    models = [_read(file, name) for name, file in files.items()]
    names = list(files)
    problems = []
    for name, read in zip((BASE, *names), (base, *models), strict=True):
        problems += [f"{name}: {p}" for p in _problems(read, config, tokenizer, shapes)]
    if config.evomerge.require_common_base:
        for name, read in zip(names, models, strict=True):
            foreign = read.metadata.get("base_sha256", "")
            if foreign != base.sha256:
                problems.append(
                    f"{name}: it branched from the base {foreign[:12] or '(none named)'}, the base "
                    f"given is {base.sha256[:12]}"
                )
    for name, read in zip(names, models, strict=True):
        problems += [f"{name}: {p}" for p in _other_buffers(read, base)]
    if problems:
        raise PreflightError(
            f"these models cannot be merged: {'; '.join(problems)}", remedy=SAME_BASE
        )
    one, two, three = (_parent(n, r) for n, r in zip(names, models, strict=True))
    return Family(_parent(BASE, base), (one, two, three))


def _files(context: RunContext) -> tuple[SavedFile | Path, dict[str, SavedFile | Path]]:
    """Files of the base and of the three models, by name."""
    evomerge = context.config.evomerge
    if evomerge.models and evomerge.base is not None:
        paths = [Path(m).expanduser() for m in evomerge.models]
        names = [p.stem for p in paths]
        if len(set(names)) < len(names):
            names = [f"model{i + 1}" for i in range(len(paths))]
        if len({p.resolve() for p in paths}) < len(paths):
            raise PreflightError(
                f"evomerge.models names one file twice: {', '.join(map(str, paths))}",
                remedy="give three different models",
            )
        return Path(evomerge.base).expanduser(), dict(zip(names, paths, strict=True))
    artifacts = context.manifest.artifacts
    found = {n: artifacts.get(f"cognate.{n}") for n in (BASE, *SPECIALTIES)}
    lacking = [name for name, artifact in found.items() if artifact is None]
    if lacking:
        raise PreflightError(
            f"Phase 2 needs the base and three models; this run has no {', '.join(lacking)}",
            remedy="run Phase 1 first (phases = cognate, evomerge), or give files with "
            "evomerge.models and evomerge.base",
        )
    files = {
        name: SavedFile(context.layout.root / a.path, a.bytes, a.sha256)
        for name, a in found.items()
        if a is not None
    }
    base = files.pop(BASE)
    return base, dict(files)


def _read(file: SavedFile | Path, name: str) -> LoadedModel:
    try:
        if isinstance(file, SavedFile):
            return load_model(file.path, expected=file)
        return load_model(file)
    except CheckpointError as error:
        raise PreflightError(
            f"{name}: {error.message}",
            remedy="restore the file, or train the models again in a new run",
        ) from None


def _problems(
    read: LoadedModel,
    config: RunConfig,
    tokenizer: TextTokenizer,
    shapes: Mapping[str, torch.Size],
) -> list[str]:
    """What is wrong with one model by itself."""
    found = []
    lacking = [n for n in shapes if n not in read.tensors]
    foreign = [n for n in read.tensors if n not in shapes]
    other = [n for n in shapes if n in read.tensors and read.tensors[n].shape != shapes[n]]
    if lacking or foreign:
        found.append(
            f"{len(lacking)} tensors are missing and {len(foreign)} unknown "
            f"({', '.join([*lacking, *foreign][:2])})"
        )
    if other:
        name = other[0]
        found.append(
            f"{len(other)} tensors have other shapes than the configured model: {name} is "
            f"{tuple(read.tensors[name].shape)}, not {tuple(shapes[name])}"
        )
    if not found:
        reason = invalid_reason(read.tensors)
        if reason is not None and "NaN" in reason:
            found.append(reason)
    fingerprint = read.metadata.get("tokenizer", "")
    if fingerprint != tokenizer.fingerprint:
        found.append(
            f"its tokenizer is {fingerprint[:12] or '(none named)'}, this run's is "
            f"{tokenizer.fingerprint[:12]}"
        )
    try:
        Behaviour(**json.loads(read.metadata["behaviour"]))
    except (KeyError, ValueError, TypeError):
        found.append("the file does not say how the model is run (metadata behaviour)")
    return found


def _other_buffers(read: LoadedModel, base: LoadedModel) -> list[str]:
    """Tensors that are copied, not merged, must be the base's."""
    return [
        f"the buffer {name} differs from the base's"
        for name, tensor in base.tensors.items()
        if not tensor.is_floating_point()
        and name in read.tensors
        and not torch.equal(tensor, read.tensors[name])
    ]


def _parent(name: str, read: LoadedModel) -> Parent:
    behaviour = Behaviour(**json.loads(read.metadata["behaviour"]))
    return Parent(name, read.tensors, behaviour, read.sha256)
