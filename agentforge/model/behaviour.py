"""How a model is run, as opposed to what it weighs: settings that differ between specialists."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Run-time settings of one model; specialists share shapes and differ here.

    Attributes:
        halting_threshold: A position stops recursing once its cumulative halting probability
            reaches this; above 1 it never stops early.
        write_budget: Largest step size theta of one memory write; 0 switches the memory off.
        recursion_steps: Steps at most; 0 means the model's own number.
    """

    halting_threshold: float = 0.5
    write_budget: float = 1.0
    recursion_steps: int = 0


ALL_STEPS = 2.0
"""A halting threshold no cumulative probability reaches."""
