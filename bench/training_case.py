"""Both contestants of the training benchmark on the same items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from agentforge.config.load import load_config
from agentforge.config.schema import RunConfig
from agentforge.data.batching import MicroBatch, micro_batches
from agentforge.data.corpus import Corpus
from agentforge.data.prepare import Prepared, prepare
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.model.cross_entropy import weighted_cross_entropy
from agentforge.model.language_model import CognateLM
from agentforge.model.loss import IGNORE
from agentforge.optim.hybrid import HybridOptimizer
from agentforge.phases.cognate.stages import base_stage
from agentforge.phases.cognate.training import Training, start_training, take_step
from agentforge.resources import Resolved, TrainingResources
from bench.plain_decoder import PlainDecoder

GPT2_WITH_THINKING = 50_269


@dataclass(slots=True)
class Bench:
    """Both contestants on one list of items."""

    shape: str
    config: RunConfig
    data: Prepared
    resources: TrainingResources
    items: list[tuple[str, int]]
    ours: Training
    plain: PlainDecoder
    plain_optimizer: HybridOptimizer
    taken: int = 0

    @property
    def batches(self) -> list[MicroBatch]:
        """The micro-batches of every step."""
        return micro_batches(
            self.data.train,
            self.items,
            self.ours.micro_batch_tokens,
            self.data.tokenizer.pad_id,
        )

    @property
    def tokens(self) -> int:
        """Non-padding tokens of a step."""
        return sum(b.valid_count for b in self.batches)

    def step_ours(self) -> None:
        """One optimiser step of our model: what Phase 1 does."""
        take_step(self.ours, self.data, self.items, self.resources, 0.02)
        self.ours.step += 1

    def step_plain(self) -> None:
        """One optimiser step of the plain decoder."""
        batches = self.batches
        targets = sum(b.target_count for b in batches)
        self.plain_optimizer.zero_grad()
        embedding = self.plain.embedding
        for batch in batches:
            wanted = batch.targets != IGNORE
            total, _ = weighted_cross_entropy(
                embedding.features(self.plain(batch.ids)[wanted]),
                embedding.table,
                batch.targets[wanted],
                torch.ones(batch.target_count),
                self.resources.vocab_chunk.value,
            )
            (total / targets).backward()  # type: ignore[no-untyped-call]
        self.plain_optimizer.step(self.taken)
        self.taken += 1


def make_bench(shape: str) -> Bench:
    """The demo on the built-in world, or the 25M model on 4 x 256 random tokens."""
    if shape == "demo":
        config = load_config(preset="demo", env={}, sets=["data.world.train_items=512"]).config
        data = prepare(config)
        vocab, micro, chunk = data.tokenizer.vocab_size, 128 * config.model.context, 0
    else:
        config = load_config(preset="full", env={}, sets=["cognate.batch_size=4"]).config
        vocab, micro, chunk = GPT2_WITH_THINKING, 4 * 256, 512
        data = random_text(4, 256, vocab)
    resources = TrainingResources(
        device=Resolved("cpu", "bench"),
        precision=Resolved("fp32", "bench"),
        memory_bytes=Resolved(0, "bench"),
        vocab_chunk=Resolved(chunk, "bench"),
        gradient_checkpointing=Resolved(False, "bench"),
        micro_batch_tokens=Resolved(micro, "bench"),
    )
    torch.manual_seed(0)
    ours = start_training(
        base_stage(config), CognateLM(config.model, vocab), data, resources, (100, 50)
    )
    plain = PlainDecoder(config.model, vocab)
    mix = config.cognate.base.mix if shape == "demo" else {"text": 1.0}
    items = ours.sampler.draw(
        data.weights(mix, 3) if shape == "demo" else mix, config.cognate.batch_size
    )
    optimizer = HybridOptimizer(
        dict(plain.named_parameters()),
        plain.hidden_matrices(),
        config.cognate.optim,
        config.cognate.base.steps,
    )
    return Bench(shape, config, data, resources, items, ours, plain, optimizer)


def random_text(rows: int, length: int, vocab: int) -> Prepared:
    """Text whose every token is a target."""
    ids = np.random.default_rng(0).integers(0, vocab, rows * (length + 1)).astype(np.int32)
    corpus = Corpus(
        name="text",
        category="language",
        tokens=ids,
        offsets=np.arange(rows + 1, dtype=np.int64) * (length + 1),
        first_target=np.ones(rows, dtype=np.int32),
        difficulty=np.zeros(rows, dtype=np.int32),
    )
    return Prepared(world_tokenizer(), {"text": corpus}, {}, {}, (), None, 0.0)
