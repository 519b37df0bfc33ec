"""Phase 1 from nothing to three trained, mergeable specialists, read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping

from agentforge.data.prepare import Prepared, prepare
from agentforge.errors import RunSuspended
from agentforge.events import AlertAction, LogLine, StageEnded, StageStarted
from agentforge.interventions import decide, intervention
from agentforge.model.count import count_model
from agentforge.model.language_model import CognateLM
from agentforge.phases.cognate.artifacts import (
    Trained,
    artifact_name,
    forget,
    load_trained,
)
from agentforge.phases.cognate.bench import Bench
from agentforge.phases.cognate.diversity import diversity
from agentforge.phases.cognate.figures import final_figures
from agentforge.phases.cognate.measure import Measured, measure_model
from agentforge.phases.cognate.models import (
    between,
    fresh_model,
    get_model,
    make_bench,
)
from agentforge.phases.cognate.results import Results, phase_report, skills_of
from agentforge.phases.cognate.side import start_controls
from agentforge.phases.cognate.stages import (
    BASE,
    Stage,
    ablation_stage,
    base_stage,
    specialist_stages,
)
from agentforge.phases.cognate.tasks import TaskResults, measure_tasks
from agentforge.phases.cognate.train import FINISHED_EARLY, PHASE
from agentforge.phases.cognate.training import load_weights
from agentforge.report import PhaseReport
from agentforge.resources import TrainingResources
from agentforge.run.context import RunContext
from agentforge.run.manifest import Resolved
from agentforge.run.storage import directory_bytes
from agentforge.sizing import longest_sequence

APART = "cognate.trained_apart"

TRAIN_APART = AlertAction(
    key="train_apart",
    label="Train the specialists again, further apart",
    consequence="own shares and halting priors are moved apart; the three trainings run again",
)


def run_cognate(context: RunContext, resources: TrainingResources) -> PhaseReport:
    """Train, measure, report.

    Raises:
        RunSuspended, RunAborted: They were asked for.
        AgentForgeError: Data, disk or training that cannot go on.
    """
    config = context.config
    data = prepare(config)
    _tell_data(context, data)
    data.tokenizer.save(context.layout.artifacts / "tokenizer")
    model, fresh = fresh_model(context, data, resources)
    bench = make_bench(context, data, resources)

    trunk = base_stage(config)
    base = get_model(bench, trunk, model, fresh, "")
    bench.side = None if bench.finishing else start_controls(context, base.steps)
    try:
        models, measured = _specialists(bench, model, trunk, base)
        if _too_alike(bench, measured):
            context.manifest.resolved[APART] = Resolved(value=True, reason="diversity was too low")
            forget(context, [name for name in models if name != BASE])
            models, measured = _specialists(bench, model, trunk, base)
        if bench.side is not None:
            bench.side.wait(lambda: _still_wanted(bench))
            bench.side.take_over()
    finally:
        if bench.side is not None:
            bench.side.stop()
            bench.side = None

    ablations: dict[str, Measured] = {}
    for left_out in config.cognate.ablations:
        stage = ablation_stage(config, left_out, base.steps)
        if bench.finishing and load_trained(context, stage) is None:
            continue
        control = get_model(bench, stage, model, fresh, "")
        load_weights(model, control.weights, left_out)
        ablations[left_out] = _measure(bench, model, stage.model, stage, skills_of(data) or None)

    equal: dict[str, Measured] = {}
    tasks: dict[str, TaskResults] = {}
    for name, trained in models.items():
        load_weights(model, trained.weights, name)
        if name != BASE and skills_of(data):
            equal[name] = _measure(bench, model, name, trunk, skills_of(data), stage="equal")
        if data.inventory is not None and config.cognate.task_items:
            tasks[name] = _tasks(bench, model, name, trained)
    results = Results(
        config=config,
        data=data,
        models=models,
        measured=measured,
        equal=equal,
        ablations=ablations,
        tasks=tasks,
        count=count_model(model),
        search_fitness=_search_fitness(bench, model, base, trunk),
        hours=context.phase_hours(PHASE),
        disk_bytes=directory_bytes(context.layout.root),
        file_bytes={n: context.manifest.artifacts[artifact_name(n)].bytes for n in models},
        notes=_notes(context),
    )
    for figure in final_figures(results):
        context.emit(figure)
    return phase_report(results)


def _specialists(
    bench: Bench, model: CognateLM, trunk: Stage, base: Trained
) -> tuple[dict[str, Trained], dict[str, Measured]]:
    """Train (or read back) the three branches and measure them and the base."""
    stages = specialist_stages(bench.context.config, APART in bench.context.manifest.resolved)
    models = {BASE: base}
    for stage in stages:
        models[stage.model] = get_model(bench, stage, model, base.weights, base.sha256)
    measured = {}
    for stage in (trunk, *stages):
        load_weights(model, models[stage.model].weights, stage.model)
        measured[stage.model] = _measure(bench, model, stage.model, stage, timed=True)
    return models, measured


def _measure(
    bench: Bench,
    model: CognateLM,
    name: str,
    run_as: Stage,
    only: list[str] | None = None,
    stage: str = "measure",
    timed: bool = False,
) -> Measured:
    """Measure the loaded weights on the report split, run as a stage says."""
    started = time.perf_counter()
    bench.context.emit(StageStarted(phase=PHASE, stage=stage, model=name, steps=0))
    measured = measure_model(
        name,
        model,
        run_as.behaviour,
        bench.data,
        "report",
        bench.context.config.cognate.eval_batch,
        lambda: between(bench),
        only,
        timed,
    )
    wall_s = time.perf_counter() - started
    bench.context.emit(StageEnded(phase=PHASE, stage=stage, model=name, steps=0, wall_s=wall_s))
    return measured


def _tasks(bench: Bench, model: CognateLM, name: str, trained: Trained) -> TaskResults:
    """Benchmarks of real records."""
    started = time.perf_counter()
    bench.context.emit(StageStarted(phase=PHASE, stage="tasks", model=name, steps=0))
    config = bench.context.config
    results = measure_tasks(
        model,
        trained.behaviour,
        bench.data,
        config.cognate.task_items,
        longest_sequence(config),
        lambda: between(bench),
    )
    wall_s = time.perf_counter() - started
    bench.context.emit(StageEnded(phase=PHASE, stage="tasks", model=name, steps=0, wall_s=wall_s))
    return results


def _search_fitness(
    bench: Bench, model: CognateLM, base: Trained, trunk: Stage
) -> tuple[float, int] | None:
    """Fitness of the base on the search split and its items; None without skills."""
    skills = skills_of(bench.data)
    if not skills:
        return None
    load_weights(model, base.weights, BASE)
    found = measure_model(
        BASE,
        model,
        trunk.behaviour,
        bench.data,
        "search",
        bench.context.config.cognate.eval_batch,
        lambda: between(bench),
        skills,
        timed=False,
    )
    return found.accuracy(skills), sum(len(found.results[s].correct) for s in skills)


def _too_alike(bench: Bench, measured: Mapping[str, Measured]) -> bool:
    """Whether the specialists are to be trained again, further apart; asked once."""
    context = bench.context
    limit = context.config.gates.diversity
    spread = diversity({n: m.profile for n, m in measured.items() if n != BASE})
    declared = "cognate.diversity" in context.config.gates.not_in_run
    if spread.score > limit or declared or bench.finishing:
        return False
    if APART in context.manifest.resolved:
        return False
    alert = intervention(
        alert_id="cognate-low-diversity",
        code="low_diversity",
        title="The three specialists are too alike",
        detail=f"score {spread.score:.3f}, wanted above {limit}: halting "
        f"{spread.halting_steps:.3f}, memory {spread.memory_usage:.3f}, "
        f"block evaluations {spread.block_evaluations:.3f}",
        cause="data mixes, halting priors or write budgets lie too close together",
        actions=(TRAIN_APART,),
        recommended="train_apart",
    )
    chosen = decide(alert, context)
    if chosen == "stop":
        raise RunSuspended(
            "the specialists are too alike; resume with --on-alert auto to train them again "
            "further apart, or with --on-alert ignore to go on"
        )
    return chosen == "train_apart"


def _tell_data(context: RunContext, data: Prepared) -> None:
    """State what is trained on, and what is not there."""
    lines = [
        f"{name}: {len(corpus):,} training items, {corpus.target_count:,} target tokens"
        + (f", {corpus.cut} cut" if corpus.cut else "")
        for name, corpus in data.train.items()
    ]
    for line in lines:
        context.emit(LogLine(level="info", source="data", text=line))
    if data.inventory is not None:
        for missing in data.inventory.missing:
            text = f"{missing.entry.name} is not trained on: {missing.reason}"
            context.emit(LogLine(level="warning", source="data", text=text))


def _still_wanted(bench: Bench) -> bool:
    """Whether to go on waiting for the controls; obeys commands meanwhile."""
    between(bench)
    return not bench.finishing


def _notes(context: RunContext) -> tuple[str, ...]:
    """What happened that a reader of the report must know."""
    resolved = context.manifest.resolved
    notes = []
    if FINISHED_EARLY in resolved:
        notes.append(f"Ended early: {resolved[FINISHED_EARLY].reason}.")
    if APART in resolved:
        notes.append("The specialists were trained a second time, further apart (low diversity).")
    return tuple(notes)
