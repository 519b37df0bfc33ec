"""The files of Phase 1: the base, its specialists and the controls, each with what it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from agentforge.data.tokenizers import TextTokenizer
from agentforge.model.behaviour import Behaviour
from agentforge.phases.cognate.stages import Stage
from agentforge.phases.cognate.training import Training
from agentforge.run.artifacts import note_artifact
from agentforge.run.context import RunContext
from agentforge.run.tensor_file import SavedFile, load_model, save_model

PHASE = "cognate"


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished model, read back from its file.

    Attributes:
        weights: Tensors by name, on the CPU.
        sha256: Hash of its file.
        steps: Optimiser steps it took.
        behaviour: How it is run.
        metadata: What the file says of itself.
    """

    weights: dict[str, Tensor]
    sha256: str
    steps: int
    behaviour: Behaviour
    metadata: Mapping[str, str]


def artifact_name(model: str, phase: str = PHASE) -> str:
    """Its key in the manifest."""
    return f"{phase}.{model}"


def save_trained(
    context: RunContext, training: Training, tokenizer: TextTokenizer, base_sha256: str
) -> None:
    """Write the model of a finished stage and note it in the manifest.

    A specialist's metadata name the hash of the base it branched from: Phase 2 merges only models
    that share it.
    """
    stage = training.stage
    path = context.layout.artifacts / stage.phase / f"{stage.model}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = save_model(
        path,
        training.model.state_dict(),
        {
            "model": stage.model,
            "parent": stage.parent or "",
            "base_sha256": base_sha256,
            "behaviour": json.dumps(asdict(stage.behaviour)),
            "mix": json.dumps(dict(stage.mix)),
            "seed": str(stage.seed),
            "steps": str(training.step),
            "train_loss": repr(training.watch.recent()),
            "shapes": training.model.config.model_dump_json(),
            "vocab_size": str(training.model.vocab_size),
            "tokenizer": tokenizer.fingerprint,
        },
    )
    note_artifact(context, stage.phase, artifact_name(stage.model, stage.phase), saved)


def load_trained(context: RunContext, stage: Stage) -> Trained | None:
    """The finished model of a stage, checked against its hash; None when there is none yet.

    Raises:
        CheckpointError: The file is missing, truncated or altered.
    """
    return load_named(context, artifact_name(stage.model, stage.phase))


def load_named(context: RunContext, name: str) -> Trained | None:
    """A model of this run by its artefact's name; None when there is none yet.

    Raises:
        CheckpointError: The file is missing, truncated or altered.
    """
    artifact = context.manifest.artifacts.get(name)
    if artifact is None:
        return None
    path = context.layout.root / artifact.path
    read = load_model(path, expected=SavedFile(path, artifact.bytes, artifact.sha256))
    return Trained(
        weights=read.tensors,
        sha256=artifact.sha256,
        steps=int(read.metadata["steps"]),
        behaviour=Behaviour(**json.loads(read.metadata["behaviour"])),
        metadata=read.metadata,
    )


def remove_controls(context: RunContext) -> None:
    """Remove the controls of a finished phase with everything of the engine that trained them."""
    if context.manifest.phases[PHASE].status != "done":
        return
    forget(context, list(context.config.cognate.ablations))
    shutil.rmtree(context.layout.root / "controls", ignore_errors=True)


def forget(context: RunContext, models: Sequence[str]) -> None:
    """Remove models that are trained again or no longer wanted; the manifest first."""
    removed = [context.manifest.artifacts.pop(artifact_name(m), None) for m in models]
    context.save_manifest()
    for artifact in removed:
        if artifact is not None:
            (context.layout.root / artifact.path).unlink(missing_ok=True)
