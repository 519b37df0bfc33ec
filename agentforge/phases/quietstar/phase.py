"""Phase 3 from a champion to a model that thinks, read from top to bottom."""

from __future__ import annotations

import time

import numpy as np
import torch

from agentforge.data.prepare import prepare
from agentforge.errors import RunSuspended
from agentforge.events import EvalDone, LogLine, StageEnded, StageStarted
from agentforge.interventions import decide, intervention
from agentforge.model.language_model import CognateLM
from agentforge.phases.cognate.artifacts import Trained, artifact_name, load_named
from agentforge.phases.cognate.bench import Bench
from agentforge.phases.cognate.models import between, fresh_model, make_bench
from agentforge.phases.cognate.training import load_weights
from agentforge.phases.quietstar import results as report
from agentforge.phases.quietstar.artifacts import save_dataset, save_thinking_model
from agentforge.phases.quietstar.bake import (
    BAKED,
    FINISHED_EARLY,
    FURTHER,
    PHASE,
    bake,
    bake_stage,
    further_stage,
)
from agentforge.phases.quietstar.checks import run_tests, tell_tests
from agentforge.phases.quietstar.control import further_steps
from agentforge.phases.quietstar.data import ReasoningData, prepare_reasoning
from agentforge.phases.quietstar.figures import final_figures
from agentforge.phases.quietstar.limits import parameters
from agentforge.phases.quietstar.measure import (
    Thinker,
    answer_ms,
    direct_accuracy,
    measure_thinker,
    records_figures,
    skill_scores,
)
from agentforge.phases.quietstar.prompt_bake import prompt_bake
from agentforge.phases.quietstar.reinforce import REASONER, Window, look_at_window, reinforce
from agentforge.phases.quietstar.side import start_further
from agentforge.phases.quietstar.start import CHAMPION, with_thinking_rows
from agentforge.phases.quietstar.token_level import (
    TextThoughts,
    token_level_table,
    train_token_level,
)
from agentforge.phases.start import StartModel, load_start
from agentforge.report import PhaseReport
from agentforge.resources import TrainingResources
from agentforge.run.context import RunContext
from agentforge.run.manifest import Resolved
from agentforge.thinking.coherence import coherence
from agentforge.thinking.thought import ThoughtReader

WINDOW = f"{PHASE}.reward_window"
REWARDS = f"{PHASE}.rewards"
LONGER = "baked_longer"


def run_quietstar(context: RunContext, resources: TrainingResources) -> PhaseReport:
    """Bake, look whether there is something to reinforce, reinforce, test, compare, report.

    Raises:
        PreflightError: There is no model to start from.
        DataError: The reasoning data cannot be used.
        RunSuspended, RunAborted: They were asked for.
        AgentForgeError: A training went wrong, or a file is damaged.
    """
    config = context.config
    data = prepare(config)
    start = load_start(
        context,
        data.tokenizer,
        named=config.quietstar.model,
        key="quietstar.model",
        artifact=CHAMPION,
        missing="Phase 3 has nothing to start from: this run has no champion of Phase 2",
        phase_before="evomerge",
    )
    reasoning = prepare_reasoning(config, data)
    _tell_data(context, reasoning)
    _look_at_quality(context, reasoning)
    save_dataset(context, reasoning)
    model, _ = fresh_model(context, data, resources)
    params = parameters(model)
    _use_threads(context)

    weights = with_thinking_rows(start.weights, data.tokenizer)
    stage = bake_stage(config, start.behaviour, params)
    baked = bake(context, reasoning, resources, model, stage, weights, start.sha256)

    bench = make_bench(context, data, resources)
    bench.phase = PHASE
    bench.finishing = FINISHED_EARLY in context.manifest.resolved
    baked = prompt_bake(bench, model, baked, reasoning)
    baked, window = _into_window(bench, reasoning, model, start, baked, params)
    steps = further_steps(config, reasoning, params) if config.quietstar.control else 0
    if not bench.finishing:
        bench.side = start_further(context, artifact_name(baked.metadata["model"], PHASE), steps)
    try:
        rewards = _reinforced(bench, reasoning, model, start, baked, window, params)
        if bench.side is not None:
            bench.side.wait(lambda: _still_wanted(bench))
            bench.side.take_over()
    finally:
        if bench.side is not None:
            bench.side.stop()
            bench.side = None
    final = load_named(context, artifact_name(REASONER, PHASE))
    assert final is not None
    further = _bake_further(bench, reasoning, model, start, baked, params, steps)
    text = train_token_level(bench, model, baked.weights, start.behaviour)
    return _report(bench, reasoning, model, start, baked, final, further, text, window, rewards)


def _into_window(
    bench: Bench,
    reasoning: ReasoningData,
    model: CognateLM,
    start: StartModel,
    baked: Trained,
    params: int,
) -> tuple[Trained, Window]:
    """The baked model once its reward lies in the window, baked longer where it was short."""
    context, config = bench.context, bench.context.config
    attempt = 0
    while True:
        load_weights(model, baked.weights, BAKED)
        window = look_at_window(bench, model, start.behaviour, reasoning, attempt)
        if window.verdict == "stop":
            raise RunSuspended(
                f"the baked model's mean reward is {window.reward:.3f}; the baked model is kept"
            )
        limit = config.quietstar.baking.max_extensions
        if window.verdict != "bake_longer" or attempt >= limit or bench.finishing:
            break
        attempt += 1
        steps = config.quietstar.baking.extension_steps
        stage = further_stage(config, start.behaviour, params, steps, f"{LONGER}_{attempt}")
        baked = bake(context, reasoning, bench.resources, model, stage, baked.weights, start.sha256)
    context.manifest.resolved[WINDOW] = Resolved(
        value=window.reward, reason=f"mean reward of the baked model: {window.verdict}"
    )
    context.save_manifest()
    return baked, window


def _reinforced(
    bench: Bench,
    reasoning: ReasoningData,
    model: CognateLM,
    start: StartModel,
    baked: Trained,
    window: Window,
    params: int,
) -> list[float]:
    """Reinforce and hand on, unless that is done; the mean reward of every step."""
    context, config = bench.context, bench.context.config
    if load_named(context, artifact_name(REASONER, PHASE)) is not None:
        noted = context.manifest.resolved.get(REWARDS)
        return [float(v) for v in str(noted.value).split()] if noted is not None else []
    load_weights(model, baked.weights, BAKED)
    bench.progress = (0, config.quietstar.reinforce.steps)
    policy = reinforce(bench, model, start.behaviour, reasoning, window, params)
    context.manifest.resolved[REWARDS] = Resolved(
        value=" ".join(f"{r:.6g}" for r in policy.rewards), reason="mean reward of every step"
    )
    save_thinking_model(
        context,
        REASONER,
        model.state_dict(),
        start.behaviour,
        reasoning.prepared.tokenizer,
        baked.sha256,
        policy.step,
        policy.passed,
    )
    return policy.rewards


def _bake_further(
    bench: Bench,
    reasoning: ReasoningData,
    model: CognateLM,
    start: StartModel,
    baked: Trained,
    params: int,
    steps: int,
) -> Trained | None:
    """The fair competitor, baked on for the reinforcement's compute; here or by the side engine."""
    config = bench.context.config
    found = load_named(bench.context, artifact_name(FURTHER, PHASE))
    if found is not None or not steps or bench.finishing:
        return found
    stage = further_stage(config, start.behaviour, params, steps, FURTHER)
    return bake(
        bench.context, reasoning, bench.resources, model, stage, baked.weights, baked.sha256
    )


def _still_wanted(bench: Bench) -> bool:
    """Obey commands while waiting for the side engine; False once it is asked to finish."""
    between(bench)
    return not bench.finishing


def _report(
    bench: Bench,
    reasoning: ReasoningData,
    model: CognateLM,
    start: StartModel,
    baked: Trained,
    final: Trained,
    further: Trained | None,
    text: TextThoughts | None,
    window: Window,
    rewards: list[float],
) -> PhaseReport:
    """Measure every model on the report split."""
    context, config = bench.context, bench.context.config
    reader = ThoughtReader(reasoning.prepared.tokenizer)
    behaviour, questions = start.behaviour, reasoning.report
    context.emit(StageStarted(phase=PHASE, stage="compare", model="", steps=0))
    began = time.perf_counter()

    def look() -> None:
        between(bench)

    load_weights(model, start.weights, "champion")
    champion_right = direct_accuracy(config, model, behaviour, reader, questions, look)
    champion_skills = skill_scores(
        config, model, behaviour, reasoning.prepared, reasoning.replayed, look
    )
    thinkers: dict[str, Thinker] = {}
    models = {report.BAKED: baked, report.FURTHER: further, report.REASONING: final}
    for name, trained in models.items():
        if trained is None:
            continue
        load_weights(model, trained.weights, name)
        thinkers[name] = measure_thinker(
            name,
            config,
            model,
            behaviour,
            reader,
            questions,
            reasoning.prepared,
            reasoning.replayed,
            look,
            votes=name == report.BAKED,
        )
    named = [q for q in questions if q.named]
    items = config.quietstar.battery_items
    load_weights(model, baked.weights, report.BAKED)
    frozen = CognateLM(model.config, model.vocab_size).to(model.rope_cos.device)
    load_weights(frozen, baked.weights, report.BAKED)
    baked_battery = run_tests(config, model, behaviour, reader, named, items, look)
    load_weights(model, final.weights, report.REASONING)
    battery = run_tests(config, model, behaviour, reader, named, items, look)
    tell_tests(context, battery, "reasoner", "report")
    scores = coherence(
        model,
        frozen,
        behaviour,
        reader,
        questions,
        thinkers[report.REASONING].judged.answered,
        temperature=config.quietstar.temperature,
    )
    figures = records_figures(config, model, behaviour, reasoning.prepared, look)
    for name, (value, n) in figures.items():
        context.emit(
            EvalDone(phase=PHASE, model="reasoner", name=name, value=value, n=n, split="report")
        )
    with_thought, timed = answer_ms(config, model, behaviour, reader, questions, True)
    without, _ = answer_ms(config, model, behaviour, reader, questions, False)
    outcome = report.Outcome(
        config=config,
        reasoning=reasoning,
        thinkers=thinkers,
        champion_right=champion_right,
        champion_skills=champion_skills,
        window=window,
        battery=battery,
        baked_battery=baked_battery,
        coherence=scores,
        milliseconds=(with_thought, without, timed),
        rl_steps=final.steps,
        bake_steps=_bake_steps(context),
        further_steps=0 if further is None else further.steps,
        rewards=rewards,
        extra=() if text is None else (token_level_table(text),),
        hours=context.phase_hours(PHASE),
        notes=_notes(context),
    )
    for figure in final_figures(outcome):
        context.emit(figure)
    wall_s = time.perf_counter() - began
    context.emit(StageEnded(phase=PHASE, stage="compare", model="", steps=0, wall_s=wall_s))
    return report.phase_report(outcome)


def _bake_steps(context: RunContext) -> int:
    """Steps of the baking, those of its longer forms included."""
    most = context.config.quietstar.baking.max_extensions
    names = [BAKED, *(f"{LONGER}_{attempt}" for attempt in range(1, most + 1))]
    found = [load_named(context, artifact_name(name, PHASE)) for name in names]
    return sum(trained.steps for trained in found if trained is not None)


def _use_threads(context: RunContext) -> None:
    """The phase's own number of threads, where it has one; else the run's stay as they are."""
    wanted = context.config.quietstar.threads
    if wanted:
        torch.set_num_threads(wanted)


def _tell_data(context: RunContext, reasoning: ReasoningData) -> None:
    """What is baked: how many examples, of whom, how many tokens."""
    counts = [len(rows) for rows in reasoning.examples.values()]
    cut = sum(reasoning.prepared.train[name].cut for name in reasoning.examples)
    lengths = [
        float(np.diff(reasoning.prepared.train[name].offsets).mean()) for name in reasoning.examples
    ]
    text = (
        f"{sum(counts):,} reasoning examples ({reasoning.source}), {min(counts)} to {max(counts)} "
        f"a strategy, {100 * reasoning.right:.1f} % right, {np.mean(lengths):.0f} tokens on "
        f"average, {cut} too long and left out"
    )
    context.emit(LogLine(level="info", source=PHASE, text=text))


def _look_at_quality(context: RunContext, reasoning: ReasoningData) -> None:
    """A set of which many examples were invalid is accepted, but somebody should know.

    Raises:
        RunSuspended: It was decided to stop.
    """
    found = reasoning.reasoning_set
    if found is None or not found.needs_attention:
        return
    faults = ", ".join(f"{k} {v}" for k, v in sorted(found.metadata.faults.items())) or "not noted"
    chosen = decide(
        intervention(
            alert_id=f"{PHASE}-data-quality",
            code="data_quality",
            title="Many reasoning examples are invalid",
            detail=f"{100 * found.valid_share:.1f} % of {found.metadata.tried:,} are valid, 90 % "
            f"wanted; faults: {faults}",
            cause="the models that wrote them do not keep to the form",
            actions=(),
            recommended="continue",
        ),
        context,
    )
    if chosen == "stop":
        raise RunSuspended("the reasoning data are to be looked at first")


def _notes(context: RunContext) -> tuple[str, ...]:
    """What happened that a reader of the report must know."""
    early = context.manifest.resolved.get(FINISHED_EARLY)
    return () if early is None else (f"Ended early: {early.reason}.",)
