"""Success metrics. A gate is met, missed, or not in this run; a missing value is a miss."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from agentforge.events import GateChecked

Status = Literal["met", "missed", "not_in_run"]

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
}


@dataclass(frozen=True, slots=True)
class Gate:
    """One success metric, computed on held-out data by the run itself.

    Attributes:
        name: Phase and metric, such as ``cognate.diversity``.
        value: The measured value; None when it could not be measured, which is a miss.
        op: One of ``> >= < <= ==``.
        threshold: What the value is held to.
        n: Items the value rests on; 0 means nothing was measured, which is a miss.
        source: Where it was measured: split, dataset, artefact.
        in_run: False when the preset declares that this run does not show it.
    """

    name: str
    value: float | None
    op: str
    threshold: float
    n: int
    source: str
    in_run: bool = True

    @property
    def status(self) -> Status:
        """``met``, ``missed`` or ``not_in_run``; fails closed on a missing or non-finite value."""
        if not self.in_run:
            return "not_in_run"
        if self.value is None or not math.isfinite(self.value) or self.n <= 0:
            return "missed"
        return "met" if _OPERATORS[self.op](self.value, self.threshold) else "missed"

    @property
    def passed(self) -> bool | None:
        """True, False, or None when not in this run."""
        return None if self.status == "not_in_run" else self.status == "met"

    def event(self) -> GateChecked:
        """The event that tells of this gate."""
        return GateChecked(
            name=self.name,
            value=self.value,
            op=self.op,
            threshold=self.threshold,
            n=self.n,
            source=self.source,
            status=self.status,
        )


def missed(gates: Sequence[Gate]) -> list[Gate]:
    """The gates that are missed; a run with any exits with code 4."""
    return [g for g in gates if g.status == "missed"]


def declared_gate(
    not_in_run: Sequence[str],
    name: str,
    value: float | None,
    op: str,
    threshold: float,
    n: int,
    source: str,
) -> Gate:
    """A gate, which is not in this run when the preset names it or a family it belongs to.

    Args:
        not_in_run: What the preset declares: ``quietstar`` names all of ``quietstar.*``.
        name: Phase and metric.
        value: As `Gate`, like the rest.
        op: Likewise.
        threshold: Likewise.
        n: Likewise.
        source: Likewise.
    """
    declared = any(name == out or name.startswith(f"{out}.") for out in not_in_run)
    return Gate(name, value, op, threshold, n, source, in_run=not declared)
