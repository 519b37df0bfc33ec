"""A model of the `smoke` shapes that has learned the form of a thought: right by luck, often."""

from __future__ import annotations

from pathlib import Path

import torch

from agentforge.config.load import load_config
from agentforge.data.batching import micro_batches
from agentforge.data.prepare import prepare
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.model.loss import HaltingObjective, training_loss
from agentforge.phases.quietstar.data import prepare_reasoning
from agentforge.reasoning.strategies import STRATEGIES
from tests.phases.evomerge_family import write

STEPS, BATCH = 120, 30


def write_form_learner(path: Path) -> None:
    """Train it for some seconds, on one thread, and write it as a model file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = load_config(preset="smoke", env={}).config
    data = prepare_reasoning(config, prepare(config)).prepared
    torch.manual_seed(0)
    model = CognateLM(config.model, data.tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        items = [(s.name, (3 * step + i) % 40) for s in STRATEGIES for i in range(BATCH // 10)]
        batches = micro_batches(data.train, items, 100_000, data.tokenizer.pad_id)
        targets, valid = sum(b.target_count for b in batches), sum(b.valid_count for b in batches)
        optimizer.zero_grad()
        for b in batches:
            loss = training_loss(
                model, b.ids, b.targets, b.valid, Behaviour(), HaltingObjective(0.4, 0.02),
                targets, valid,
            )  # fmt: skip
            loss.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.set_num_threads(threads)
    write(path, {n: t.clone() for n, t in model.state_dict().items()}, "form")
