"""What a phase starts from: a model and its run-time settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from agentforge.data.tokenizers import TextTokenizer
from agentforge.errors import CheckpointError, PreflightError
from agentforge.model.behaviour import Behaviour
from agentforge.run.context import RunContext
from agentforge.run.tensor_file import SavedFile, load_model


@dataclass(frozen=True, slots=True)
class StartModel:
    """The model a phase begins with.

    Attributes:
        weights: Tensors by name, on the CPU.
        behaviour: How it is run.
        sha256: Hash of its file.
        source: Where it came from, for reports.
        bytes: Of its file.
    """

    weights: dict[str, Tensor]
    behaviour: Behaviour
    sha256: str
    source: str
    bytes: int


def load_start(
    context: RunContext,
    tokenizer: TextTokenizer,
    *,
    named: str | None,
    key: str,
    artifact: str,
    missing: str,
    phase_before: str,
) -> StartModel:
    """The file a configuration names, or what an earlier phase of this run handed on.

    Args:
        context: The run.
        tokenizer: The run's.
        named: File named in the configuration; None: the artefact.
        key: Its configuration key, for messages.
        artifact: Name of what the earlier phase hands on.
        missing: What to say when neither is there.
        phase_before: The phase that makes the artefact.

    Raises:
        PreflightError: There is no such model, or it has another vocabulary.
        CheckpointError: The file is damaged.
    """
    if named is not None:
        path = Path(named).expanduser()
        if not path.is_file():
            raise PreflightError(
                f"{key} {named} is not a file", remedy="name a .safetensors model file"
            )
        read, source = load_model(path), str(path)
    else:
        found = context.manifest.artifacts.get(artifact)
        if found is None:
            raise PreflightError(
                missing, remedy=f"run {phase_before} first, or set {key} to a model file"
            )
        path = context.layout.root / found.path
        read = load_model(path, expected=SavedFile(path, found.bytes, found.sha256))
        source = artifact
    fingerprint = read.metadata.get("tokenizer", tokenizer.fingerprint)
    if fingerprint != tokenizer.fingerprint:
        raise PreflightError(
            f"{source} was trained with another vocabulary ({fingerprint[:12]}, this run: "
            f"{tokenizer.fingerprint[:12]})",
            remedy="use a model of the same tokenizer and program version",
        )
    try:
        behaviour = Behaviour(**json.loads(read.metadata["behaviour"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source} does not say how it is run (metadata `behaviour`): {error}",
            remedy="use a model file this program wrote",
        ) from None
    return StartModel(read.tensors, behaviour, read.sha256, source, path.stat().st_size)
