"""Step 2, Quiet-STaR at answer level: sample thoughts, reward answers, test that they are real."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from agentforge.errors import RunSuspended
from agentforge.events import (
    Alert,
    AlertAction,
    EvalDone,
    LogLine,
    Progress,
    StageEnded,
    StageStarted,
    StepDone,
)
from agentforge.interventions import decide, intervention
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.cognate.bench import Bench, obey, write_checkpoint
from agentforge.phases.cognate.models import between as cognate_between
from agentforge.phases.quietstar.bake import PHASE
from agentforge.phases.quietstar.checks import ask_about_theater, run_tests, tell_tests
from agentforge.phases.quietstar.data import ReasoningData
from agentforge.phases.quietstar.limits import most_tokens
from agentforge.phases.quietstar.policy import (
    Policy,
    PolicyStep,
    question_pool,
    start_policy,
    take_policy_step,
)
from agentforge.reasoning.strategies import STRATEGIES
from agentforge.run.checkpoint import CheckpointInfo
from agentforge.sizing import thought_band
from agentforge.thinking.battery import Battery
from agentforge.thinking.questions import Question, ask
from agentforge.thinking.thought import ThoughtReader

REASONER = "reasoner"
MOST_ROLLBACKS = 3
WINDOW_QUESTIONS = 200
"""Training questions whose mean reward decides whether the reinforcement may start."""
AVERAGED = 100
"""Steps of the documents' running mean of the reward."""

LONGER = AlertAction(
    key="bake_longer",
    label="Bake longer before reinforcing",
    consequence="further baking steps; then the reward is looked at again",
)
HARDER = AlertAction(
    key="harder",
    label="Reinforce the harder half of the strategies only",
    consequence="questions that are almost always right teach nothing and are left out",
)


@dataclass(frozen=True, slots=True)
class Window:
    """The baked model on training questions, before the reinforcement.

    Attributes:
        reward: Mean reward.
        by_strategy: The same by strategy.
        verdict: ``start``, ``bake_longer``, ``harder``, ``continue`` or ``stop``.
        n: Generations.
    """

    reward: float
    by_strategy: dict[str, float]
    verdict: str
    n: int


def look_at_window(
    bench: Bench, model: CognateLM, behaviour: Behaviour, reasoning: ReasoningData, attempt: int
) -> Window:
    """Whether the baked model's mean reward leaves something to learn and something to learn from.

    Args:
        bench: The phase's bench.
        model: Holds the baked weights.
        behaviour: How it is run.
        reasoning: Its data.
        attempt: How often it was baked longer already.
    """
    context, config = bench.context, bench.context.config
    wanted = config.quietstar.reinforce
    pool = question_pool(config, reasoning)
    chosen = pool[:: max(1, len(pool) // WINDOW_QUESTIONS)]
    judged = ask(
        model,
        behaviour,
        ThoughtReader(reasoning.prepared.tokenizer),
        chosen,
        temperature=config.quietstar.temperature,
        seed=config.seed + 3,
        max_new_tokens=most_tokens(config, model),
        copies=2,
        between=lambda: cognate_between(bench),
    )
    reward, found = judged.share(judged.right), judged.by_strategy(judged.right)
    n = len(judged.answered)
    context.emit(
        EvalDone(
            phase=PHASE,
            model="baked",
            name="rl/baked_reward",
            value=reward,
            n=n,
            split="train",
        )
    )
    low, high = wanted.least_reward, wanted.most_reward
    if low <= reward <= high:
        return Window(reward, found, "start", n)
    short = reward < low
    verdict = decide(
        intervention(
            alert_id=f"{PHASE}-window-{attempt}",
            code="reward_window",
            title="Too little to reinforce" if short else "Too easy to learn from",
            detail=f"the baked model's mean reward is {reward:.3f}, wanted {low:g} to {high:g}",
            cause="thoughts were baked too briefly, or the problems are too hard"
            if short
            else "the baked model is right almost always",
            actions=(LONGER,) if short else (HARDER,),
            recommended="bake_longer" if short else "harder",
        ),
        context,
    )
    return Window(reward, found, verdict, n)


def reinforce(
    bench: Bench,
    model: CognateLM,
    behaviour: Behaviour,
    reasoning: ReasoningData,
    window: Window,
    params: int,
) -> Policy:
    """Reinforce a model that holds the baked weights; goes on where a checkpoint was left.

    Raises:
        RunSuspended, RunAborted: They were asked for.
    """
    context, config = bench.context, bench.context.config
    wanted = config.quietstar.reinforce
    policy = start_policy(config, model, reasoning)
    pool = _pool(question_pool(config, reasoning), window)
    thoughts = wanted.thoughts or thought_band(params).thoughts
    reader = ThoughtReader(reasoning.prepared.tokenizer)
    context.emit(StageStarted(phase=PHASE, stage="reinforce", model=REASONER, steps=wanted.steps))
    began = time.perf_counter()
    found = bench.store.newest_valid().info
    if found is not None and (found.phase, found.stage) == (PHASE, REASONER):
        loaded = bench.store.load(found)
        policy.load(loaded.groups, loaded.state)
    else:
        _save(bench, policy, good=True)
    first = policy.step
    while policy.step < wanted.steps and not policy.ended and not bench.finishing:
        result = take_policy_step(
            policy,
            config,
            behaviour,
            reasoning,
            pool,
            thoughts,
            bench.resources.micro_batch_tokens.value,
        )
        _tell_step(bench, policy, result, began, first)
        if policy.step % wanted.check_interval == 0 or policy.step >= wanted.steps:
            _check(bench, policy, behaviour, reader, reasoning)
        obey(bench, policy.step, REASONER, lambda: _save(bench, policy, good=False))
    if policy.passed is None:
        # Ended early, or back at the start: what is handed on is tested whatever it is.
        _test(bench, policy, behaviour, reader, reasoning, last=True)
    context.emit(
        StageEnded(
            phase=PHASE,
            stage="reinforce",
            model=REASONER,
            steps=policy.step,
            wall_s=time.perf_counter() - began,
        )
    )
    return policy


def _pool(pool: list[Question], window: Window) -> list[Question]:
    """All questions, or those of the strategies that are answered worst."""
    if window.verdict != "harder":
        return pool
    names = sorted(window.by_strategy, key=lambda s: window.by_strategy[s])
    hard = set(names[: max(1, len(STRATEGIES) // 2)])
    return [q for q in pool if q.strategy in hard]


def _check(
    bench: Bench,
    policy: Policy,
    behaviour: Behaviour,
    reader: ThoughtReader,
    reasoning: ReasoningData,
) -> None:
    """The tests; a failure rolls back, adjusts or stops. Before hand-off there are more items."""
    last = policy.step >= bench.context.config.quietstar.reinforce.steps
    battery = _test(bench, policy, behaviour, reader, reasoning, last)
    if battery.passed:
        _save(bench, policy, good=True)
        return
    act_on_theater(bench, policy, ask_about_theater(bench.context, battery, policy.step))


def _test(
    bench: Bench,
    policy: Policy,
    behaviour: Behaviour,
    reader: ThoughtReader,
    reasoning: ReasoningData,
    last: bool,
) -> Battery:
    wanted = bench.context.config.quietstar
    battery = run_tests(
        bench.context.config,
        policy.model,
        behaviour,
        reader,
        [q for q in reasoning.search if q.named],
        wanted.battery_items if last else wanted.check_items,
        lambda: cognate_between(bench),
    )
    tell_tests(bench.context, battery, REASONER, "search")
    policy.passed = battery.passed
    return battery


def act_on_theater(bench: Bench, policy: Policy, verdict: str) -> None:
    """Do what was decided after failed tests.

    Raises:
        RunSuspended: It was decided to stop; a checkpoint is written first.
    """
    if verdict == "stop":
        _save(bench, policy, good=False)
        raise RunSuspended("the thoughts failed the anti-theater tests; look at them")
    if verdict == "adjust":
        policy.kl_factor *= 2
    if verdict != "roll_back":
        return
    rollbacks, factor = policy.rollbacks, 2 * policy.kl_factor
    good = bench.store.best()
    if good is not None and good.stage == REASONER:
        failed, loaded = policy.step, bench.store.load(good)
        policy.load(loaded.groups, loaded.state)
    else:
        failed, rollbacks = policy.step, MOST_ROLLBACKS
    # The count seeds the draw of questions: the same steps would lead to the same place.
    policy.rollbacks, policy.kl_factor = rollbacks + 1, factor
    if policy.rollbacks > MOST_ROLLBACKS:
        policy.rollbacks, policy.ended = MOST_ROLLBACKS, True
        bench.context.emit(
            Alert(
                id=f"{PHASE}-theater-end-{failed}",
                level="warning",
                code="theater",
                title="The reinforcement ends here",
                detail=f"the thoughts failed after {MOST_ROLLBACKS} returns to a checkpoint; "
                f"the model of step {policy.step} is handed on",
            )
        )
    _save(bench, policy, good=not policy.ended)


def _save(bench: Bench, policy: Policy, good: bool) -> CheckpointInfo:
    """Write a complete checkpoint; a good one is kept until a newer one is good."""
    info = write_checkpoint(bench, REASONER, policy.step, policy.groups(), policy.state())
    if good:
        bench.store.mark_best(info)
    return info


def _tell_step(bench: Bench, policy: Policy, result: PolicyStep, began: float, first: int) -> None:
    context, config = bench.context, bench.context.config
    steps = config.quietstar.reinforce.steps
    recent = policy.rewards[-AVERAGED:]
    extra = {
        "rl/episode": float(policy.step * config.quietstar.reinforce.prompts),
        "rl/reward": result.reward,
        "rl/avg_reward": float(np.mean(recent)),
        "rl/kl_divergence": result.kl,
        "rl/kl_weight": config.quietstar.reinforce.kl * policy.kl_factor,
        "rl/entropy": result.entropy,
        "rl/converged": result.converged,
        "rl/avg_thought_length": result.thought_length,
        "rl/filtered": result.filtered,
    }
    context.emit(
        StepDone(
            phase=PHASE,
            model=REASONER,
            step=policy.step,
            steps=steps,
            loss=result.loss,
            lr=result.lr,
            grad_norm=result.grad_norm,
            tokens=result.tokens,
            tokens_per_s=result.tokens / result.wall_s,
            extra=extra,
        )
    )
    done = policy.step - first
    rate = done / (time.perf_counter() - began)
    context.emit(
        Progress(
            phase=PHASE,
            done=policy.step,
            total=steps,
            unit="steps",
            eta_s=(steps - policy.step) / rate if done > 3 else -1.0,
        )
    )
    if policy.step == 1:
        text = f"reinforcing: {result.tokens} tokens a step, {result.wall_s:.1f} s the first one"
        context.emit(LogLine(level="info", source=PHASE, text=text))
