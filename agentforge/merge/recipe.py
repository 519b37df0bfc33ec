"""A recipe: every number of one merge, from which the child is made again bit for bit."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from agentforge.merge.combo import Combo
from agentforge.merge.franken import Slots
from agentforge.merge.groups import GROUPS

EQUAL = 1.0 / 3.0
"""The documents' weight of each of three models."""
EQUAL_PLACES = (1.0 / 2.0, 1.0 / 3.0)
"""Places of SLERP that give three models an equal share (documented: .5 and .33)."""

GroupWeights = tuple[float, ...]
"""Weights of one model in the order of `GROUPS`."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a number of a recipe may be, both ends allowed."""

    low: float
    high: float

    def clip(self, value: float) -> float:
        """The nearest allowed value."""
        return min(self.high, max(self.low, value))


WEIGHT = Bounds(-1.0, 2.0)
PLACE = Bounds(0.0, 1.0)
DENSITY = Bounds(0.05, 1.0)
SCALE = Bounds(0.0, 3.0)
SHARE = Bounds(0.0, 1.0)
THRESHOLD = Bounds(0.05, 1.0)
BUDGET = Bounds(0.05, 1.0)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How three models become one.

    Attributes:
        combo: The three techniques.
        weights: For each model its weight in every group of tensors; the base takes what a group's
            weights lack to 1, or gives what they have too much.
        places: Where SLERP stands between the first two models, and between that and the third.
        density: Share of a delta that DARE or TIES keeps.
        scale: Of the merged delta of stage 2 (TIES' lambda).
        strength: Share of the result stage 3 replaces (documented: 1).
        slots: For each block what FrankenMerge takes it from: 0 the model so far, 1 to 3 a model.
        seed: Of DARE's masks.
        halting_threshold, write_budget: How the child is run.
        blend: Share of stage 2 in its mean with stage 1 (documented chain: 1).
        chain: The documents' literal chain: deltas are taken from the stage-1 model.
    """

    combo: Combo
    weights: tuple[GroupWeights, ...]
    places: tuple[float, float]
    density: float
    scale: float
    strength: float
    slots: Slots
    seed: int
    halting_threshold: float
    write_budget: float
    blend: float = 0.5
    chain: bool = False

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ValueError(problem)

    def _problem(self) -> str:
        if len(self.weights) != 3 or any(len(w) != len(GROUPS) for w in self.weights):
            return f"weights {self.weights}: three models with {len(GROUPS)} groups each are needed"
        numbers = [
            *(
                (f"weights of model {i + 1}", weight, WEIGHT)
                for i, model in enumerate(self.weights)
                for weight in model
            ),
            *(("places", p, PLACE) for p in self.places),
            ("density", self.density, DENSITY),
            ("scale", self.scale, SCALE),
            ("strength", self.strength, SHARE),
            ("blend", self.blend, SHARE),
            ("halting_threshold", self.halting_threshold, THRESHOLD),
            ("write_budget", self.write_budget, BUDGET),
        ]
        for name, value, bounds in numbers:
            if not (math.isfinite(value) and bounds.low <= value <= bounds.high):
                return f"{name} {value} is not within {bounds.low} to {bounds.high}"
        if any(not 0 <= slot <= 3 for slot in self.slots):
            return f"slots {self.slots} are not 0 to 3"
        return ""

    @property
    def groups(self) -> dict[str, tuple[float, ...]]:
        """For each group the three models' weights."""
        return {g: tuple(m[i] for m in self.weights) for i, g in enumerate(GROUPS)}

    def to_json(self) -> str:
        """One line of JSON; floats come back exactly."""
        return json.dumps(asdict(self) | {"combo": self.combo.digits})

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """From `to_json`.

        Raises:
            ValueError: Not a recipe, or a number out of bounds.
        """
        try:
            row = json.loads(text)
            row["combo"] = Combo.parse(row["combo"])
            row["weights"] = tuple(tuple(w) for w in row["weights"])
            row["places"] = tuple(row["places"])
            row["slots"] = tuple(row["slots"])
            return cls(**row)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a recipe: {text[:200]} ({error})") from None


def equal_weights() -> tuple[GroupWeights, ...]:
    """One third for each model in every group."""
    return ((EQUAL,) * len(GROUPS),) * 3
