"""A base and three models of the `smoke` shapes as files, made in a second instead of trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from agentforge.config.load import load_config
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.run.tensor_file import SavedFile, save_model

NAMES = ("one", "two", "three")
BEHAVIOURS = {
    "base": Behaviour(0.5, 1.0),
    "one": Behaviour(0.6, 0.5),
    "two": Behaviour(0.5, 1.0),
    "three": Behaviour(0.4, 0.25),
}


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """Fresh weights of the `smoke` model."""
    config = load_config(preset="smoke", env={}).config
    torch.manual_seed(seed)
    model = CognateLM(config.model, world_tokenizer().vocab_size)
    return {n: t.clone() for n, t in model.state_dict().items()}


def around(base: dict[str, Tensor], seed: int, size: float = 0.05) -> dict[str, Tensor]:
    """A neighbour of a model."""
    generator = torch.Generator().manual_seed(seed)
    return {n: t + size * torch.randn(t.shape, generator=generator) for n, t in base.items()}


def write(
    path: Path, weights: dict[str, Tensor], name: str, base_sha256: str = "", **metadata: str
) -> SavedFile:
    """A model file as Phase 1 writes it."""
    return save_model(
        path,
        weights,
        {
            "model": name,
            "base_sha256": base_sha256,
            "behaviour": json.dumps(asdict(BEHAVIOURS.get(name, Behaviour()))),
            "tokenizer": world_tokenizer().fingerprint,
            "steps": "1",
            **metadata,
        },
    )


def write_family(folder: Path, seed: int = 0) -> list[str]:
    """Files of a base and three models; the settings that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = random_weights(seed)
    base = write(folder / "base.safetensors", weights, "base")
    for i, name in enumerate(NAMES):
        model = around(weights, seed + 1 + i)
        write(folder / f"{name}.safetensors", model, name, base.sha256)
    return sets(folder)


def sets(folder: Path, names: tuple[str, ...] = NAMES, base: str = "base") -> list[str]:
    """Settings of a run that merges these files."""
    files = json.dumps([str(folder / f"{n}.safetensors") for n in names])
    return [
        'phases=["evomerge"]',
        f"evomerge.models={files}",
        f"evomerge.base={folder / base}.safetensors",
    ]
