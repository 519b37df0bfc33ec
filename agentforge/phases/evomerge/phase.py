"""Phase 2 from three specialists to one champion, read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from agentforge.config.schema import RunConfig
from agentforge.data.corpus import Corpus
from agentforge.data.prepare import Prepared, prepare
from agentforge.data.splits import Split
from agentforge.errors import PreflightError, RunAborted, RunSuspended
from agentforge.events import LogLine, StageEnded, StageStarted
from agentforge.merge.apply import plain_mean
from agentforge.merge.geometry import geometry
from agentforge.merge.groups import block_places
from agentforge.merge.validity import invalid_reason
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.cognate.models import fresh_model
from agentforge.phases.cognate.results import skills_of
from agentforge.phases.evomerge import results as report
from agentforge.phases.evomerge.artifacts import load_search, save_champion, save_search
from agentforge.phases.evomerge.barrier import scan_barriers
from agentforge.phases.evomerge.control import train_control
from agentforge.phases.evomerge.data_flow import search_data_flow
from agentforge.phases.evomerge.evaluator import Evaluator, free_memory, make_evaluator
from agentforge.phases.evomerge.evolution import (
    FINISHED_EARLY,
    PHASE,
    evolve,
    finish_early,
)
from agentforge.phases.evomerge.figures import final_figures
from agentforge.phases.evomerge.fitness import Results, Terms, first_items, reference, terms
from agentforge.phases.evomerge.history import Evolution
from agentforge.phases.evomerge.measuring import Job, Settings, block_count
from agentforge.phases.evomerge.members import weights_sha256
from agentforge.phases.evomerge.parents import Family, Parent, load_family
from agentforge.phases.evomerge.search import Search, Weights, place_for_weights
from agentforge.report import PhaseReport, Table
from agentforge.resources import TrainingResources
from agentforge.run.checkpoint import CheckpointStore
from agentforge.run.context import RunContext
from agentforge.run.tensor_file import load_model
from agentforge.sizing import fitness_band


def run_evomerge(context: RunContext, resources: TrainingResources) -> PhaseReport:
    """Check, search, re-score, compare, report.

    Raises:
        PreflightError: The models cannot be merged.
        RunSuspended, RunAborted: They were asked for.
        AgentForgeError: Nothing can be measured any more, or a file is damaged.
    """
    config = context.config
    data = prepare(config)
    data.tokenizer.save(context.layout.artifacts / "tokenizer")
    model, _ = fresh_model(context, data, resources)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    family = load_family(context, data.tokenizer, shapes)
    settings = _settings(config, data)
    evaluator = make_evaluator(model, settings, config.evomerge.workers, context.emit)
    try:
        return _run(context, resources, data, model, family, settings, evaluator)
    finally:
        evaluator.close()


def _run(
    context: RunContext,
    resources: TrainingResources,
    data: Prepared,
    model: CognateLM,
    family: Family,
    settings: Settings,
    evaluator: Evaluator,
) -> PhaseReport:
    own = {p.name: p.behaviour for p in family.models}
    _stage(context, "parents")
    found = _measure(context, evaluator, {p.name: (p, own[p.name]) for p in family.models})
    as_base = {p.name: (p, family.base.behaviour) for p in family.models}
    ends = _measure(context, evaluator, as_base)
    barriers = scan_barriers(context, family, ends, evaluator, lambda: _obey(context))
    shape = geometry(family.base.weights, [p.weights for p in family.models])
    search = _search(context, family, found, settings, evaluator, model)

    store = CheckpointStore(context.layout.checkpoints, context.config.storage.keep_last)
    evolution = load_search(search)
    if evolution is None:
        _stage(context, "evolution", steps=context.config.evomerge.generations)
        began = time.perf_counter()
        evolution = evolve(search, store)
        save_search(search, evolution)
        _ended(context, "evolution", evolution.generation, time.perf_counter() - began)

    rescored = _rescore(search, evolution, family)
    winner = max(rescored, key=lambda r: (r.fitness, -r.member.number)).member
    weights = search.weights(winner.sha256)
    saved = save_champion(search, evolution, winner, weights, data.tokenizer)
    control = train_control(
        context, data, resources, model, family.base.weights, family.base.sha256
    )

    _stage(context, "compare")
    read = load_model(saved.path, expected=saved).tensors
    models: dict[str, tuple[Weights, Behaviour]] = {
        report.CHAMPION: (read, winner.behaviour),
        **{p.name: (p.weights, p.behaviour) for p in family.models},
        report.BASE: (family.base.weights, family.base.behaviour),
        report.PLAIN_MEAN: _plain_mean(search, family),
        report.BEST_COMBO: _best_combo(search, evolution),
    }
    if control is not None:
        models[report.CONTROL] = (control.weights, control.behaviour)
    jobs = [Job(w, b, "report") for w, b in models.values()]
    answers = evaluator.measure(jobs, lambda: _obey(context))
    results = {n: a.results for n, a in zip(models, answers, strict=True)}
    summed = {n: search.terms(r) for n, r in results.items()}
    names = tuple(p.name for p in family.models)
    against = reference([summed[n] for n in names], fitness_band(_params(family.base)))
    compared = {n: report.compare(results[n], summed[n], against, settings.exact) for n in models}
    extra: tuple[Table, ...] = ()
    if context.config.evomerge.data_flow_steps:
        layers = {report.CHAMPION: read, **{p.name: p.weights for p in family.models}}
        score = summed[report.CHAMPION].accuracy
        extra = (
            search_data_flow(
                search, settings, layers, winner.behaviour, score, lambda: _obey(context)
            ),
        )
    usable = invalid_reason(read, family.base.weights) is None
    outcome = report.Outcome(
        config=context.config,
        parents=names,
        compared=compared,
        exact=settings.exact,
        evolution=evolution,
        rescored=rescored,
        champion=winner,
        champion_valid=usable and summed[report.CHAMPION].finite,
        barriers=barriers,
        family=shape,
        control_steps=None if control is None else control.steps,
        hours=context.phase_hours(PHASE),
        extra=extra,
        notes=_notes(context, evolution),
    )
    for figure in final_figures(outcome):
        context.emit(figure)
    return report.phase_report(outcome)


def _settings(config: RunConfig, data: Prepared) -> Settings:
    """Skills of the world, or every dataset of real records, on the three held-out splits."""
    skills = skills_of(data)
    held_out: dict[Split, dict[str, Corpus]] = {
        split: {n: c for n, c in corpora.items() if not skills or n in skills}
        for split, corpora in data.held_out.items()
    }
    if config.evomerge.search_items:
        most = config.evomerge.search_items
        held_out["search"] = {n: c.part(0, most) for n, c in held_out["search"].items()}
    return Settings(held_out, bool(skills), data.tokenizer.pad_id, config.cognate.eval_batch)


def _search(
    context: RunContext,
    family: Family,
    found: Mapping[str, Results],
    settings: Settings,
    evaluator: Evaluator,
    model: CognateLM,
) -> Search:
    """The workbench, with weights where there is room for them."""
    config = context.config
    device = model.rope_cos.device
    size = sum(t.numel() * t.element_size() for t in family.base.weights.values())
    free = {d.type: free_memory(d) for d in (device, torch.device("cpu"))}
    # A member may merge three losers that nobody else needs: four models each at most.
    place, room = place_for_weights(device, size, 4 * config.evomerge.population, free)
    context.emit(
        LogLine(
            level="info",
            source="evomerge",
            text=f"up to {room} members and their sources are kept on {place.type} "
            f"({size / 2**20:.1f} MiB each, {free[place.type] / 1e9:.1f} GB free)",
        )
    )
    parents = [{n: t.to(place) for n, t in p.weights.items()} for p in family.models]
    by_hash = {weights_sha256(p): p for p in parents}
    if len(by_hash) < len(parents):
        raise PreflightError(
            f"two of the models {', '.join(p.name for p in family.models)} have the same weights",
            remedy="merge three different models",
        )
    band = fitness_band(_params(family.base))
    count = block_count(model)

    def summed(results: Sequence[Results]) -> list[Terms]:
        return [terms(r, settings.exact, count, size) for r in results]

    firsts = [first_items(r, config.evomerge.race_items or 1) for r in found.values()]
    return Search(
        context=context,
        family=family,
        base={n: t.to(place) for n, t in family.base.weights.items()},
        parents=by_hash,
        reference=reference(summed(list(found.values())), band),
        race_reference=reference(summed(firsts), band),
        evaluator=evaluator,
        blocks=len(set(block_places(family.base.weights).values())),
        block_count=count,
        exact=settings.exact,
        room=room,
    )


def _measure(
    context: RunContext,
    evaluator: Evaluator,
    models: Mapping[str, tuple[Parent, Behaviour]],
) -> dict[str, Results]:
    """Models on the search split."""
    jobs = [Job(p.weights, behaviour, "search") for p, behaviour in models.values()]
    answers = evaluator.measure(jobs, lambda: _obey(context))
    return {name: a.results for name, a in zip(models, answers, strict=True)}


def _rescore(search: Search, evolution: Evolution, family: Family) -> list[report.Rescored]:
    """The best members and the parents on the re-score split."""
    _stage(search.context, "rescore")
    top = evolution.top(search.config.rescore)
    jobs = [Job(p.weights, p.behaviour, "rescore") for p in family.models]
    jobs += [Job(search.weights(m.sha256), m.behaviour, "rescore") for m in top]
    answers = search.evaluator.measure(jobs, lambda: _obey(search.context))
    summed = [search.terms(a.results) for a in answers]
    against = reference(summed[:3], fitness_band(_params(family.base)))
    return [
        report.Rescored(member, found, against.fitness(found))
        for member, found in zip(top, summed[3:], strict=True)
    ]


def _plain_mean(search: Search, family: Family) -> tuple[Weights, Behaviour]:
    """The mean of the weights, run as the base or as the parents on average: the better one.

    Judged on the search split, so that the comparison is not lost by a setting.
    """
    weights = plain_mean([p.weights for p in family.models])
    mean = Behaviour(
        sum(p.behaviour.halting_threshold for p in family.models) / 3,
        sum(p.behaviour.write_budget for p in family.models) / 3,
    )
    ways = (family.base.behaviour, mean)
    answers = search.evaluator.measure(
        [Job(weights, b, "search") for b in ways], lambda: _obey(search.context)
    )
    fitness = [search.reference.fitness(search.terms(a.results)) for a in answers]
    return weights, ways[fitness.index(max(fitness))]


def _best_combo(search: Search, evolution: Evolution) -> tuple[Weights, Behaviour]:
    """The best of generation 0 on the search split: what merging without a search gives."""
    first = [m for m in evolution.members if m.generation == 0]
    best = max(first, key=lambda m: (m.fitness, -m.number))
    return search.weights(best.sha256), best.behaviour


def _params(parent: Parent) -> int:
    return sum(t.numel() for t in parent.weights.values())


def _obey(context: RunContext) -> None:
    """Commands outside of the search; asked to finish, the phase skips what has not begun."""
    while True:
        asked = context.control.poll(0)
        if asked.abort:
            raise RunAborted("aborted while measuring")
        if asked.suspend:
            raise RunSuspended("suspended while measuring; everything found is saved")
        if asked.checkpoint:
            context.control.done(asked, "checkpoint", message="everything found is saved already")
        if asked.finish:
            finish_early(context, "outside of the search")
            context.control.done(asked, "finish", message="what has not begun is skipped")
        if not asked.paused:
            return


def _stage(context: RunContext, stage: str, steps: int = 0) -> None:
    context.emit(StageStarted(phase=PHASE, stage=stage, model="", steps=steps))


def _ended(context: RunContext, stage: str, steps: int, wall_s: float) -> None:
    context.emit(StageEnded(phase=PHASE, stage=stage, model="", steps=steps, wall_s=wall_s))


def _notes(context: RunContext, evolution: Evolution) -> tuple[str, ...]:
    """What happened that a reader of the report must know."""
    notes = []
    early = context.manifest.resolved.get(FINISHED_EARLY)
    if early is not None:
        notes.append(f"Ended early: {early.reason}.")
    for generation, action in evolution.interventions:
        notes.append(f"Generation {generation}: the population had become alike: {action}.")
    degenerate = sum(bool(m.fallback) for m in evolution.members)
    if degenerate:
        notes.append(f"{degenerate} degenerate children were replaced by the linear mean.")
    if evolution.ended_by == "early_stop":
        notes.append(
            f"The search ended in generation {evolution.generation}: the best fitness had changed "
            f"by less than {100 * context.config.evomerge.least_change:g} % over "
            f"{context.config.evomerge.patience} generations."
        )
    return tuple(notes)
