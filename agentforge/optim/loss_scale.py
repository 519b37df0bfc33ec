"""Dynamic loss scaling for fp16 autocast: `torch.amp.GradScaler` for two optimisers at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import JsonValue
from torch import Tensor

from agentforge.errors import CheckpointError

_KEYS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


class LossScaler:
    """Keeps small fp16 gradients from becoming 0.

    The loss is multiplied by a scale before backward and the gradients are divided by it
    afterwards. An overflow (any gradient not finite) halves the scale and drops the step;
    `growth_interval` good steps in a row double it. `GradScaler.step` would decide for each
    optimiser alone and could step one and drop the other, so `HybridOptimizer` decides once for
    both and uses the scaler only to unscale and to update.

    Args:
        device: Device type of the gradients, ``cuda`` or ``cpu``.
        init_scale: First scale.
        growth_interval: Good steps before the scale is doubled.
    """

    def __init__(
        self, device: str, *, init_scale: float = 65536.0, growth_interval: int = 2000
    ) -> None:
        self._device = device
        self._scaler = torch.amp.GradScaler(
            device, init_scale=init_scale, growth_interval=growth_interval
        )

    @property
    def value(self) -> float:
        """The present scale."""
        return float(self._scaler.get_scale())

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call backward on: ``loss * value``."""
        return self._scaler.scale(loss)

    def unscale_(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Divide the gradients of these optimisers by the scale, in place; once a step.

        Raises:
            RuntimeError: Called twice without `update`, or before `scale`.
        """
        for optimizer in optimizers:
            self._scaler.unscale_(optimizer)

    def update(self) -> None:
        """Adapt the scale to what `unscale_` found; the last call of a step."""
        self._scaler.update()

    def state(self) -> dict[str, JsonValue]:
        """Scale and growth counter, as JSON."""
        return dict(self._scaler.state_dict())

    def load_state(self, state: Mapping[str, JsonValue]) -> None:
        """Take over a saved `state`.

        Raises:
            CheckpointError: A key is missing or not a number.
        """
        if not all(isinstance(state.get(key), (int, float)) for key in _KEYS):
            raise CheckpointError(f"loss scaler state {dict(state)} must hold numbers for {_KEYS}")
        # A fresh scaler: one whose step was cut short refuses to unscale again.
        self._scaler = torch.amp.GradScaler(self._device)
        self._scaler.load_state_dict(dict(state))
