"""The reinforcement in progress: everything that must be saved to go on, and one step."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentforge.config.schema import RunConfig
from agentforge.data.batching import micro_batches
from agentforge.data.sampler import MixSampler
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.model.loss import HaltingObjective, training_loss
from agentforge.optim.hybrid import HybridOptimizer
from agentforge.phases.cognate.training import load_weights
from agentforge.phases.quietstar.data import ReasoningData
from agentforge.phases.quietstar.limits import most_tokens
from agentforge.reasoning.builtin import tasks
from agentforge.reasoning.strategies import STRATEGIES
from agentforge.run.rng import RngState, capture_rng, restore_rng
from agentforge.thinking.coherence import coherence
from agentforge.thinking.questions import (
    Judged,
    Question,
    ask,
    prompt_ids,
    question_of_example,
    question_of_task,
)
from agentforge.thinking.reinforce import leave_one_out, policy_loss
from agentforge.thinking.thought import ThoughtReader

LOGIT_BYTES = 128e6
"""Logits of the policy that exist at once, fp32; rows are cut into passes by it."""
POOL = 400
"""Training questions per strategy that the reinforcement draws from, at most."""


@dataclass(slots=True)
class Policy:
    """The model being reinforced.

    Attributes:
        model: Its weights.
        reference: The baked model, frozen: a copy with storage of its own.
        optimizer: Both optimisers and their schedule.
        replay: Cursor of the replayed skills.
        step: Steps done.
        kl_factor: Of the configured KL weight; doubled by every return to a checkpoint.
        rollbacks: Returns to a checkpoint so far.
        rewards: Mean reward of every step so far.
        passed: Whether the thoughts of these weights passed every test; None: not tested.
        ended: No further steps: the tests failed after every return to a checkpoint.
    """

    model: CognateLM
    reference: CognateLM
    optimizer: HybridOptimizer
    replay: MixSampler
    kl_factor: float = 1.0
    step: int = 0
    rollbacks: int = 0
    rewards: list[float] = field(default_factory=list)
    passed: bool | None = None
    ended: bool = False

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """All tensors, by file of the checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optim": self.optimizer.state_tensors(),
            "rng": capture_rng().tensors,
        }

    def state(self) -> dict[str, Any]:
        """The rest, as JSON."""
        return {
            "optimizer": self.optimizer.state_scalars(),
            "replay": self.replay.state(),
            "step": self.step,
            "kl_factor": self.kl_factor,
            "rollbacks": self.rollbacks,
            "rewards": list(self.rewards),
            "passed": self.passed,
            "ended": self.ended,
            "rng": capture_rng().state,
        }

    def load(self, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Continue where a checkpoint was taken, bit for bit.

        Raises:
            CheckpointError: Tensors of another model.
        """
        load_weights(self.model, groups["model"], "checkpoint")
        self.optimizer.load_state(groups["optim"], state["optimizer"])
        self.replay.load_state(state["replay"])
        self.step = state["step"]
        self.kl_factor = state["kl_factor"]
        self.rollbacks = state["rollbacks"]
        self.rewards = list(state["rewards"])
        self.passed = state["passed"]
        self.ended = state["ended"]
        restore_rng(RngState(state["rng"], dict(groups["rng"])))


def start_policy(config: RunConfig, model: CognateLM, reasoning: ReasoningData) -> Policy:
    """A policy at step 0 on a model that holds the baked weights."""
    wanted = config.quietstar.reinforce
    optim = config.cognate.optim.model_copy(
        update={
            "muon_lr": wanted.muon_lr,
            "adamw_lr": wanted.adamw_lr,
            "warmup_steps": 0,
            "cooldown_share": 0.0,
            "grokfast_lambda": 0.0,
        }
    )
    reference = copy.deepcopy(model).eval()
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    return Policy(
        model=model,
        reference=reference,
        optimizer=HybridOptimizer(
            dict(model.named_parameters()), model.hidden_matrices(), optim, max(1, wanted.steps)
        ),
        replay=MixSampler(
            {n: len(reasoning.prepared.train[n]) for n in reasoning.replayed},
            config.seed * 1000 + 9,
        ),
    )


def question_pool(config: RunConfig, reasoning: ReasoningData) -> list[Question]:
    """Training questions of all strategies; which a step takes depends on seed and step alone."""
    if reasoning.reasoning_set is None:
        count = min(POOL, config.quietstar.data.train_items)
        seed = config.seed + 1
        share = config.quietstar.data.named_share
        return [
            question_of_task(t)
            for s in STRATEGIES
            for t in tasks(s.name, "train", count, seed, share)
        ]
    return [question_of_example(e) for rows in reasoning.examples.values() for e in rows[:POOL]]


@dataclass(frozen=True, slots=True)
class PolicyStep:
    """What one step measured.

    Attributes:
        reward: Mean reward.
        accuracy: Share of right answers among the samples.
        converged: Share of well-formed samples.
        kl: Nats a token.
        entropy: Nats a token.
        loss: Total loss.
        thought_length: Mean tokens of a thought.
        filtered: Share of samples that taught nothing because their thought was not coherent.
        grad_norm: Of the whole gradient, before clipping.
        lr: Learning rate of the hidden matrices.
        tokens: Tokens the policy wrote.
        wall_s: Seconds.
    """

    reward: float
    accuracy: float
    converged: float
    kl: float
    entropy: float
    loss: float
    thought_length: float
    filtered: float
    grad_norm: float
    lr: float
    tokens: int
    wall_s: float


def rewards_of(judged: Judged) -> Tensor:
    """1 for a right answer behind a well-formed thought of the strategy asked for, else 0."""
    return torch.from_numpy(judged.right.astype(np.float32))


def take_policy_step(
    policy: Policy,
    config: RunConfig,
    behaviour: Behaviour,
    reasoning: ReasoningData,
    pool: list[Question],
    thoughts: int,
    max_tokens: int,
) -> PolicyStep:
    """Sample, reward, one optimiser step.

    Args:
        policy: The policy; its step is counted here.
        config: The run.
        behaviour: How the deployed model is run.
        reasoning: Corpora of the replay.
        pool: Training questions.
        thoughts: Samples a question.
        max_tokens: Padded tokens of one forward and backward.
    """
    started = time.perf_counter()
    wanted, model = config.quietstar.reinforce, policy.model
    tokenizer = reasoning.prepared.tokenizer
    reader = ThoughtReader(tokenizer)
    luck = random.Random(f"{config.seed}/reinforce/{policy.step}/{policy.rollbacks}")
    questions = [pool[luck.randrange(len(pool))] for _ in range(wanted.prompts)]
    judged = ask(
        model,
        behaviour,
        reader,
        questions,
        temperature=config.quietstar.temperature,
        seed=luck.randrange(2**31),
        max_new_tokens=most_tokens(config, model),
        copies=thoughts,
    )
    rewards = rewards_of(judged)
    advantages = leave_one_out(rewards.view(len(questions), thoughts)).flatten()
    kept = _coherent(policy, config, behaviour, reader, questions, judged)
    advantages = advantages * kept
    prompts = [p for p in prompt_ids(tokenizer, questions) for _ in range(thoughts)]
    written = [
        [*a.tokens, tokenizer.eos_id] if a.ended else list(a.tokens) for a in judged.answered
    ]
    total = sum(len(w) for w in written)
    policy.optimizer.zero_grad()
    model.train()
    sums = torch.zeros(3)
    beta = wanted.kl * policy.kl_factor
    for rows in _passes(prompts, written, max_tokens, model.vocab_size):
        sums += _reinforce_rows(
            policy, behaviour, [prompts[i] for i in rows], [written[i] for i in rows],
            advantages[rows], total, tokenizer.pad_id, beta,
        )  # fmt: skip
    if wanted.replay > 0:
        _replay(policy, config, behaviour, reasoning, max_tokens)
    stats = policy.optimizer.step(policy.step)
    policy.step += 1
    policy.rewards.append(float(rewards.mean()))
    policy.passed = None
    return PolicyStep(
        reward=float(rewards.mean()),
        accuracy=float(judged.right.mean()),
        converged=float(judged.converged.mean()),
        kl=float(sums[1]),
        entropy=float(sums[2]),
        loss=float(sums[0]),
        thought_length=float(np.mean([len(a.thought) for a in judged.answered])),
        filtered=1.0 - float(kept.mean()),
        grad_norm=stats.grad_norm,
        lr=stats.lr,
        tokens=total,
        wall_s=time.perf_counter() - started,
    )


def _coherent(
    policy: Policy,
    config: RunConfig,
    behaviour: Behaviour,
    reader: ThoughtReader,
    questions: list[Question],
    judged: Judged,
) -> Tensor:
    """1 for samples that may teach, 0 for those whose thought is not coherent enough, (rows,)."""
    least, rows = config.quietstar.reinforce.least_coherence, len(judged.answered)
    if least == 0:
        return torch.ones(rows)
    copies = rows // len(questions)
    found = coherence(
        policy.model,
        policy.reference,
        behaviour,
        reader,
        [q for q in questions for _ in range(copies)],
        judged.answered,
        temperature=config.quietstar.temperature,
    )
    return torch.from_numpy((found.score >= least).astype(np.float32))


def _passes(
    prompts: list[list[int]], written: list[list[int]], max_tokens: int, vocab_size: int
) -> list[list[int]]:
    """Rows of one forward and backward each, of similar length, within tokens and logits."""
    lengths = [len(p) + len(w) for p, w in zip(prompts, written, strict=True)]
    most_logits = max(1, int(LOGIT_BYTES / (4 * vocab_size)))
    found: list[list[int]] = []
    logits = 0
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not written[row]:
            continue
        group = found[-1] if found else []
        fits = (len(group) + 1) * lengths[row] <= max_tokens
        if group and fits and logits + len(written[row]) <= most_logits:
            group.append(row)
            logits += len(written[row])
        else:
            found.append([row])
            logits = len(written[row])
    return found


def _reinforce_rows(
    policy: Policy,
    behaviour: Behaviour,
    prompts: list[list[int]],
    written: list[list[int]],
    advantages: Tensor,
    total: int,
    pad_id: int,
    beta: float,
) -> Tensor:
    """Backward of some rows; their part of loss, KL and entropy, (3,)."""
    device = policy.model.rope_cos.device
    width = max(len(p) + len(w) for p, w in zip(prompts, written, strict=True))
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(prompts), width - 1, dtype=torch.bool)
    for i, (prompt, tokens) in enumerate(zip(prompts, written, strict=True)):
        row = [*prompt, *tokens]
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, len(prompt) - 1 : len(row) - 1] = True
    ids, mask = ids.to(device), mask.to(device)
    labels = ids[:, 1:][mask]
    weight = advantages.to(device)[:, None].expand(mask.shape)[mask]
    answer = policy.model.run(ids[:, :-1], behaviour).answer[mask]
    logits = policy.model.embedding.logits(answer)
    with torch.no_grad():
        frozen = policy.reference.run(ids[:, :-1], behaviour).answer[mask]
        reference = policy.reference.embedding.logits(frozen)
    loss = policy_loss(logits, reference, labels, weight, beta)
    share = len(labels) / total
    (loss.total * share).backward()  # type: ignore[no-untyped-call]
    return share * torch.stack((loss.total.detach(), loss.kl, loss.entropy)).cpu()


def _replay(
    policy: Policy,
    config: RunConfig,
    behaviour: Behaviour,
    reasoning: ReasoningData,
    max_tokens: int,
) -> None:
    """Backward of some items of the skills, so that they are not forgotten."""
    wanted = config.quietstar.reinforce
    data = reasoning.prepared
    count = max(1, round(wanted.replay * wanted.prompts))
    items = policy.replay.draw(dict.fromkeys(reasoning.replayed, 1.0), count)
    batches = micro_batches(data.train, items, max_tokens, data.tokenizer.pad_id)
    targets = sum(b.target_count for b in batches)
    valid = sum(b.valid_count for b in batches)
    objective = HaltingObjective(config.cognate.base.halting_prior, 0.0)
    training = Behaviour(write_budget=behaviour.write_budget)
    for batch in batches:
        batch = batch.to(policy.model.rope_cos.device)
        parts = training_loss(
            policy.model, batch.ids, batch.targets, batch.valid, training, objective, targets, valid
        )
        (wanted.replay * parts.total).backward()  # type: ignore[no-untyped-call]
