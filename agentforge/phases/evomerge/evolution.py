"""The search: generation after generation, from wherever a checkpoint left it."""

from __future__ import annotations

import time

import numpy as np

from agentforge.errors import RunAborted, RunSuspended
from agentforge.events import Alert, AlertAction, GenerationDone, LogLine, Progress
from agentforge.interventions import decide, intervention
from agentforge.merge.geometry import Geometry, geometry
from agentforge.phases.evomerge.breed import generation_zero, newcomer, next_generation
from agentforge.phases.evomerge.history import Evolution, Row
from agentforge.phases.evomerge.members import Candidate, Member, ranked
from agentforge.phases.evomerge.search import Search, make_members
from agentforge.run.checkpoint import CheckpointStore
from agentforge.run.context import RunContext
from agentforge.run.manifest import Resolved
from agentforge.run.storage import look_at_disk

PHASE = "evomerge"
STAGE = "evolution"
FINISHED_EARLY = "evomerge.finished_early"
RISE, FALL = 1.15, 0.95
"""Factors of the mutation step after a generation that found a better member, and after others."""
INJECTED = 2
"""Newcomers that take the place of the last children."""

INJECT = AlertAction(
    key="inject",
    label="Newcomers instead of the two last children",
    consequence="two random combos of the parents join the next generation",
)
MUTATE = AlertAction(
    key="mutate", label="Larger mutations", consequence="the mutation step doubles, up to its limit"
)
RESTART = AlertAction(
    key="restart",
    label="Start again around the champion",
    consequence="all members but the best are replaced by newcomers",
)


class FinishAskedError(Exception):
    """Somebody asked to end the phase: the running generation is dropped."""


def evolve(search: Search, store: CheckpointStore) -> Evolution:
    """Run the search to its end.

    Raises:
        RunSuspended, RunAborted: They were asked for; the last generation is on disk.
        TrainingError: Nothing can be measured any more.
    """
    context, config = search.context, search.config
    evolution = restore(search, store) or Evolution(sigma=config.sigma)
    if FINISHED_EARLY in context.manifest.resolved and evolution.history:
        evolution.ended_by = "finish"
    first, began = evolution.generation, time.perf_counter()
    while not evolution.ended_by:
        started = time.perf_counter()
        try:
            row, shape = _generation(search, evolution)
        except FinishAskedError:
            evolution.ended_by = "finish"
            break
        evolution.history.append(row)
        if shape is not None and not evolution.distances:
            evolution.distances = shape.distance.tolist()
        evolution.ended_by = _ending(search, evolution)
        now = time.perf_counter()
        done, total = row.generation, config.generations
        context.emit(generation_event(search, evolution, row, now - started))
        pace = (now - began) / max(1, done - first)
        context.emit(
            Progress(
                phase=PHASE,
                done=done,
                total=total,
                unit="generations",
                eta_s=pace * (total - done) if done - first > 1 else -1.0,
            )
        )
        if not evolution.ended_by:
            _look_at_diversity(search, evolution)
        save(search, evolution, store)
        if listen(search, row.generation) and not evolution.ended_by:
            evolution.ended_by = "finish"
        _look_at_disk(search, store, row.generation)
    return evolution


def _generation(search: Search, evolution: Evolution) -> tuple[Row, Geometry | None]:
    """Breed, make, measure and rank one generation."""
    config, number = search.config, len(evolution.history)
    behaviour = search.family.base.behaviour
    seed = search.context.config.seed
    if number == 0:
        kept: list[Member] = []
        candidates = generation_zero(config, behaviour, search.blocks, seed, search.parent_hashes)
        least = None
    else:
        # The chance of a generation depends on the run's seed and its number alone: a resumed
        # search draws what the uninterrupted one would have drawn.
        rng = np.random.default_rng([seed, 2, number])
        kept, candidates = next_generation(config, evolution.population, evolution.sigma, rng)
        kept, candidates = _with_newcomers(search, evolution, kept, candidates, rng)
        least = min(m.first_fitness for m in evolution.population[:2]) - config.race_margin
    made = make_members(
        search,
        evolution.known(),
        candidates,
        number,
        len(evolution.members),
        least,
        lambda: _listen_within(search, number),
    )
    if number:
        better = max(m.fitness for m in made) > evolution.champion.fitness
        factor = RISE if better else FALL
        evolution.sigma = min(config.most_sigma, max(config.least_sigma, factor * evolution.sigma))
    evolution.members += made
    search.add(made)
    evolution.population = ranked([*kept, *made])
    search.keep(evolution.population)
    weights = [search.weights(m.sha256) for m in evolution.population]
    shape = geometry(search.base, weights)
    first = None
    if number == 0:
        ordered = sorted(evolution.population, key=lambda m: m.number)
        first = geometry(search.base, [search.weights(m.sha256) for m in ordered])
    return evolution.row(shape.diversity, shape.raw_diversity), first


def _with_newcomers(
    search: Search,
    evolution: Evolution,
    kept: list[Member],
    candidates: list[Candidate],
    rng: np.random.Generator,
) -> tuple[list[Member], list[Candidate]]:
    """Carry out the intervention that was decided after the last generation."""
    if not evolution.interventions or evolution.interventions[-1][0] != evolution.generation:
        return kept, candidates
    action = evolution.interventions[-1][1]
    if action == "restart":
        size = len(evolution.population)
        kept, candidates, count = [evolution.champion], [], size - 1
    elif action == "inject":
        count = min(INJECTED, len(candidates))
        candidates = candidates[: len(candidates) - count]
    else:
        return kept, candidates
    fresh = [
        newcomer(
            search.config, search.family.base.behaviour, search.blocks, search.parent_hashes, rng
        )
        for _ in range(count)
    ]
    return kept, candidates + fresh


def _ending(search: Search, evolution: Evolution) -> str:
    """Why the search ends after this generation; empty: it goes on."""
    config, number = search.config, evolution.generation
    if number >= config.generations:
        return "max_gen"
    champion = evolution.champion.fitness
    if config.target_gain and champion >= 1.0 + config.target_gain:
        return "target"
    if config.patience and number >= max(config.patience, config.least_generations):
        before = evolution.history[-1 - config.patience].champion
        if champion - before < config.least_change * abs(before):
            return "early_stop"
    return ""


def _look_at_diversity(search: Search, evolution: Evolution) -> None:
    """Tell of a narrow population, and do something about a very narrow one."""
    config, number = search.config, evolution.generation
    if number == 0 or number % config.diversity_interval:
        return
    first, now = evolution.history[0].diversity, evolution.history[-1].diversity
    share = now / first if first > 0 else 1.0
    if share >= config.diversity_warn:
        return
    detail = (
        f"diversity {now:.4f} is {100 * share:.0f} % of generation 0's {first:.4f} (told below "
        f"{100 * config.diversity_warn:.0f} %, acted on below {100 * config.diversity_act:.0f} %)"
    )
    title = f"The population has become alike in generation {number}"
    if share >= config.diversity_act:
        search.context.emit(
            Alert(
                id=f"evomerge-diversity-{number}",
                level="info",
                code="low_diversity",
                title=title,
                detail=detail,
            )
        )
        return
    stuck = len(evolution.interventions) >= 2
    alert = intervention(
        alert_id=f"evomerge-diversity-{number}",
        code="low_diversity",
        title=title,
        detail=detail,
        cause="elites and their mutants have filled the population",
        actions=(INJECT, MUTATE, RESTART),
        recommended="mutate" if stuck and evolution.interventions[-1][1] == "inject" else "inject",
    )
    chosen = decide(alert, search.context)
    if chosen == "stop":
        raise RunSuspended("the population has become alike; resume goes on with the search")
    if chosen == "mutate":
        evolution.sigma = min(config.most_sigma, 2 * evolution.sigma)
    if chosen != "continue":
        evolution.interventions.append((number, chosen))


def generation_event(
    search: Search, evolution: Evolution, row: Row, wall_s: float
) -> GenerationDone:
    """What a generation tells; `extra` is keyed by W&B names."""
    extra: dict[str, float] = {
        "evolution/fitness_improvement": row.champion - 1.0,
        "evolution/unique_models": float(row.unique),
        "evolution/elite1_fitness": evolution.population[0].fitness,
        "evolution/elite2_fitness": evolution.population[1].fitness,
        "evolution/mutation_sigma": row.sigma,
        "evolution/raw_diversity": row.raw_diversity,
        "evolution/evaluations": float(row.evaluations),
        "evolution/raced": float(row.raced),
        "evolution/degenerate": float(row.fallbacks),
    }
    for digits, count in row.combos.items():
        extra[f"evolution/combo_{digits}_count"] = float(count)
    size = sum(t.numel() * t.element_size() for t in search.base.values())
    for i, member in enumerate(evolution.population):
        extra[f"models/model_{i}/fitness"] = member.fitness
        extra[f"models/model_{i}/perplexity"] = member.perplexity
        extra[f"models/model_{i}/accuracy"] = member.accuracy
        extra[f"models/model_{i}/inference_time"] = member.blocks
        extra[f"models/model_{i}/memory_usage"] = size / 2**20
        extra[f"models/model_{i}/combo_id"] = float(member.recipe.combo.number)
    return GenerationDone(
        phase=PHASE,
        generation=row.generation,
        generations=search.config.generations,
        best_fitness=row.best,
        avg_fitness=row.mean,
        worst_fitness=row.worst,
        fitness_std=row.std,
        champion_fitness=row.champion,
        diversity=row.diversity,
        best_combo=row.best_combo,
        extra=extra,
        wall_s=wall_s,
    )


def _listen_within(search: Search, generation: int) -> None:
    """Commands while a generation is measured; the first one is always measured to its end.

    Raises:
        FinishAskedError: The phase is to end with the generations before this one.
    """
    if listen(search, generation) and generation > 0:
        raise FinishAskedError


def listen(search: Search, generation: int) -> bool:
    """Obey commands; True when the phase is to end with what it has.

    Raises:
        RunAborted, RunSuspended: They were asked for.
    """
    context = search.context
    while True:
        asked = context.control.poll(max(0, generation))
        if asked.abort:
            raise RunAborted(f"aborted in generation {generation}")
        if asked.suspend:
            raise RunSuspended(f"suspended in generation {generation}; the one before is saved")
        if asked.checkpoint:
            context.control.done(asked, "checkpoint", message="every whole generation is saved")
        if asked.finish:
            finish_early(context, f"in generation {generation}")
            context.control.done(asked, "finish", message="the best member so far is kept")
        if not asked.paused:
            return FINISHED_EARLY in context.manifest.resolved


def _look_at_disk(search: Search, store: CheckpointStore, generation: int) -> None:
    """Prune old checkpoints when the disk gets full, suspend when it is."""
    context, storage = search.context, search.context.config.storage
    if look_at_disk(context.layout.root, storage) == "ok":
        return
    removed = store.prune(1)
    context.emit(
        Alert(
            id=f"disk-{PHASE}-{generation}",
            level="warning",
            code="disk",
            title="The disk is getting full",
            detail=f"less than {storage.prune_below_gb} GB free; {removed} checkpoints removed",
        )
    )
    if look_at_disk(context.layout.root, storage) == "suspend":
        raise RunSuspended(
            f"less than {storage.suspend_below_gb} GB of disk are free (generation {generation})"
        )


def finish_early(context: RunContext, when: str) -> None:
    """Note that the phase is to end with what it has, now and after a resume."""
    context.manifest.resolved[FINISHED_EARLY] = Resolved(value=True, reason=f"asked for {when}")
    context.save_manifest()


def save(search: Search, evolution: Evolution, store: CheckpointStore) -> None:
    """Write the population, its history and every recipe: weights follow from them."""
    context = search.context
    info = store.save(
        phase=PHASE,
        stage=STAGE,
        step=evolution.generation,
        groups={},
        state=evolution.to_json(),
    )
    context.emit(info.event(context.layout))
    record = context.manifest.phases[PHASE]
    now = time.time()
    record.wall_s += now - record.started if record.started else 0.0
    record.started = now
    context.save_manifest()


def restore(search: Search, store: CheckpointStore) -> Evolution | None:
    """Go on from the newest good checkpoint of this search; None when there is none."""
    found = store.newest_valid()
    for skipped in found.skipped:
        search.context.emit(
            LogLine(
                level="warning",
                source="checkpoint",
                text=f"{skipped.path.name} is not used: {skipped.problem}",
            )
        )
    info = found.info
    if info is None or (info.phase, info.stage) != (PHASE, STAGE):
        return None
    loaded = store.load(info)
    evolution = Evolution.from_json(loaded.state)
    search.add(evolution.members)
    search.keep(evolution.population)
    return evolution
