"""What Phase 3 starts from: a model, its run-time settings, its thinking tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from agentforge.data.tokenizers import TextTokenizer
from agentforge.errors import CheckpointError, PreflightError
from agentforge.model.behaviour import Behaviour
from agentforge.reasoning.strategies import STRATEGIES
from agentforge.run.context import RunContext
from agentforge.run.tensor_file import SavedFile, load_model

CHAMPION = "evomerge.champion"
TABLE = "embedding.table"


@dataclass(frozen=True, slots=True)
class StartModel:
    """The model that learns to think.

    Attributes:
        weights: Tensors by name, on the CPU.
        behaviour: How it is run.
        sha256: Hash of its file.
        source: Where it came from, for reports.
    """

    weights: dict[str, Tensor]
    behaviour: Behaviour
    sha256: str
    source: str


def load_start(context: RunContext, tokenizer: TextTokenizer) -> StartModel:
    """The champion of this run's Phase 2, or the file `quietstar.model` names.

    Raises:
        PreflightError: There is no such model, or it has another vocabulary.
        CheckpointError: The file is damaged.
    """
    named = context.config.quietstar.model
    if named is not None:
        path = Path(named).expanduser()
        if not path.is_file():
            raise PreflightError(
                f"quietstar.model {named} is not a file", remedy="name a .safetensors model file"
            )
        read, source = load_model(path), str(path)
        sha256 = ""
    else:
        artifact = context.manifest.artifacts.get(CHAMPION)
        if artifact is None:
            raise PreflightError(
                "Phase 3 has nothing to start from: this run has no champion of Phase 2",
                remedy="run evomerge first, or set quietstar.model to a model file",
            )
        path = context.layout.root / artifact.path
        read = load_model(path, expected=SavedFile(path, artifact.bytes, artifact.sha256))
        source, sha256 = CHAMPION, artifact.sha256
    found = read.metadata.get("tokenizer", tokenizer.fingerprint)
    if found != tokenizer.fingerprint:
        raise PreflightError(
            f"{source} was trained with another vocabulary ({found[:12]}, this run: "
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
    return StartModel(read.tensors, behaviour, sha256, source)


def with_thinking_rows(
    weights: Mapping[str, Tensor], tokenizer: TextTokenizer
) -> dict[str, Tensor]:
    """The model with sensible rows for the twelve tokens, which nothing has trained so far.

    A strategy's token begins as the mean of the words that ask for it; the outer tokens as the mean
    of what opens an answer (Quiet-STaR begins with the em dash, which a small vocabulary lacks).
    """
    table = weights[TABLE].clone()
    start, end, *inner = tokenizer.thinking_ids
    opening = _mean(table, tokenizer.encode("\nA:"))
    table[start], table[end] = opening, opening
    for token, strategy in zip(inner, STRATEGIES, strict=True):
        table[token] = _mean(table, tokenizer.encode(f" {strategy.words}"))
    return {**weights, TABLE: table}


def _mean(table: Tensor, ids: list[int]) -> Tensor:
    return table[torch.tensor(ids, device=table.device)].mean(0)
