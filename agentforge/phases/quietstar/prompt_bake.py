"""The KL form of prompt baking, as an option: asking for a strategy moves into the weights.

The prompt that is baked is the words that ask for one strategy (`step by step: `): afterwards the
model thinks that way where nobody asks. Teacher: the baked model with those words; student: the
same model without them, on the questions that the strategy can solve.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agentforge.config.schema import RunConfig
from agentforge.events import EvalDone, Progress, StageEnded, StageStarted, StepDone
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.optim.hybrid import HybridOptimizer, StepStats
from agentforge.phases.cognate.artifacts import Trained, artifact_name, load_named
from agentforge.phases.cognate.bench import Bench, obey, write_checkpoint
from agentforge.phases.cognate.models import between
from agentforge.phases.cognate.training import load_weights
from agentforge.phases.quietstar.artifacts import save_thinking_model
from agentforge.phases.quietstar.bake import PHASE
from agentforge.phases.quietstar.data import ReasoningData
from agentforge.phases.quietstar.limits import most_tokens
from agentforge.phases.quietstar.policy import question_pool
from agentforge.thinking.distill import baking_kl, written_logits
from agentforge.thinking.questions import Question, ask, prompt_ids
from agentforge.thinking.sampling import sample
from agentforge.thinking.thought import ThoughtReader

PROMPT_BAKED = "prompt_baked"
QUESTIONS = 64
"""Questions a step; each is answered once by the prompted teacher."""
MEASURED = 100


@dataclass(slots=True)
class PromptBaking:
    """The training in progress.

    Attributes:
        model: The student.
        teacher: The baked model, frozen.
        optimizer: Both optimisers.
        step: Steps done.
    """

    model: CognateLM
    teacher: CognateLM
    optimizer: HybridOptimizer
    step: int = 0

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """All tensors, by file of the checkpoint."""
        return {"model": self.model.state_dict(), "optim": self.optimizer.state_tensors()}

    def state(self) -> dict[str, Any]:
        """The rest, as JSON."""
        return {"optimizer": self.optimizer.state_scalars(), "step": self.step}

    def load(self, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Continue where a checkpoint was taken, bit for bit."""
        load_weights(self.model, groups["model"], "checkpoint")
        self.optimizer.load_state(groups["optim"], state["optimizer"])
        self.step = state["step"]


@dataclass(frozen=True, slots=True)
class BakingStep:
    """What one step measured: KL in nats a token, the optimiser's figures, tokens, seconds."""

    kl: float
    stats: StepStats
    tokens: int
    wall_s: float


def prompt_bake(
    bench: Bench, model: CognateLM, baked: Trained, reasoning: ReasoningData
) -> Trained:
    """Bake the words of one strategy into the model; the baked model where none is wanted.

    Raises:
        RunSuspended, RunAborted: They were asked for.
    """
    context, config = bench.context, bench.context.config
    steps = config.quietstar.baking.kl_steps
    found = load_named(context, artifact_name(PROMPT_BAKED, PHASE))
    if found is not None or not steps or bench.finishing:
        return found or baked
    load_weights(model, baked.weights, "baked")
    training = start(config, model)
    strategy = config.quietstar.baking.kl_strategy
    pool = [q for q in question_pool(config, reasoning) if strategy in q.allowed]
    reader = ThoughtReader(reasoning.prepared.tokenizer)
    _tell_use(bench, training.model, baked.behaviour, reader, pool, strategy)
    context.emit(StageStarted(phase=PHASE, stage="train", model=PROMPT_BAKED, steps=steps))
    began = time.perf_counter()
    newest = bench.store.newest_valid().info
    if newest is not None and (newest.phase, newest.stage) == (PHASE, PROMPT_BAKED):
        loaded = bench.store.load(newest)
        training.load(loaded.groups, loaded.state)
    while training.step < steps and not bench.finishing:
        done = take_step(training, config, baked.behaviour, reader, pool, strategy)
        _tell(bench, training, done)
        obey(
            bench,
            training.step,
            PROMPT_BAKED,
            lambda: write_checkpoint(
                bench, PROMPT_BAKED, training.step, training.groups(), training.state()
            ),
        )
    wall_s = time.perf_counter() - began
    context.emit(
        StageEnded(
            phase=PHASE, stage="train", model=PROMPT_BAKED, steps=training.step, wall_s=wall_s
        )
    )
    _tell_use(bench, training.model, baked.behaviour, reader, pool, strategy)
    save_thinking_model(
        context,
        PROMPT_BAKED,
        training.model.state_dict(),
        baked.behaviour,
        reasoning.prepared.tokenizer,
        baked.sha256,
        training.step,
    )
    made = load_named(context, artifact_name(PROMPT_BAKED, PHASE))
    assert made is not None
    return made


def start(config: RunConfig, model: CognateLM) -> PromptBaking:
    """A training at step 0 on a model that holds the baked weights."""
    wanted = config.quietstar.reinforce
    optim = config.cognate.optim.model_copy(
        update={
            "muon_lr": wanted.muon_lr,
            "adamw_lr": wanted.adamw_lr,
            "warmup_steps": 0,
            "grokfast_lambda": 0.0,
        }
    )
    teacher = copy.deepcopy(model).eval()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    steps = max(1, config.quietstar.baking.kl_steps)
    optimizer = HybridOptimizer(
        dict(model.named_parameters()), model.hidden_matrices(), optim, steps
    )
    return PromptBaking(model, teacher, optimizer)


def take_step(
    training: PromptBaking,
    config: RunConfig,
    behaviour: Behaviour,
    reader: ThoughtReader,
    pool: list[Question],
    strategy: str,
) -> BakingStep:
    """The prompted teacher writes, the unprompted student matches it."""
    began = time.perf_counter()
    tokenizer = reader.tokenizer
    luck = random.Random(f"{config.seed}/prompt-bake/{training.step}")
    questions = [pool[luck.randrange(len(pool))] for _ in range(QUESTIONS)]
    prompted = prompt_ids(tokenizer, [q.asked_with(strategy) for q in questions])
    bare = prompt_ids(tokenizer, [q.unnamed() for q in questions])
    found = sample(
        training.teacher,
        prompted,
        behaviour,
        stop_id=tokenizer.eos_id,
        max_new_tokens=most_tokens(config, training.teacher),
        temperature=1.0,
        seed=luck.randrange(2**31),
    )
    written = [[*c.tokens, tokenizer.eos_id] if c.ended else list(c.tokens) for c in found]
    rows = [i for i, w in enumerate(written) if w]
    written = [written[i] for i in rows]
    pad = tokenizer.pad_id
    with torch.no_grad():
        teacher = written_logits(
            training.teacher, behaviour, [prompted[i] for i in rows], written, pad
        )
    training.model.train()
    student = written_logits(training.model, behaviour, [bare[i] for i in rows], written, pad)
    loss = baking_kl(student, teacher)
    training.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    stats = training.optimizer.step(training.step)
    training.step += 1
    return BakingStep(float(loss.detach()), stats, len(student), time.perf_counter() - began)


def _tell_use(
    bench: Bench,
    model: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    pool: list[Question],
    strategy: str,
) -> None:
    """How often the strategy is used where nobody asks for it."""
    config = bench.context.config
    chosen = [q.unnamed() for q in pool[:: max(1, len(pool) // MEASURED)]]
    judged = ask(
        model,
        behaviour,
        reader,
        chosen,
        temperature=config.quietstar.temperature,
        seed=config.seed,
        max_new_tokens=most_tokens(config, model),
        between=lambda: between(bench),
    )
    used = sum(a.strategy == strategy for a in judged.answered) / len(judged.answered)
    bench.context.emit(
        EvalDone(
            phase=PHASE,
            model="baked",
            name="baking/unprompted_usage",
            value=used,
            n=len(chosen),
            split="train",
        )
    )


def _tell(bench: Bench, training: PromptBaking, done: BakingStep) -> None:
    steps = bench.context.config.quietstar.baking.kl_steps
    bench.context.emit(
        StepDone(
            phase=PHASE,
            model=PROMPT_BAKED,
            step=training.step,
            steps=steps,
            loss=done.kl,
            lr=done.stats.lr,
            grad_norm=done.stats.grad_norm,
            tokens=done.tokens,
            tokens_per_s=done.tokens / done.wall_s,
            extra={"baking/prompt_kl": done.kl},
        )
    )
    bench.context.emit(
        Progress(phase=PHASE, done=training.step, total=steps, unit="steps", eta_s=-1.0)
    )
