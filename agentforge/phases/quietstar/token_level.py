"""Quiet-STaR at token level, on ordinary text: trained from the baked model, reported apart."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from agentforge.config.schema import RunConfig
from agentforge.data.corpus import Corpus
from agentforge.evals.stats import Interval, paired_bootstrap
from agentforge.events import Progress, StageEnded, StageStarted, StepDone
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.cognate.bench import Bench, obey, write_checkpoint
from agentforge.phases.cognate.models import between
from agentforge.phases.cognate.training import load_weights
from agentforge.phases.quietstar.bake import PHASE
from agentforge.phases.quietstar.limits import parameters
from agentforge.report import Cell, Table
from agentforge.run.artifacts import note_artifact
from agentforge.run.tensor_file import save_model
from agentforge.sizing import thought_band
from agentforge.thinking.places import hard_places
from agentforge.thinking.thought import ThoughtReader
from agentforge.thinking.token_level import TokenThoughts, sample_thoughts, token_level_loss

STAGE = "token_level"
MOST_THOUGHTS = 4
"""The paper's numbers are 2 to 4; more hardly matter."""
EXTRA_LR = 10.0
"""Learning rate of start and end vectors and mixing head, relative to the model's (paper: 100)."""
CLIP = 1.0


@dataclass(slots=True)
class TokenTraining:
    """The training in progress.

    Attributes:
        model: The model.
        extra: Start, end, mixing head.
        frozen: The baked model.
        optimizer: AdamW over both.
        step: Steps done.
    """

    model: CognateLM
    extra: TokenThoughts
    frozen: CognateLM
    optimizer: torch.optim.AdamW
    step: int = 0

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """All tensors, by file of the checkpoint."""
        state = self.optimizer.state_dict()["state"]
        moments = {
            f"{i}.{name}": value
            for i, row in state.items()
            for name, value in row.items()
            if isinstance(value, Tensor)
        }
        return {
            "model": self.model.state_dict(),
            "extra": self.extra.state_dict(),
            "optim": moments,
        }

    def load(self, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Continue where a checkpoint was taken, bit for bit."""
        load_weights(self.model, groups["model"], "checkpoint")
        self.extra.load_state_dict(dict(groups["extra"]))
        rows: dict[int, dict[str, Tensor]] = {}
        for key, value in groups["optim"].items():
            index, _, name = key.partition(".")
            rows.setdefault(int(index), {})[name] = value
        whole = self.optimizer.state_dict()
        whole["state"] = rows
        self.optimizer.load_state_dict(whole)
        self.step = state["step"]


@dataclass(frozen=True, slots=True)
class TextStep:
    """What one step measured: loss, gradient norm, tokens of thoughts, seconds, W&B figures."""

    loss: float
    grad_norm: float
    tokens: int
    wall_s: float
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class TextThoughts:
    """What thinking within held-out text brings.

    Attributes:
        gain: log p of the future with thoughts minus without, nats a token, over places.
        before: The same before the training.
        controls: The own thought's log-likelihood minus that of a control, nats a token.
        weight: Mean mixing weight.
        places: Places measured.
        steps: Steps trained.
        milliseconds: Clock time of one thought, batched.
    """

    gain: Interval
    before: Interval
    controls: dict[str, Interval]
    weight: float
    places: int
    steps: int
    milliseconds: float


def train_token_level(
    bench: Bench, model: CognateLM, baked: Mapping[str, Tensor], behaviour: Behaviour
) -> TextThoughts | None:
    """Train on text and measure on held-out text; None when the configuration wants none.

    Raises:
        RunSuspended, RunAborted: They were asked for.
    """
    context, config = bench.context, bench.context.config
    wanted = config.quietstar.token_level
    if not wanted.steps or bench.finishing:
        return None
    data = bench.data
    texts = _texts(data.train, wanted.text_tokens)
    held_out = _texts(data.held_out["report"], wanted.text_tokens)[: wanted.report_texts]
    if not texts or not held_out:
        return None
    load_weights(model, baked, "baked")
    reader = ThoughtReader(data.tokenizer)
    training = _start(config, model, reader)
    before = _measure(bench, training, behaviour, reader, held_out)
    context.emit(StageStarted(phase=PHASE, stage=STAGE, model=STAGE, steps=wanted.steps))
    began, first = time.perf_counter(), 0
    found = bench.store.newest_valid().info
    if found is not None and (found.phase, found.stage) == (PHASE, STAGE):
        loaded = bench.store.load(found)
        training.load(loaded.groups, loaded.state)
        first = training.step
    while training.step < wanted.steps and not bench.finishing:
        done = _step(config, training, behaviour, reader, texts)
        _tell(bench, training, done, began, first)
        obey(
            bench,
            training.step,
            STAGE,
            lambda: write_checkpoint(
                bench, STAGE, training.step, training.groups(), {"step": training.step}
            ),
        )
    wall_s = time.perf_counter() - began
    context.emit(
        StageEnded(phase=PHASE, stage=STAGE, model=STAGE, steps=training.step, wall_s=wall_s)
    )
    _save(bench, training)
    after = _measure(bench, training, behaviour, reader, held_out)
    return TextThoughts(
        gain=after.gain,
        before=before.gain,
        controls=after.controls,
        weight=after.weight,
        places=after.places,
        steps=training.step,
        milliseconds=after.milliseconds,
    )


def _start(config: RunConfig, model: CognateLM, reader: ThoughtReader) -> TokenTraining:
    """A training at step 0; the mixing head's weights follow from the run's seed."""
    torch.manual_seed(config.seed + 11)
    extra = TokenThoughts(model, reader.start, reader.end).to(model.rope_cos.device)
    frozen = copy.deepcopy(model).eval()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    lr = config.quietstar.token_level.lr
    optimizer = torch.optim.AdamW(
        [
            {"params": list(model.parameters()), "lr": lr},
            {"params": list(extra.parameters()), "lr": EXTRA_LR * lr},
        ],
        betas=(0.9, 0.98),
        weight_decay=1e-3,
    )
    return TokenTraining(model, extra, frozen, optimizer)


def _texts(corpora: Mapping[str, Corpus], tokens: int) -> list[NDArray[np.int32]]:
    """Items long enough to think in, cut to one length, corpus by corpus in turn."""
    found: list[list[NDArray[np.int32]]] = []
    for corpus in corpora.values():
        rows = [corpus.item(i) for i in range(len(corpus))]
        found.append([row[:tokens] for row in rows if len(row) >= tokens // 2])
    longest = max((len(rows) for rows in found), default=0)
    return [rows[i] for i in range(longest) for rows in found if i < len(rows)]


def _shape(config: RunConfig, model: CognateLM) -> tuple[int, int]:
    """Thoughts a place and tokens of a thought, by the measured size."""
    wanted, band = config.quietstar.token_level, thought_band(parameters(model))
    return (
        wanted.thoughts or min(MOST_THOUGHTS, band.thoughts),
        wanted.length or band.thought_tokens,
    )


def _batch(
    config: RunConfig,
    training: TokenTraining,
    behaviour: Behaviour,
    rows: list[NDArray[np.int32]],
) -> tuple[Tensor, Tensor]:
    """Texts of one length and their places."""
    wanted = config.quietstar.token_level
    _, length = _shape(config, training.model)
    room = training.model.config.context - length - 2 - wanted.talk
    width = min(min(len(r) for r in rows), room)
    device = training.model.rope_cos.device
    ids = torch.from_numpy(np.stack([r[:width] for r in rows]).astype(np.int64)).to(device)
    with torch.no_grad():
        logits = training.frozen.embedding.logits(training.frozen.run(ids, behaviour).answer)
        log_p = F.log_softmax(logits.float(), -1)
        entropy = -(log_p.exp() * log_p).sum(-1)
    return ids, hard_places(entropy, wanted.places, last=width - wanted.talk - 1)


def _step(
    config: RunConfig,
    training: TokenTraining,
    behaviour: Behaviour,
    reader: ThoughtReader,
    texts: list[NDArray[np.int32]],
) -> TextStep:
    """One optimiser step."""
    started = time.perf_counter()
    wanted, model, extra = config.quietstar.token_level, training.model, training.extra
    luck = random.Random(f"{config.seed}/token/{training.step}")
    rows = [texts[luck.randrange(len(texts))] for _ in range(wanted.batch_size)]
    ids, places = _batch(config, training, behaviour, rows)
    thoughts, length = _shape(config, model)
    generator = torch.Generator(ids.device).manual_seed(luck.randrange(2**31))
    model.train()
    written = sample_thoughts(
        model,
        extra,
        ids,
        places,
        behaviour,
        thoughts=thoughts,
        length=length,
        generator=generator,
        forbidden=(reader.tokenizer.eos_id, *sorted(reader.all_ids)),
    )
    found = token_level_loss(model, extra, ids, places, written, behaviour, talk=wanted.talk)
    total = found.total
    if wanted.kl > 0:
        log_p = F.log_softmax(model.embedding.logits(model.run(ids, behaviour).answer).float(), -1)
        with torch.no_grad():
            frozen = training.frozen.embedding.logits(training.frozen.run(ids, behaviour).answer)
            log_q = F.log_softmax(frozen.float(), -1)
        total = total + wanted.kl * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    training.optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    parameters = [*model.parameters(), *extra.parameters()]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, CLIP))
    training.optimizer.step()
    training.step += 1
    return TextStep(
        loss=float(total.detach()),
        grad_norm=norm,
        tokens=written.numel(),
        wall_s=time.perf_counter() - started,
        figures={
            "rl/token_gain": float(found.gain),
            "rl/token_reward_std": float(found.reward_std),
            "rl/token_mixing_weight": float(found.weight),
        },
    )


def _measure(
    bench: Bench,
    training: TokenTraining,
    behaviour: Behaviour,
    reader: ThoughtReader,
    texts: list[NDArray[np.int32]],
) -> TextThoughts:
    """Gain of own thoughts and of controls on held-out text, place by place."""
    config = bench.context.config
    wanted, model, extra = config.quietstar.token_level, training.model, training.extra
    count, length = _shape(config, model)
    model.eval()
    gains: list[float] = []
    controls: dict[str, list[float]] = {"swapped": [], "random": [], "filler": []}
    weights, spent, thought_count = [], 0.0, 0
    size = min(wanted.batch_size, len(texts))
    for start in range(0, len(texts) - size + 1, size):
        between(bench)
        ids, places = _batch(config, training, behaviour, texts[start : start + size])
        generator = torch.Generator(ids.device).manual_seed(config.seed + start)
        began = time.perf_counter()
        written = sample_thoughts(
            model,
            extra,
            ids,
            places,
            behaviour,
            thoughts=count,
            length=length,
            generator=generator,
            forbidden=(reader.tokenizer.eos_id, *sorted(reader.all_ids)),
        )
        spent += time.perf_counter() - began
        thought_count += places.numel() * count

        def likelihood(
            thoughts: Tensor,
            mixing: float | None = None,
            ids: Tensor = ids,
            places: Tensor = places,
        ) -> tuple[Tensor, float]:
            with torch.no_grad():
                found = token_level_loss(
                    model,
                    extra,
                    ids,
                    places,
                    thoughts,
                    behaviour,
                    talk=wanted.talk,
                    mixing_weight=mixing,
                )
            return found.log_likelihood.mean(-1).flatten() / wanted.talk, float(found.weight)

        own, weight = likelihood(written)
        without, _ = likelihood(written[:, :, :1], 0.0)
        gains += (own - without).tolist()
        weights.append(weight)
        chance = torch.randint(
            reader.tokenizer.vocab_size - 14, written.shape, generator=generator, device=ids.device
        )
        filler = torch.full_like(written, reader.tokenizer.encode(" .")[-1])
        for name, other in (
            ("swapped", written.roll(1, dims=0)),
            ("random", chance),
            ("filler", filler),
        ):
            controls[name] += (own - likelihood(other)[0]).tolist()
    seed = config.seed

    def interval(values: list[float]) -> Interval:
        return paired_bootstrap(values, [0.0] * len(values), seed=seed)

    return TextThoughts(
        gain=interval(gains),
        before=interval(gains),
        controls={name: interval(values) for name, values in controls.items()},
        weight=float(np.mean(weights)),
        places=len(gains),
        steps=training.step,
        milliseconds=1000 * spent / max(1, thought_count),
    )


def _save(bench: Bench, training: TokenTraining) -> None:
    """The model with its start and end vectors and mixing head, in one file."""
    context = bench.context
    path = context.layout.artifacts / PHASE / f"{STAGE}.safetensors"
    tensors = {
        **{f"model.{n}": t for n, t in training.model.state_dict().items()},
        **{f"extra.{n}": t for n, t in training.extra.state_dict().items()},
    }
    saved = save_model(
        path,
        tensors,
        {
            "model": STAGE,
            "parent": "baked",
            "steps": str(training.step),
            "shapes": training.model.config.model_dump_json(),
            "tokenizer": bench.data.tokenizer.fingerprint,
        },
    )
    note_artifact(context, PHASE, f"{PHASE}.{STAGE}", saved)


def _tell(
    bench: Bench,
    training: TokenTraining,
    result: TextStep,
    began: float,
    first: int,
) -> None:
    steps = bench.context.config.quietstar.token_level.steps
    spent = time.perf_counter() - began
    done = training.step - first
    bench.context.emit(
        StepDone(
            phase=PHASE,
            model=STAGE,
            step=training.step,
            steps=steps,
            loss=result.loss,
            lr=bench.context.config.quietstar.token_level.lr,
            grad_norm=result.grad_norm,
            tokens=result.tokens,
            tokens_per_s=result.tokens / result.wall_s,
            extra=result.figures,
        )
    )
    bench.context.emit(
        Progress(
            phase=PHASE,
            done=training.step,
            total=steps,
            unit="steps",
            eta_s=(steps - training.step) * spent / done if done > 3 else -1.0,
        )
    )


def token_level_table(found: TextThoughts) -> Table:
    """What thinking within text brings, against controls, as measured."""

    def row(name: str, interval: Interval) -> tuple[Cell, ...]:
        return (name, interval.mean, interval.low, interval.high, interval.low > 0, interval.n)

    rows = [
        row("with thoughts over without, before training", found.before),
        row("with thoughts over without", found.gain),
        *(row(f"own thoughts over {n} ones", i) for n, i in found.controls.items()),
    ]
    return Table(
        name="quietstar/token_level",
        title="Thoughts within text (Quiet-STaR at token level)",
        columns=("comparison", "nats a token", "95 % from", "to", "above 0", "places"),
        rows=tuple(rows),
        note=f"Held-out text, {found.places} places after {found.steps} steps; mean mixing weight "
        f"{found.weight:.3f} (at 0 thoughts are not used); {found.milliseconds:.1f} ms a thought, "
        "batched. Where a control is not beaten, the gain is extra computation, not thinking.",
    )
