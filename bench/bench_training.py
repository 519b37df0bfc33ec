"""Training throughput: our model beside a plain decoder of the same width and executed depth.

    python -m bench.bench_training [--shape demo|full] [--rounds N] [--threads N]
    pytest bench/bench_training.py --benchmark-only

Both take real optimiser steps on the same items, in turn; the ratio is the median over rounds of
the two neighbouring times, so that another job on the machine disturbs both alike. The plain
decoder has one block of its own for every block evaluation of ours (prelude + core x recursion
steps), plain causal attention, the same embedding, feed-forward and optimiser; it has no memory, no
recursion, no halting, no attention statistics. The parts of our step are timed alone, forward and
backward, on the batch's own shapes; ``rest`` is what they leave of the whole step.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agentforge.config.load import load_config
from agentforge.config.schema import ModelConfig, RunConfig
from agentforge.data.batching import MicroBatch, micro_batches
from agentforge.data.corpus import Corpus
from agentforge.data.prepare import Prepared, prepare
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.hardware import summarise
from agentforge.model.attention import window_mask
from agentforge.model.block import Block
from agentforge.model.cross_entropy import weighted_cross_entropy
from agentforge.model.embedding import FactorisedEmbedding
from agentforge.model.halting import log_halting, prior_kl
from agentforge.model.language_model import CognateLM
from agentforge.model.linear import Projection
from agentforge.model.loss import IGNORE
from agentforge.model.record import ForwardRecord
from agentforge.model.rotary import rotary_tables
from agentforge.optim.hybrid import HybridOptimizer
from agentforge.phases.cognate.stages import base_stage
from agentforge.phases.cognate.training import Training, start_training, take_step
from agentforge.resources import Resolved, TrainingResources

RESULTS = Path(__file__).parent / "results" / "training.csv"
TARGET = 0.5
"""Tokens/s of our model as a share of the plain decoder's."""
SHAPES = ("demo", "full")
GPT2_WITH_THINKING = 50_269
PARTS = ("attention", "ffn", "memory", "recursion", "head", "optimizer", "rest")


class PlainDecoder(nn.Module):
    """Pre-norm blocks over the same factorised, tied embedding."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        d = config.d_model
        self.depth = executed_blocks(config)
        gain = (2 * self.depth) ** -0.5
        self.embedding = FactorisedEmbedding(vocab_size, config.embedding_rank, d, config.norm_eps)
        self.blocks = nn.ModuleList(Block(config, None, gain) for _ in range(self.depth))
        cos, sin = rotary_tables(config.context, d // config.n_heads, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        x: Tensor = self.embedding(ids)
        rope = (self.get_buffer("cos")[: ids.shape[1]], self.get_buffer("sin")[: ids.shape[1]])
        for block in self.blocks:
            x = block(x, rope, None)
        return x

    def hidden_matrices(self) -> dict[str, nn.Parameter]:
        """What Muon trains."""
        return {
            f"{n}.weight": m.weight for n, m in self.named_modules() if isinstance(m, Projection)
        }


def executed_blocks(config: ModelConfig) -> int:
    """Blocks evaluated per token at full recursion."""
    return config.n_prelude + config.n_core * config.recursion_steps * config.latent_steps


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
        take_step(self.ours, self.data, self.items, self.resources)
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


def seconds(action: Callable[[], object]) -> float:
    """Clock time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU time of one call, all threads together: what another job on the machine adds least to."""
    started = time.process_time()
    action()
    return time.process_time() - started


def alternate(bench: Bench, rounds: int) -> tuple[list[float], list[float]]:
    """Step times of ours and plain, taken in turn after one warm-up step each."""
    bench.step_ours()
    bench.step_plain()
    ours, plain = [], []
    for _ in range(rounds):
        ours.append(seconds(bench.step_ours))
        plain.append(seconds(bench.step_plain))
    return ours, plain


def part_shares(bench: Bench, repeats: int) -> dict[str, float]:
    """Each part's CPU time, alone on the batch's shapes, as a share of a whole step beside it."""
    model, config = bench.ours.model, bench.config.model
    batches = bench.batches
    passes = config.recursion_steps * config.latent_steps
    runs = [(block, 1) for block in model.prelude] + [(block, passes) for block in model.core]

    def share(part: Callable[[MicroBatch, Tensor], list[Tensor]]) -> float:
        found = []
        for _ in range(repeats):
            total = 0.0
            for batch in batches:
                x = torch.randn(*batch.ids.shape, config.d_model, requires_grad=True)
                total += cpu_seconds(partial(_forward_backward, part, batch, x))
            model.zero_grad()
            found.append(total / cpu_seconds(bench.step_ours))
        return statistics.median(found)

    def attention(batch: MicroBatch, x: Tensor) -> list[Tensor]:
        length = batch.ids.shape[1]
        rope, mask = model.rope(length), window_mask(length, config.window, x.device)
        found = []
        for block, times in runs:
            for _ in range(times):
                assert isinstance(block, Block)
                record = ForwardRecord(valid=batch.valid)
                mixed = block.attention.mix(block.attention_norm(x), rope, mask, record, "x")
                found.append(block.attention.out(mixed))
        return found

    def ffn(_batch: MicroBatch, x: Tensor) -> list[Tensor]:
        found = []
        for block, times in runs:
            for _ in range(times):
                assert isinstance(block, Block)
                found.append(block.ffn(block.ffn_norm(x)))
        return found

    def memory(batch: MicroBatch, x: Tensor) -> list[Tensor]:
        found = []
        for block in model.prelude:
            assert isinstance(block, Block)
            if block.memory is not None and block.memory_gate is not None:
                record = ForwardRecord(valid=batch.valid)
                gate = block.memory_gate(x)
                found.append(gate * (block.memory(x, 1.0, record, "x") - x))
        return found

    def recursion(batch: MicroBatch, x: Tensor) -> list[Tensor]:
        answer: Tensor | None = None
        logits = []
        for step in range(config.recursion_steps):
            for _ in range(config.latent_steps):
                latent = model.inject(None if answer is None else x, x, answer)
            answer = model.update_answer(answer, latent)
            if step + 1 < config.recursion_steps:
                logits.append(model.halting(answer))
        assert answer is not None
        log_p = log_halting(torch.stack(logits)) if logits else torch.zeros(1, 1, 1)
        return [answer, prior_kl(log_p, 0.4)]

    def head(batch: MicroBatch, x: Tensor) -> list[Tensor]:
        wanted = batch.targets != IGNORE
        objective = bench.ours.stage.objective
        found = []
        for step in range(config.recursion_steps):
            early = step + 1 < config.recursion_steps
            position = torch.arange(wanted.shape[1])
            sampled = (batch.targets + position) % objective.early_stride == 0
            chosen = wanted & sampled if early else wanted
            labels = batch.targets[chosen]
            weights = torch.ones(labels.shape, requires_grad=True)
            features = model.embedding.features(x[chosen])
            chunk = bench.resources.vocab_chunk.value
            total, _ = weighted_cross_entropy(
                features, model.embedding.table, labels, weights, chunk
            )
            found.append(total)
        return found

    parts = {
        "attention": attention,
        "ffn": ffn,
        "memory": memory,
        "recursion": recursion,
        "head": head,
    }
    shares = {name: share(part) for name, part in parts.items()}
    shares["optimizer"] = _optimizer_share(bench, repeats)
    shares["rest"] = 1 - sum(shares.values())
    return shares


def _forward_backward(
    part: Callable[[MicroBatch, Tensor], list[Tensor]], batch: MicroBatch, x: Tensor
) -> None:
    outputs = part(batch, x)
    torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])


def _optimizer_share(bench: Bench, repeats: int) -> float:
    spent: list[float] = []
    real = bench.ours.optimizer.step

    def step(index: int) -> Any:
        started = time.process_time()
        stats = real(index)
        spent.append(time.process_time() - started)
        return stats

    bench.ours.optimizer.step = step  # type: ignore[method-assign]
    try:
        whole = [cpu_seconds(bench.step_ours) for _ in range(repeats)]
    finally:
        bench.ours.optimizer.step = real  # type: ignore[method-assign]
    return statistics.median(s / w for s, w in zip(spent, whole, strict=True))


@dataclass(frozen=True, slots=True)
class Result:
    """One run.

    Attributes:
        ours, plain: Tokens/s, medians.
        ratio: Median over rounds of the plain step's time over that of our step beside it.
        shares: Part of our step -> share of its time; sums to 1.
        later_passes: Share of our step spent because of recursion steps 2 to R (all of it: blocks,
            answers, halting, early heads), from steps of the same model with one recursion step.
    """

    ours: float
    plain: float
    ratio: float
    shares: dict[str, float]
    later_passes: float


def run(bench: Bench, rounds: int) -> Result:
    """Measure both contestants and the parts of ours."""
    ours, plain = alternate(bench, rounds)
    ratio = statistics.median(p / o for o, p in zip(ours, plain, strict=True))
    repeats = max(3, rounds // 2)
    return Result(
        ours=bench.tokens / statistics.median(ours),
        plain=bench.tokens / statistics.median(plain),
        ratio=ratio,
        shares=part_shares(bench, repeats),
        later_passes=1 - _one_recursion_step(bench, repeats),
    )


def _one_recursion_step(bench: Bench, repeats: int) -> float:
    """Time of a step with R = 1 as a share of a step with all R, taken in turn."""
    stage = bench.ours.stage
    single = replace(stage, train_behaviour=replace(stage.train_behaviour, recursion_steps=1))
    shares = []
    for _ in range(repeats):
        bench.ours.stage = single
        short = cpu_seconds(bench.step_ours)
        bench.ours.stage = stage
        shares.append(short / cpu_seconds(bench.step_ours))
    return statistics.median(shares)


COLUMNS = (
    "date",
    "shape",
    "model",
    "params",
    "block_evaluations",
    "tokens_per_step",
    "tokens_per_s",
    "ratio",
    *(f"share_{p}" for p in PARTS),
    "share_later_passes",
    "threads",
    "machine",
    "versions",
)


def write_rows(bench: Bench, result: Result, path: Path) -> None:
    """Append one row a contestant; the header is written once."""
    hardware = summarise()
    common = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "shape": bench.shape,
        "block_evaluations": executed_blocks(bench.config.model),
        "tokens_per_step": bench.tokens,
        "threads": torch.get_num_threads(),
        "machine": f"{hardware.cpu}, {platform.system()}",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
    }
    shares = {f"share_{name}": f"{share:.3f}" for name, share in result.shares.items()}
    rows = [
        common
        | shares
        | {
            "model": "ours",
            "params": _params(bench.ours.model),
            "tokens_per_s": round(result.ours),
            "ratio": f"{result.ratio:.3f}",
            "share_later_passes": f"{result.later_passes:.3f}",
        },
        common
        | {
            "model": "plain decoder",
            "params": _params(bench.plain),
            "tokens_per_s": round(result.plain),
            "ratio": "1.000",
        },
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    """Run from the command line and append to the results."""
    parser = argparse.ArgumentParser(description="training tokens/s beside a plain decoder")
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = make_bench(options.shape)
    result = run(bench, options.rounds)
    write_rows(bench, result, options.output)
    print(
        f"{bench.shape}: {bench.tokens} tokens a step in {len(bench.batches)} micro-batches, "
        f"{executed_blocks(bench.config.model)} block evaluations, {options.threads} thread(s)"
    )
    print(f"ours          {_params(bench.ours.model):>12,} params {result.ours:>9,.0f} tokens/s")
    print(f"plain decoder {_params(bench.plain):>12,} params {result.plain:>9,.0f} tokens/s")
    verdict = "met" if result.ratio >= TARGET else "MISSED"
    print(f"ratio {result.ratio:.3f} (target >= {TARGET}: {verdict})")
    for name, share in result.shares.items():
        print(f"  {name:<10} {100 * share:5.1f} %")
    print(f"  because of recursion steps 2..R: {100 * result.later_passes:.1f} %")
    print(f"appended to {options.output}")


def test_training_step_of_ours(benchmark: Any) -> None:
    """pytest-benchmark: one optimiser step of our model at demo shape."""
    torch.set_num_threads(1)
    bench = make_bench("demo")
    benchmark.group = "training step, demo shape"
    benchmark.extra_info["tokens"] = bench.tokens
    benchmark.pedantic(bench.step_ours, rounds=5, warmup_rounds=1)


def test_training_step_of_a_plain_decoder(benchmark: Any) -> None:
    """pytest-benchmark: one optimiser step of the plain decoder at demo shape."""
    torch.set_num_threads(1)
    bench = make_bench("demo")
    benchmark.group = "training step, demo shape"
    benchmark.extra_info["tokens"] = bench.tokens
    benchmark.pedantic(bench.step_plain, rounds=5, warmup_rounds=1)


if __name__ == "__main__":
    main()
