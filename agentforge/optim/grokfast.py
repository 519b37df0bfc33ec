"""Grokfast-EMA: adds a slow average of the gradient to the gradient (arXiv 2405.20233)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from agentforge.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class GrokfastStats:
    """What the filter saw in one step.

    Attributes:
        raw_norm: Norm of the gradients before the filter (after clipping).
        slow_norm: Norm of the slow gradients E.
        filtered: Tensors the filter was applied to.
    """

    raw_norm: float
    slow_norm: float
    filtered: int

    @property
    def ratio(self) -> float:
        """``||E|| / ||g||``: 1 when the gradient never turns, near 0 when it is noise."""
        return self.slow_norm / self.raw_norm if self.raw_norm > 0 else float("nan")


class GrokfastEMA:
    """The filter in the paper's form (arXiv 2405.20233, algorithm 2).

    ``E_0 = g_0;  E_t = alpha E_{t-1} + (1 - alpha) g_t;  g'_t = g_t + lam E_t``, element by
    element, in the gradient's own dtype. It belongs between backward and the optimiser's step, and
    **after** clipping: a single wild batch then enters the average with a bounded norm, and is
    gone after 1 / (1 - alpha) steps instead of dominating it. The filtered gradient may therefore
    have up to ``1 + lam`` times the clip norm, which Muon and AdamW do not see: both are invariant
    to the scale of the gradient.

    Args:
        parameters: Parameters by name; a parameter whose gradient is None is left alone.
        alpha: Decay of the slow gradient, in [0, 1).
        lam: Share of the slow gradient that is added. 0 switches the filter off: no state, no cost.

    Raises:
        ValueError: `alpha` or `lam` out of range.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], alpha: float, lam: float) -> None:
        if not 0.0 <= alpha < 1.0 or not lam >= 0.0:
            raise ValueError(f"alpha {alpha} must lie in [0, 1) and lam {lam} must be >= 0")
        self.alpha = alpha
        self.lam = lam
        self._parameters = dict(parameters)
        self._slow: dict[str, Tensor] = {}

    @torch.no_grad()
    def apply(self) -> GrokfastStats | None:
        """Filter every ``.grad`` in place.

        Returns:
            Norms of this step, or None when the filter is off or there was no gradient.
        """
        if self.lam == 0.0:
            return None
        seen: list[Tensor] = []
        slow: list[Tensor] = []
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad
            if name in self._slow:
                # Not lerp_ and not add_(alpha=): both may fuse the multiply and the add, and the
                # result would differ from the formula in the last bit, by device.
                self._slow[name].mul_(self.alpha).add_(gradient * (1.0 - self.alpha))
            else:
                self._slow[name] = gradient.detach().clone()
            seen.append(gradient)
            slow.append(self._slow[name])
        if not seen:
            return None
        norms = torch.stack([get_total_norm(seen), get_total_norm(slow)]).tolist()
        for gradient, average in zip(seen, slow, strict=True):
            gradient.add_(average * self.lam)
        return GrokfastStats(raw_norm=norms[0], slow_norm=norms[1], filtered=len(seen))

    def state_tensors(self) -> dict[str, Tensor]:
        """The slow gradients by parameter name; live references, write them before the next step.

        A parameter that never had a gradient has no entry.
        """
        return dict(self._slow)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over slow gradients (copied to each parameter's device).

        Raises:
            CheckpointError: An unknown name, another shape or dtype, or any entry while the filter
                is off.
        """
        if tensors and self.lam == 0.0:
            raise CheckpointError(
                "the checkpoint holds Grokfast averages, but grokfast_lambda is 0 in this run",
                remedy="resume with the configuration the run was started with",
            )
        loaded: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            parameter = self._parameters.get(name)
            if parameter is None:
                raise CheckpointError(f"Grokfast average of {name!r}: not a hidden matrix here")
            loaded[name] = matching_copy(f"Grokfast average of {name!r}", tensor, parameter)
        self._slow = loaded


def matching_copy(what: str, tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """A copy of optimiser state on the parameter's device.

    Raises:
        CheckpointError: Shape or dtype differ from the parameter's.
    """
    if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
        raise CheckpointError(
            f"{what} has shape {tuple(tensor.shape)} and type {tensor.dtype}; the parameter has "
            f"{tuple(parameter.shape)} and {parameter.dtype}",
            remedy="the checkpoint belongs to another model; resume the run it came from",
        )
    return tensor.detach().to(parameter.device, copy=True)
