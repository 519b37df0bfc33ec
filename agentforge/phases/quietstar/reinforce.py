"""Step 2, Quiet-STaR at answer level: sample thoughts, reward answers, test that they are real."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from agentforge.errors import RunAborted, RunSuspended
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
from agentforge.phases.cognate.models import between as cognate_between
from agentforge.phases.cognate.train import Bench
from agentforge.phases.quietstar.bake import FINISHED_EARLY, PHASE
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
from agentforge.run.manifest import Resolved
from agentforge.sizing import thought_band
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
    pool = _pool(config.quietstar.data.named_share, question_pool(config, reasoning), window)
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
        if policy.step % wanted.check_interval == 0 and policy.step < wanted.steps:
            _check(bench, policy, behaviour, reader, reasoning)
        _listen(bench, policy)
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


def _pool(named_share: float, pool: list[Question], window: Window) -> list[Question]:
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
    """The tests; a failure rolls back, adjusts or stops."""
    context, config = bench.context, bench.context.config
    named = [q for q in reasoning.search if q.named]
    battery = run_tests(
        config,
        policy.model,
        behaviour,
        reader,
        named,
        config.quietstar.check_items,
        lambda: cognate_between(bench),
    )
    tell_tests(context, battery, REASONER, "search")
    if battery.passed:
        _save(bench, policy, good=True)
        return
    act_on_theater(bench, policy, ask_about_theater(context, battery, policy.step))


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
    rollbacks, factor = policy.rollbacks + 1, 2 * policy.kl_factor
    good = bench.store.best()
    if rollbacks > MOST_ROLLBACKS or good is None or good.stage != REASONER:
        bench.context.emit(
            Alert(
                id=f"{PHASE}-theater-end-{policy.step}",
                level="warning",
                code="theater",
                title="No further return to a checkpoint",
                detail=f"{policy.rollbacks} returns; the reinforcement ends here",
            )
        )
        policy.kl_factor, policy.ended = factor, True
        _save(bench, policy, good=False)
        return
    loaded = bench.store.load(good)
    policy.load(loaded.groups, loaded.state)
    # Another draw of questions, or the same steps would lead to the same place.
    policy.rollbacks, policy.kl_factor = rollbacks, factor
    _save(bench, policy, good=True)


def _save(bench: Bench, policy: Policy, good: bool) -> CheckpointInfo:
    """Write a complete checkpoint; a good one is kept until a newer one is good."""
    if good:
        policy.good_step = policy.step
    info = bench.store.save(
        phase=PHASE,
        stage=REASONER,
        step=policy.step,
        groups=policy.groups(),
        state=policy.state(),
    )
    if good:
        bench.store.mark_best(info)
    bench.context.emit(info.event(bench.context.layout))
    bench.context.save_manifest()
    return info


def _listen(bench: Bench, policy: Policy) -> None:
    """The step boundary: commands, checkpoints."""
    context, config = bench.context, bench.context.config
    due = policy.step % config.storage.checkpoint_interval == 0
    if bench.side is not None:
        bench.side.pass_on()
    while True:
        asked = context.control.poll(policy.step)
        if asked.abort:
            raise RunAborted(f"aborted at step {policy.step} of the reinforcement")
        if due or asked.checkpoint or asked.suspend:
            _save(bench, policy, good=False)
            context.control.done(asked, "checkpoint")
            due = False
        if asked.suspend:
            raise RunSuspended(f"suspended at step {policy.step} of the reinforcement")
        if asked.finish:
            end_early(bench, f"at step {policy.step} of the reinforcement")
            context.control.done(asked, "finish", message="no more steps are taken")
        if not asked.paused:
            return


def end_early(bench: Bench, when: str) -> None:
    """End the phase: no more steps, now or after a resume."""
    bench.finishing = True
    bench.context.manifest.resolved[FINISHED_EARLY] = Resolved(
        value=True, reason=f"asked for {when}"
    )
    bench.context.save_manifest()


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
