"""The files of Phase 3: the reasoning model with its generation defaults, and the set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from torch import Tensor

from agentforge.config.schema import RunConfig
from agentforge.data.tokenizers import TextTokenizer
from agentforge.model.behaviour import Behaviour
from agentforge.phases.cognate.artifacts import artifact_name
from agentforge.phases.quietstar.bake import PHASE
from agentforge.phases.quietstar.data import ReasoningData
from agentforge.reasoning.dataset import EXAMPLES, METADATA, SetMetadata, metadata_json
from agentforge.reasoning.example import ReasoningExample
from agentforge.run.artifacts import note_artifact
from agentforge.run.atomic import write_atomic
from agentforge.run.context import RunContext
from agentforge.run.tensor_file import SavedFile, file_sha256, save_model
from agentforge.sizing import answer_tokens

DATASET = f"{PHASE}.dataset"


def save_thinking_model(
    context: RunContext,
    name: str,
    weights: Mapping[str, Tensor],
    behaviour: Behaviour,
    tokenizer: TextTokenizer,
    baked_sha256: str,
    steps: int,
    thoughts_passed: bool | None = None,
) -> None:
    """Write a model that thinks, with how it is run and how it generates by default.

    Args:
        context: The run.
        name: Its name: `reasoner` is the one that is handed on.
        weights: Its tensors.
        behaviour: How it is run.
        tokenizer: The run's.
        baked_sha256: Hash of the model it comes from.
        steps: Steps it took.
        thoughts_passed: Whether its thoughts passed every anti-theater test; None: not tested.
    """
    config = context.config
    path = context.layout.artifacts / PHASE / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = save_model(
        path,
        weights,
        {
            "model": name,
            "baked_sha256": baked_sha256,
            "behaviour": json.dumps(asdict(behaviour)),
            "generation": json.dumps(
                generation_defaults(config, sum(t.numel() for t in weights.values()))
            ),
            "steps": str(steps),
            "thoughts_passed": json.dumps(thoughts_passed),
            "shapes": config.model.model_dump_json(),
            "vocab_size": str(tokenizer.vocab_size),
            "tokenizer": tokenizer.fingerprint,
        },
    )
    note_artifact(context, PHASE, artifact_name(name, PHASE), saved)


def generation_defaults(config: RunConfig, params: int) -> dict[str, float | int | bool]:
    """What chat and all gates of Phases 3 and 4 use: temperature, length, thinking on."""
    wanted = config.quietstar
    return {
        "temperature": wanted.temperature,
        "max_new_tokens": answer_tokens(wanted.max_new_tokens, params),
        "thinking": True,
    }


def save_dataset(context: RunContext, reasoning: ReasoningData) -> None:
    """Write what was baked as a set that can be read and baked again; once a run."""
    if DATASET in context.manifest.artifacts:
        return
    folder = context.layout.artifacts / PHASE / "dataset"
    folder.mkdir(parents=True, exist_ok=True)
    rows: Sequence[ReasoningExample] = [e for found in reasoning.examples.values() for e in found]
    metadata = SetMetadata(target=len(rows), tried=len(rows), source=reasoning.source)
    if reasoning.reasoning_set is not None:
        rows, metadata = reasoning.reasoning_set.examples, reasoning.reasoning_set.metadata
    path = folder / EXAMPLES
    write_atomic(path, "".join(f"{e.model_dump_json()}\n" for e in rows))
    write_atomic(folder / METADATA, metadata_json(metadata))
    note_artifact(context, PHASE, DATASET, SavedFile(path, path.stat().st_size, file_sha256(path)))
