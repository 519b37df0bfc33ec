"""The one optimiser of a training loop: Muon x Grokfast for hidden matrices, AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from agentforge.config.schema import OptimConfig
from agentforge.errors import CheckpointError
from agentforge.optim.grokfast import GrokfastEMA, GrokfastStats, matching_copy
from agentforge.optim.groups import ParameterRoles, split_parameters
from agentforge.optim.loss_scale import LossScaler
from agentforge.optim.schedule import lr_share

_MUON = "muon.momentum_buffer."
_ADAMW = ("adamw.exp_avg.", "adamw.exp_avg_sq.", "adamw.step.")
_SLOW = "grokfast.slow."


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one optimiser step did.

    Attributes:
        grad_norm: Global norm of all gradients before clipping (after unscaling).
        lr: Muon's learning rate in this step, after schedule and `lr_scale`.
        adamw_lr: AdamW's.
        clipped: The gradients were shrunk to the clip norm.
        skip_reason: Empty when the step was taken. ``overflow``: a gradient was not finite under a
            loss scale above 1, which is routine in fp16. ``non_finite``: the gradient itself is
            not finite.
        grokfast: The filter's norms; None when it is off or the step was skipped.
        loss_scale: Scale the gradients came with; None without loss scaling.
    """

    grad_norm: float
    lr: float
    adamw_lr: float
    clipped: bool
    skip_reason: Literal["", "overflow", "non_finite"]
    grokfast: GrokfastStats | None
    loss_scale: float | None

    @property
    def skipped(self) -> bool:
        """True: no weight and no optimiser state was changed."""
        return self.skip_reason != ""


class HybridOptimizer:
    """`torch.optim.Muon` and `torch.optim.AdamW` behind one step and one schedule.

    A step is: unscale (fp16 only), global norm, skip if it is not finite, clip, Grokfast filter on
    the hidden matrices, Muon, AdamW. A parameter whose gradient is None is skipped with its state,
    as torch does.

    Args:
        model_named_params: All parameters by name, each once.
        hidden: Those Muon trains (2-D hidden matrices).
        config: Learning rates, momentum, filter, schedule.
        total_steps: Steps the schedule spans.
        scaler: Loss scaler of fp16 training; the caller scales the loss with it.

    Attributes:
        lr_scale: Multiplies both learning rates from the next step on; may be set at any time.
        total_steps: May be set when a training is extended.

    Raises:
        ValueError: Roles that do not fit (see `split_parameters`).
    """

    def __init__(
        self,
        model_named_params: Mapping[str, nn.Parameter],
        hidden: Mapping[str, nn.Parameter],
        config: OptimConfig,
        total_steps: int,
        *,
        scaler: LossScaler | None = None,
    ) -> None:
        self.config = config
        self.roles: ParameterRoles = split_parameters(model_named_params, hidden)
        self.total_steps = total_steps
        self.lr_scale = config.lr_scale
        self.scaler = scaler
        self.grokfast = GrokfastEMA(
            self.roles.hidden, config.grokfast_alpha, config.grokfast_lambda
        )
        self.muon = torch.optim.Muon(
            [{"params": list(self.roles.hidden.values())}],
            lr=config.muon_lr,
            weight_decay=config.weight_decay,
            momentum=config.muon_momentum,
            nesterov=True,
            adjust_lr_fn=config.muon_adjust,
        )
        adamw_groups: list[dict[str, Any]] = [
            {"params": list(self.roles.decayed.values())},
            {"params": list(self.roles.plain.values()), "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            adamw_groups,
            lr=config.adamw_lr,
            betas=config.adamw_betas,
            weight_decay=config.weight_decay,
        )
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (self.muon, self.adamw)
        self._parameters = list(model_named_params.values())
        self._others = self.roles.decayed | self.roles.plain

    def zero_grad(self) -> None:
        """Drop all gradients (to None)."""
        for parameter in self._parameters:
            parameter.grad = None

    def share(self, step_index: int) -> float:
        """Schedule times `lr_scale`: what both learning rates are multiplied by at that step."""
        config = self.config
        scheduled = lr_share(
            step_index,
            self.total_steps,
            config.warmup_steps,
            config.schedule,
            config.cooldown_share,
            config.final_lr_share,
        )
        return scheduled * self.lr_scale

    def step(self, step_index: int) -> StepStats:
        """Take one step with the gradients that backward has left.

        Args:
            step_index: Index of this step (0-based); the schedule depends on nothing else.

        Returns:
            Norms, learning rates, and whether the step was skipped.

        Raises:
            RuntimeError: No parameter has a gradient.
        """
        grads = [p.grad for p in self._parameters if p.grad is not None]
        if not grads:
            raise RuntimeError("no parameter has a gradient; call backward before step")
        share = self.share(step_index)
        lr, adamw_lr = self.config.muon_lr * share, self.config.adamw_lr * share
        loss_scale = self.scaler.value if self.scaler else None
        if self.scaler:
            self.scaler.unscale_(self._optimizers)
        total_norm = get_total_norm(grads)
        norm = float(total_norm)
        skip_reason: Literal["", "overflow", "non_finite"] = ""
        grokfast: GrokfastStats | None = None
        if math.isfinite(norm):
            clip_grads_with_norm_(self._parameters, self.config.clip_norm, total_norm)
            grokfast = self.grokfast.apply()
            self._take(lr, adamw_lr)
        else:
            # With the scale at 1 or below, fp16's range is no longer an excuse.
            scaled = loss_scale is not None and loss_scale > 1.0
            skip_reason = "overflow" if scaled else "non_finite"
        if self.scaler:
            self.scaler.update()
        return StepStats(
            grad_norm=norm,
            lr=lr,
            adamw_lr=adamw_lr,
            clipped=norm > self.config.clip_norm,
            skip_reason=skip_reason,
            grokfast=grokfast,
            loss_scale=loss_scale,
        )

    def _take(self, lr: float, adamw_lr: float) -> None:
        for group in self.muon.param_groups:
            group["lr"] = lr
        for group in self.adamw.param_groups:
            group["lr"] = adamw_lr
        for optimizer in self._optimizers:
            optimizer.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """All optimiser state by parameter name; live references, write them before the next step.

        Keys: ``muon.momentum_buffer.NAME``, ``adamw.exp_avg.NAME``, ``adamw.exp_avg_sq.NAME``,
        ``adamw.step.NAME`` (a float scalar), ``grokfast.slow.NAME``. A parameter that never had a
        gradient has no entries.
        """
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.roles.hidden.items():
            if parameter in self.muon.state:
                tensors[_MUON + name] = self.muon.state[parameter]["momentum_buffer"]
        for name, parameter in self._others.items():
            if parameter in self.adamw.state:
                for prefix in _ADAMW:
                    tensors[prefix + name] = self.adamw.state[parameter][prefix.split(".")[1]]
        for name, slow in self.grokfast.state_tensors().items():
            tensors[_SLOW + name] = slow
        return tensors

    def state_scalars(self) -> dict[str, JsonValue]:
        """The rest of the state, as JSON: run-time settings and the loss scaler's state."""
        return {
            "lr_scale": self.lr_scale,
            "total_steps": self.total_steps,
            "loss_scaler": self.scaler.state() if self.scaler else None,
        }

    def load_state(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, JsonValue]) -> None:
        """Take over a saved state; the next step is bit-equal to that of the saved run.

        Tensors are copied. A loss scaler that the saved run did not have starts afresh; one that
        this run does not have is dropped (a run may go from a GPU in fp16 to a CPU).

        Raises:
            CheckpointError: State of unknown parameters, of other shapes, or with parts missing;
                the optimiser must not be used then.
        """
        muon: dict[Tensor, dict[str, Tensor]] = {}
        adamw: dict[Tensor, dict[str, Tensor]] = {}
        known: set[str] = set()
        for name, parameter in self.roles.hidden.items():
            if _MUON + name in tensors:
                known.add(_MUON + name)
                buffer = matching_copy(_MUON + name, tensors[_MUON + name], parameter)
                muon[parameter] = {"momentum_buffer": buffer}
        for name, parameter in self._others.items():
            keys = [prefix + name for prefix in _ADAMW]
            if not any(key in tensors for key in keys):
                continue
            lacking = [key for key in keys if key not in tensors]
            if lacking:
                raise CheckpointError(f"optimiser state is incomplete: {lacking} missing")
            known.update(keys)
            if tensors[keys[2]].ndim != 0:
                raise CheckpointError(f"{keys[2]} must be a scalar")
            adamw[parameter] = {
                "exp_avg": matching_copy(keys[0], tensors[keys[0]], parameter),
                "exp_avg_sq": matching_copy(keys[1], tensors[keys[1]], parameter),
                "step": tensors[keys[2]].detach().to("cpu", copy=True),
            }
        slow = {k.removeprefix(_SLOW): t for k, t in tensors.items() if k.startswith(_SLOW)}
        known.update(_SLOW + name for name in slow)
        unknown = sorted(set(tensors) - known)
        if unknown:
            raise CheckpointError(
                f"optimiser state of unknown parameters: {unknown[:3]} ({len(unknown)} in all)",
                remedy="the checkpoint belongs to another model; resume the run it came from",
            )
        lr_scale, total_steps = scalars.get("lr_scale"), scalars.get("total_steps")
        if not isinstance(lr_scale, (int, float)) or not isinstance(total_steps, int):
            raise CheckpointError(f"optimiser scalars {dict(scalars)} lack lr_scale or total_steps")
        saved_scaler = scalars.get("loss_scaler")
        if self.scaler and isinstance(saved_scaler, dict):
            self.scaler.load_state(saved_scaler)
        self.grokfast.load_state_tensors(slow)
        self.lr_scale, self.total_steps = float(lr_scale), total_steps
        self.muon.state.clear()
        self.muon.state.update(muon)
        self.adamw.state.clear()
        self.adamw.state.update(adamw)
