"""The data-flow search: an option beside the merge search, reported apart.

One parent and `CHILDREN` mutants a step, the best goes on; the chance of a step depends on the
run's seed and its number alone, and every step is on disk, so a killed search goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from agentforge.evals.items import ItemResults, measure
from agentforge.events import LogLine, Progress, StageEnded, StageStarted
from agentforge.merge.data_flow import Flow, FlowLM, first_flow, mutate_flow
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.evomerge.evolution import PHASE
from agentforge.phases.evomerge.fitness import BlockCount, Terms, terms
from agentforge.phases.evomerge.measuring import Settings
from agentforge.phases.evomerge.search import Search, Weights
from agentforge.report import Table
from agentforge.run.atomic import write_atomic

CHILDREN = 4
REPEATS = 2
"""How often each layer may be used."""


def search_data_flow(
    search: Search,
    settings: Settings,
    models: Mapping[str, Weights],
    behaviour: Behaviour,
    champion_score: float,
    between: Callable[[], None],
) -> Table:
    """Search a path through the champion's and the parents' layers; measure it on the report split.

    Args:
        search: Shapes, reference, settings of the phase.
        settings: Corpora.
        models: The champion first, then the parents.
        behaviour: How the champion is run; the path is run the same way.
        champion_score: Of the champion on the report split, for the table.
        between: Commands.
    """
    config = search.context.config
    bodies = []
    for weights in models.values():
        body = CognateLM(config.model, weights["embedding.table"].shape[0])
        body.load_state_dict(dict(weights))
        bodies.append(body)
    steps, flow, fitness = _begin(search, settings, bodies, behaviour, between)
    model = FlowLM(bodies, flow)
    total = config.evomerge.data_flow_steps
    emit = search.context.emit
    began = time.perf_counter()
    emit(StageStarted(phase=PHASE, stage="data flow", model="", steps=total))
    for step in range(steps, total):
        rng = np.random.default_rng([config.seed, 3, step])
        for child in [mutate_flow(flow, rng) for _ in range(CHILDREN)]:
            found = _measured(model, child, settings, behaviour, "search", between)
            value = search.reference.fitness(_terms(search, found, child))
            if value > fitness:
                flow, fitness = child, value
        _save(search, step + 1, flow, fitness)
        emit(Progress(phase=PHASE, done=step + 1, total=total, unit="paths", eta_s=-1.0))
    wall_s = time.perf_counter() - began
    emit(StageEnded(phase=PHASE, stage="data flow", model="", steps=total, wall_s=wall_s))
    found = _measured(model, flow, settings, behaviour, "report", between)
    return _table(list(models), flow, fitness, _terms(search, found, flow), champion_score)


def _begin(
    search: Search,
    settings: Settings,
    bodies: Sequence[CognateLM],
    behaviour: Behaviour,
    between: Callable[[], None],
) -> tuple[int, Flow, float]:
    """Where the last engine left the search, or the champion's own path."""
    path = search.context.layout.artifacts / PHASE / "data_flow.json"
    if path.exists():
        row = json.loads(path.read_text(encoding="utf-8"))
        return int(row["step"]), Flow.from_json(json.dumps(row["flow"])), float(row["fitness"])
    flow = first_flow(len(bodies), search.context.config.model.n_prelude, REPEATS)
    found = _measured(FlowLM(bodies, flow), flow, settings, behaviour, "search", between)
    fitness = search.reference.fitness(_terms(search, found, flow))
    text = f"the champion's own path has fitness {fitness:.4f} on the search split"
    search.context.emit(LogLine(level="info", source="data flow", text=text))
    return 0, flow, fitness


def _save(search: Search, step: int, flow: Flow, fitness: float) -> None:
    path = search.context.layout.artifacts / PHASE / "data_flow.json"
    row = {"step": step, "fitness": fitness, "flow": json.loads(flow.to_json())}
    write_atomic(path, json.dumps(row, indent=1) + "\n")


def _measured(
    model: FlowLM,
    flow: Flow,
    settings: Settings,
    behaviour: Behaviour,
    split: str,
    between: Callable[[], None],
) -> dict[str, ItemResults]:
    model.flow = flow
    corpora = settings.held_out["search" if split == "search" else "report"]
    return {
        name: measure(
            model, corpus, behaviour, settings.pad_id, settings.batch, between, memory=False
        )
        for name, corpus in corpora.items()
    }


def _terms(search: Search, found: Mapping[str, ItemResults], flow: Flow) -> Terms:
    """Counted with the path's own length and the layers it needs."""
    count = BlockCount(len(flow.layers), search.block_count.per_step)
    size = search.terms(found).bytes
    blocks = [n for n in search.base if n.startswith("prelude.0.")]
    block = sum(search.base[n].numel() * search.base[n].element_size() for n in blocks)
    needed = size + block * (len(set(flow.layers)) - flow.blocks)
    return terms(found, search.exact, count, max(1, needed))


def _table(
    names: list[str], flow: Flow, fitness: float, found: Terms, champion_score: float
) -> Table:
    path = " -> ".join(f"{names[m]}.{b} (x{scale:.2f})" for m, b, scale in flow.steps)
    return Table(
        name="evomerge/data_flow",
        title="Data flow: a path through the layers of champion and parents (Sakana)",
        columns=("number", "value"),
        rows=(
            ("path", path),
            ("score, report split", found.accuracy),
            ("champion's score", champion_score),
            ("perplexity", found.perplexity),
            ("fitness, search split", fitness),
            ("blocks a token", found.blocks),
            ("bytes", found.bytes),
        ),
        note="Not the technique DFS of the combos: weights stay as they are, layers are run in "
        "another order. Another depth than the parents', so later phases do not use it.",
    )
