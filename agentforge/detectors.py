"""Detectors over a training's losses: divergence, plateau. Pure state, saved with checkpoints."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

DIVERGENCE_SLOPE = 0.01
"""Rise per step, nats, over the whole window that counts as diverging (documented)."""
PLATEAU_VARIANCE = 0.001
"""Variance over the window below which a loss no longer moves (documented)."""
PLATEAU_FLOOR = 0.5
"""A loss that stands still below this, nats, has converged rather than stalled."""


class LossWatch:
    """Watches the losses of one training.

    The documented rules are a least-squares slope above 0.01 a step over the last 100 losses and a
    variance below 0.001 over the last 50. A change of the data mix moves the loss for other
    reasons, so the windows start anew at every curriculum stage.

    Args:
        divergence_window: Losses the slope is taken over.
        plateau_window: Losses the variance is taken over.
    """

    def __init__(self, divergence_window: int, plateau_window: int) -> None:
        self.divergence_window = divergence_window
        self.plateau_window = plateau_window
        self._losses: deque[float] = deque(maxlen=max(divergence_window, plateau_window))

    def add(self, loss: float) -> None:
        """Note the loss of one step."""
        self._losses.append(loss)

    def reset(self) -> None:
        """Forget everything: the data changed, or an intervention was made."""
        self._losses.clear()

    def recent(self, count: int = 10) -> float:
        """Mean of the last losses; NaN when there are none."""
        last = list(self._losses)[-count:]
        return sum(last) / len(last) if last else float("nan")

    def slope(self) -> float | None:
        """Least-squares rise per step over a full divergence window, else None."""
        n = self.divergence_window
        if len(self._losses) < n:
            return None
        losses = list(self._losses)[-n:]
        middle = (n - 1) / 2
        spread = n * (n * n - 1) / 12
        return sum((i - middle) * loss for i, loss in enumerate(losses)) / spread

    def variance(self) -> float | None:
        """Variance over a full plateau window, else None."""
        n = self.plateau_window
        if len(self._losses) < n:
            return None
        losses = list(self._losses)[-n:]
        mean = sum(losses) / n
        return sum((loss - mean) ** 2 for loss in losses) / n

    def diverging(self) -> bool:
        """The loss rises steadily."""
        slope = self.slope()
        return slope is not None and slope > DIVERGENCE_SLOPE

    def stalled(self) -> bool:
        """The loss stands still, and high."""
        variance = self.variance()
        return (
            variance is not None
            and variance < PLATEAU_VARIANCE
            and self._losses[-1] > PLATEAU_FLOOR
        )

    def state(self) -> list[float]:
        """The window, for a checkpoint."""
        return list(self._losses)

    def load_state(self, losses: Sequence[float]) -> None:
        """Continue where `state` was taken."""
        self._losses.clear()
        self._losses.extend(losses)
