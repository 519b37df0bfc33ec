"""A workbench of Phase 1 in a temporary run directory: real context and checkpoints, no engine."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from agentforge.config.load import load_config
from agentforge.config.schema import RunConfig
from agentforge.data.prepare import Prepared, prepare
from agentforge.events import ActionTaken, Alert, Event
from agentforge.model.language_model import CognateLM
from agentforge.phases.cognate.stages import base_stage
from agentforge.phases.cognate.train import Bench, save_checkpoint
from agentforge.phases.cognate.training import Training, start_training
from agentforge.resources import Resolved, TrainingResources
from agentforge.run.checkpoint import CheckpointStore
from agentforge.run.commands import append_command
from agentforge.run.context import RunContext
from agentforge.run.control import Control
from agentforge.run.layout import create_run_dir
from agentforge.run.manifest import new_manifest, save_manifest

SETS = (
    "data.world.train_items=64",
    "cognate.batch_size=8",
    "cognate.divergence_window=10",
    "cognate.plateau_window=10",
    "data.sequence_length=48",
)
"""Small, and with a longest sequence that leaves room to halve a micro-batch."""


def config_of(*sets: str) -> RunConfig:
    return load_config(preset="smoke", env={}, sets=[*SETS, *sets]).config


@cache
def world(seed: int = 42) -> Prepared:
    """The data of `config_of`, made once."""
    return prepare(config_of(f"seed={seed}"))


class Rig:
    """A bench whose events are kept.

    Args:
        folder: Where the run directory is made.
        sets: Changes of the configuration.
        answers: Alert code -> action that a person chooses as soon as the alert is emitted.
    """

    def __init__(self, folder: Path, *sets: str, answers: dict[str, str] | None = None) -> None:
        self.config = config_of(*sets)
        self.layout = create_run_dir(folder, "smoke", self.config.seed)
        self.events: list[Event] = []
        self.answers = answers or {}
        manifest = new_manifest(self.layout, self.config, {})
        save_manifest(self.layout, manifest)
        self.control = Control(self.layout, self.config, self.emit, manifest=manifest)
        self.context = RunContext(
            layout=self.layout,
            manifest=manifest,
            emit=self.emit,
            control=self.control,
            resumed=False,
        )
        self.fitness = 1.0
        self.bench = Bench(
            context=self.context,
            data=world(self.config.seed),
            resources=resources(),
            store=CheckpointStore(self.layout.checkpoints, self.config.storage.keep_last),
            progress=(0, 100),
            fitness=lambda training: self.fitness,
        )

    def emit(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Alert) and event.code in self.answers:
            args = {"alert": event.id, "action": self.answers[event.code]}
            append_command(self.layout, "answer", args, by="ada")

    def training(
        self, steps: int = 6, micro: int = 384, saved: bool = True, curriculum: bool = True
    ) -> Training:
        """A training of the base at step 0, its first checkpoint written as the phase does."""
        torch.manual_seed(self.config.seed)
        model = CognateLM(self.config.model, self.bench.data.tokenizer.vocab_size)
        windows = (self.config.cognate.divergence_window, self.config.cognate.plateau_window)
        stage = replace(base_stage(self.config), steps=steps, curriculum=curriculum)
        training = start_training(stage, model, self.bench.data, resources(micro), windows)
        if saved:
            save_checkpoint(self.bench, training)
        return training

    def alerts(self, code: str = "") -> list[Alert]:
        return [e for e in self.events if isinstance(e, Alert) and code in ("", e.code)]

    def actions(self) -> list[str]:
        return [e.action for e in self.events if isinstance(e, ActionTaken)]

    def of(self, kind: type[Event]) -> list[Event]:
        return [e for e in self.events if isinstance(e, kind)]


def resources(micro: int = 384) -> TrainingResources:
    """Single precision on the CPU."""
    return TrainingResources(
        device=Resolved("cpu", "test"),
        precision=Resolved("fp32", "test"),
        memory_bytes=Resolved(10**9, "test"),
        vocab_chunk=Resolved(0, "test"),
        gradient_checkpointing=Resolved(False, "test"),
        micro_batch_tokens=Resolved(micro, "test"),
    )


def weights(training: Training) -> dict[str, torch.Tensor]:
    """A copy of a model's weights."""
    return {k: v.clone() for k, v in training.model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
