"""Measuring one set of weights: the job, and how it is done on a model of this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from agentforge.data.corpus import Corpus
from agentforge.data.splits import Split
from agentforge.evals.items import ItemResults, joined, measure
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.evomerge.fitness import BlockCount, Reference, terms

HeldOut = Mapping[Split, Mapping[str, Corpus]]


@dataclass(frozen=True, slots=True)
class Race:
    """Whether a model is measured to the end.

    Attributes:
        items: Items per skill that decide.
        least: Fitness on them below which the rest is spared.
        reference: The parents on these items.
    """

    items: int
    least: float
    reference: Reference


@dataclass(frozen=True, slots=True)
class Job:
    """Weights to measure.

    Attributes:
        weights: Tensors of the model, on any device.
        behaviour: How it is run.
        split: On which held-out data.
        race: Drop it early; None: measure everything.
    """

    weights: Mapping[str, Tensor]
    behaviour: Behaviour
    split: Split
    race: Race | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a job measured.

    Attributes:
        results: By skill or dataset; of the first items alone when `raced`.
        raced: It was dropped early.
    """

    results: dict[str, ItemResults]
    raced: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """What all jobs share.

    Attributes:
        held_out: Corpora by split, those that count towards the fitness.
        exact: Whether an item's score is its exact match, see `fitness.item_scores`.
        pad_id: Id of padding.
        batch: Items of one forward.
    """

    held_out: HeldOut
    exact: bool
    pad_id: int
    batch: int


def block_count(model: CognateLM) -> BlockCount:
    """Blocks of the prelude, and of one recursion step."""
    config = model.config
    return BlockCount(config.n_prelude, config.n_core * config.latent_steps)


def do_job(
    model: CognateLM,
    settings: Settings,
    job: Job,
    between: Callable[[], None] | None = None,
) -> Answer:
    """Load the weights and measure them.

    Args:
        model: Takes the weights; its own are lost.
        settings: Corpora.
        job: What.
        between: Called between batches.
    """
    model.load_state_dict(dict(job.weights))
    corpora = settings.held_out[job.split]

    def part(start: int, stop: int) -> dict[str, ItemResults]:
        return {
            name: measure(
                model,
                corpus.part(start, stop),
                job.behaviour,
                settings.pad_id,
                settings.batch,
                between,
                memory=False,
            )
            for name, corpus in corpora.items()
        }

    longest = max(len(c) for c in corpora.values())
    race = job.race
    if race is None or race.items >= min(len(c) for c in corpora.values()):
        return Answer(part(0, longest))
    first = part(0, race.items)
    size = sum(t.numel() * t.element_size() for t in job.weights.values())
    found = terms(first, settings.exact, block_count(model), size)
    if race.reference.fitness(found) < race.least:
        return Answer(first, raced=True)
    rest = part(race.items, longest)
    return Answer({name: joined(first[name], rest[name]) for name in first})
