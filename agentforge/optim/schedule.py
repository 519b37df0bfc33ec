"""The learning-rate schedule: one pure function that drives both optimisers."""

from __future__ import annotations

import math
from typing import Literal

ScheduleKind = Literal["linear", "cosine", "constant"]


def lr_share(
    step: int,
    total: int,
    warmup: int,
    kind: ScheduleKind,
    cooldown_share: float,
    final_share: float,
) -> float:
    """The share of the full learning rate that step `step` uses.

    Warm-up is linear, ``(step + 1) / warmup``, so that the first step already moves the weights.
    After it:

    - ``linear``: constant, then a straight line over the last `cooldown_share` of all steps;
    - ``cosine``: half a cosine from the end of the warm-up to the last step (`cooldown_share` is
      not used);
    - ``constant``: stays at 1 (neither `cooldown_share` nor `final_share` is used).

    The line and the cosine arrive at `final_share` at ``step == total``, one step after the last
    one, so that no step is spent on a learning rate of 0. Where warm-up and cool-down overlap,
    their shares are multiplied.

    Args:
        step: Steps already taken (0-based index of the step to take); beyond `total` it counts as
            `total`.
        total: Steps of the whole training, at least 1.
        warmup: Steps of the warm-up; 0: none.
        kind: Shape of the cool-down.
        cooldown_share: Last share of the steps that cools down, in [0, 1].
        final_share: Share at the end, in [0, 1].

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: A negative step or warm-up, `total` below 1, or a share outside [0, 1].
    """
    if step < 0 or total < 1 or warmup < 0:
        raise ValueError(f"step {step} and warmup {warmup} must be >= 0 and total {total} >= 1")
    if not (0.0 <= cooldown_share <= 1.0 and 0.0 <= final_share <= 1.0):
        raise ValueError(f"shares {cooldown_share} and {final_share} must lie in [0, 1]")
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if kind == "constant":
        return warm
    remaining = max(total - step, 0)
    if kind == "linear":
        cooldown = cooldown_share * total
        cool = min(1.0, remaining / cooldown) if cooldown > 0 else 1.0
    else:
        span = max(total - warmup, 1)
        cool = 0.5 * (1.0 - math.cos(math.pi * min(1.0, remaining / span)))
    return warm * (final_share + (1.0 - final_share) * cool)
