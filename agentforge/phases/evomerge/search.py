"""What the search works with, and how a candidate becomes a measured member."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from agentforge.config.schema import EvoMergeConfig
from agentforge.events import Alert
from agentforge.merge.apply import merge, plain_mean
from agentforge.merge.validity import invalid_reason
from agentforge.phases.evomerge.evaluator import Between, Evaluator
from agentforge.phases.evomerge.fitness import (
    BlockCount,
    Reference,
    Results,
    Terms,
    first_items,
    terms,
)
from agentforge.phases.evomerge.measuring import Answer, Job, Race
from agentforge.phases.evomerge.members import (
    Candidate,
    Member,
    behaviour_of,
    measurement_key,
    weights_sha256,
)
from agentforge.phases.evomerge.parents import Family
from agentforge.run.context import RunContext

Weights = dict[str, Tensor]


@dataclass(slots=True)
class Search:
    """Everything the search works with.

    Attributes:
        context: The run.
        family: Base and parents, on the CPU.
        base: The base's weights where merges are made.
        parents: The three parents' weights where merges are made, by hash, in order.
        members: Every member made so far by the hash of its weights, the first of each.
        reference: The parents on the whole search split.
        race_reference: The parents on its first items.
        evaluator: Measures.
        blocks: Blocks of the model that FrankenMerge chooses from.
        block_count: Counted cost of a token.
        exact: See `fitness.item_scores`.
        kept: Weights of the population and of what its recipes merge, by hash, as far as there
            is room. All others are merged again when they are needed: a member's recipe and
            sources give its weights bit for bit, so checkpoints hold no tensors.
        room: Most models that `kept` holds.
    """

    context: RunContext
    family: Family
    base: Weights
    parents: dict[str, Weights]
    reference: Reference
    race_reference: Reference
    evaluator: Evaluator
    blocks: int
    block_count: BlockCount
    exact: bool
    room: int
    members: dict[str, Member] = field(default_factory=dict)
    kept: dict[str, Weights] = field(default_factory=dict)

    @property
    def config(self) -> EvoMergeConfig:
        """The phase's settings."""
        return self.context.config.evomerge

    def terms(self, results: Results) -> Terms:
        """Sum up results of one of this run's models."""
        size = sum(t.numel() * t.element_size() for t in self.base.values())
        return terms(results, self.exact, self.block_count, size)

    @property
    def parent_hashes(self) -> tuple[str, str, str]:
        """Hashes of the parents' weights, in order."""
        one, two, three = self.parents
        return one, two, three

    def weights(self, sha256: str) -> Weights:
        """Weights by their hash: a parent's, kept ones, or merged again from recipes.

        Raises:
            KeyError: No parent and no member has it.
        """
        found = self._at_hand(sha256)
        if found is not None:
            return found
        # Losers are merged from losers. Every ancestor is merged once (once a path: 3 to the
        # power of the depth) and dropped after its last use.
        order = self._to_merge(sha256)
        uses = Counter(s for member in order for s in member.candidate.sources)
        made: dict[str, Weights] = {}
        for member in order:
            names = member.candidate.sources
            sources = [made[n] if n in made else self._known(n) for n in names]
            if member.fallback:
                made[member.sha256] = plain_mean(sources)
            else:
                made[member.sha256] = merge(self.base, sources, member.recipe)
            uses.subtract(names)
            for name in set(names):
                if uses[name] <= 0:
                    made.pop(name, None)
        return made[sha256]

    def _at_hand(self, sha256: str) -> Weights | None:
        """A parent's weights or kept ones."""
        return self.parents.get(sha256) or self.kept.get(sha256)

    def _known(self, sha256: str) -> Weights:
        found = self._at_hand(sha256)
        assert found is not None
        return found

    def _to_merge(self, sha256: str) -> list[Member]:
        """The members to merge for this one, each once, sources before what they make."""
        order: list[Member] = []
        seen: set[str] = set()
        stack = [(sha256, False)]
        while stack:
            name, ready = stack.pop()
            if ready:
                order.append(self.members[name])
            elif name not in seen and self._at_hand(name) is None:
                seen.add(name)
                stack.append((name, True))
                stack += [(source, False) for source in self.members[name].candidate.sources]
        return order

    def add(self, members: Sequence[Member]) -> None:
        """Note members that were made."""
        for member in members:
            self.members.setdefault(member.sha256, member)

    def keep(self, members: Sequence[Member]) -> None:
        """Hold the weights of these members and their sources, as far as there is room."""
        wanted = [m.sha256 for m in members]
        wanted += [s for m in members for s in m.candidate.sources if s not in self.parents]
        chosen = list(dict.fromkeys(wanted))[: self.room]
        self.kept = {sha256: self.weights(sha256) for sha256 in chosen}


def place_for_weights(
    device: torch.device, model_bytes: int, models: int, free: Mapping[str, int]
) -> tuple[torch.device, int]:
    """Where the population lives, and how many models fit beside the base and three parents.

    Args:
        device: Where models are measured.
        model_bytes: Bytes of one model's weights.
        models: Members of the population.
        free: Free bytes by device type.

    Returns:
        The device itself when base, parents and population take at most half of what is free
        there, else the CPU; and the models that are kept there (the others are merged again when
        they are needed).
    """
    needed = (4 + models) * model_bytes
    if device.type != "cpu" and needed <= free.get(device.type, 0) // 2:
        return device, models
    fitting = free.get("cpu", 0) // 2 // max(1, model_bytes) - 4
    return torch.device("cpu"), max(0, min(models, fitting))


@dataclass(slots=True)
class _Made:
    """A candidate that was merged, and what it will be measured as."""

    candidate: Candidate
    sha256: str
    key: str
    fallback: str


def make_members(
    search: Search,
    known: Mapping[str, Member],
    candidates: Sequence[Candidate],
    generation: int,
    first_number: int,
    least: float | None,
    between: Between,
) -> list[Member]:
    """Merge and measure candidates; what was measured before is not measured again.

    Args:
        search: The workbench.
        known: Members by `Member.key`.
        candidates: To be made.
        generation: They belong to.
        first_number: Of the first new member.
        least: Fitness on the first items below which a child is dropped; None: no race.
        between: Commands.
    """
    race = None
    if least is not None and search.config.race_items:
        race = Race(search.config.race_items, least, search.race_reference)
    made: list[_Made] = []
    asked: list[str] = []
    answers = search.evaluator.measure(_jobs(search, known, candidates, made, asked, race), between)
    found = dict(zip(asked, answers, strict=True))
    _replace_not_finite(search, made, found, race, between)
    return [
        _member(search, known, one, found.get(one.key), first_number + i, generation)
        for i, one in enumerate(made)
    ]


def _jobs(
    search: Search,
    known: Mapping[str, Member],
    candidates: Sequence[Candidate],
    made: list[_Made],
    asked: list[str],
    race: Race | None,
) -> Iterator[Job]:
    """Merge one candidate after the other; a job for each that nobody has measured."""
    for candidate in candidates:
        weights, fallback = _merged(search, candidate)
        one = _made(search, candidate, weights, fallback)
        made.append(one)
        if one.key not in known and one.key not in asked:
            asked.append(one.key)
            yield Job(weights, behaviour_of(candidate.recipe), "search", race)


def _merged(search: Search, candidate: Candidate) -> tuple[Weights, str]:
    """The child, or the linear mean where it may not be used, with the reason."""
    sources = [search.weights(s) for s in candidate.sources]
    child = merge(search.base, sources, candidate.recipe)
    reason = invalid_reason(child, search.base)
    if reason is None:
        return child, ""
    return plain_mean(sources), reason


def _made(search: Search, candidate: Candidate, weights: Weights, fallback: str) -> _Made:
    sha256 = weights_sha256(weights)
    if len(search.kept) < 2 * search.room:
        search.kept[sha256] = weights
    key = measurement_key(sha256, behaviour_of(candidate.recipe))
    return _Made(candidate, sha256, key, fallback)


def _replace_not_finite(
    search: Search,
    made: list[_Made],
    found: dict[str, Answer],
    race: Race | None,
    between: Between,
) -> None:
    """Children whose forward is not finite become the linear mean, measured once more."""
    bad = [i for i, m in enumerate(made) if m.key in found and not _finite(search, found[m.key])]
    jobs, keys = [], []
    for i in bad:
        candidate = made[i].candidate
        weights = plain_mean([search.weights(s) for s in candidate.sources])
        made[i] = _made(search, candidate, weights, "its forward gives NaN or Inf")
        jobs.append(Job(weights, behaviour_of(candidate.recipe), "search", race))
        keys.append(made[i].key)
    if jobs:
        found.update(zip(keys, search.evaluator.measure(jobs, between), strict=True))


def _finite(search: Search, answer: Answer) -> bool:
    return search.terms(answer.results).finite


def _member(
    search: Search,
    known: Mapping[str, Member],
    made: _Made,
    answer: Answer | None,
    number: int,
    generation: int,
) -> Member:
    if answer is None:
        return replace(
            known[made.key],
            number=number,
            generation=generation,
            candidate=made.candidate,
            fallback=made.fallback,
        )
    found = search.terms(answer.results)
    early = search.terms(first_items(answer.results, search.config.race_items or 1))
    first_fitness = search.race_reference.fitness(early)
    if made.fallback:
        search.context.emit(
            Alert(
                id=f"evomerge-degenerate-{number}",
                level="warning",
                code="degenerate_merge",
                title=f"Child {number} was degenerate: the linear mean takes its place",
                detail=made.fallback,
                cause=f"combo {made.candidate.recipe.combo.digits}",
            )
        )
    return Member(
        number=number,
        generation=generation,
        candidate=made.candidate,
        sha256=made.sha256,
        fitness=first_fitness if answer.raced else search.reference.fitness(found),
        first_fitness=first_fitness,
        perplexity=found.perplexity,
        accuracy=found.accuracy,
        blocks=found.blocks,
        by_skill=found.by_skill,
        items=found.items,
        raced=answer.raced,
        fallback=made.fallback,
    )
