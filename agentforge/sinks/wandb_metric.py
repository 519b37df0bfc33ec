"""One declared name of a Weights & Biases metric."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One declared name.

    Attributes:
        name: Name in W&B. A name that ends in ``/*`` declares a family.
        meaning: What it measures, with unit.
        source: Event and field it comes from; ``extra`` and ``EvalDone`` carry the name itself.
        optional: True when a complete run may lack it, for the reason in `meaning`.
    """

    name: str
    meaning: str
    source: str
    optional: bool = False
