"""Calibration: norms for inputs that had none, and how much each matrix suffers alone.

Ternary weights and absmax activations need no data. What data can tell is which matrices lose
most, which is the order they are quantised in: the hardest last, when the others have settled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agentforge.model.behaviour import Behaviour
from agentforge.model.bit_linear import BitLinear, bit_linears, make_bit_linear
from agentforge.model.language_model import CognateLM
from agentforge.model.linear import Projection
from agentforge.phases.bitnet.data import BitData
from agentforge.phases.bitnet.inputs import visit_inputs
from agentforge.phases.bitnet.losses import Losses, Rise, measure_losses, rise

NORM_ITEMS = 16
"""Training items of each corpus that the norms' scales are taken from."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """A matrix that alone is ternary.

    Attributes:
        name: Of the module.
        params: Its weights.
        rise: What it adds to the held-out loss, without any fine-tuning.
        zeros: Share of its weights that become 0.
    """

    name: str
    params: int
    rise: Rise
    zeros: float


def projections(model: nn.Module) -> list[str]:
    """Matrices that become ternary, chosen by role: every `Projection`, by module name."""
    return [n for n, m in model.named_modules() if isinstance(m, Projection)]


def prepare_layers(
    model: CognateLM, names: Sequence[str], threshold: float, norms: bool
) -> dict[str, BitLinear]:
    """Put a BitLinear of strength 0 in the place of every named projection."""
    eps = model.config.norm_eps if norms else None
    for name in names:
        make_bit_linear(model, name, threshold, eps)
    return bit_linears(model)


@torch.no_grad()
def set_norms(model: CognateLM, behaviour: Behaviour, data: BitData, tokens: int) -> None:
    """Give new norms the scale their input had, so that what follows meets what it knows."""
    squares: dict[BitLinear, list[Tensor]] = {}

    def note(layer: BitLinear, x: Tensor) -> None:
        squares.setdefault(layer, []).append(x.square().mean(-1).sqrt().mean())

    layers = [layer for layer in bit_linears(model).values() if layer.norm is not None]
    visit_inputs(model, layers, note, behaviour, data, items=NORM_ITEMS, tokens=tokens)
    for layer, found in squares.items():
        assert layer.norm is not None
        layer.norm.weight.fill_(float(torch.stack(found).mean()))


def scan(
    model: CognateLM,
    behaviour: Behaviour,
    data: BitData,
    batch: int,
    between: Callable[[], None],
    tell: Callable[[int, Sensitivity], None],
) -> tuple[Losses, list[Sensitivity]]:
    """Losses in full precision, and every BitLinear's sensitivity, in the order of the model.

    Args:
        model: With BitLinears of strength 0; they have strength 0 afterwards.
        behaviour: How it is run.
        data: Calibration items.
        batch: Items of a forward.
        between: Called between batches.
        tell: Called with the number of matrices done and the last one.
    """
    pad = data.reasoning.prepared.tokenizer.pad_id

    def losses() -> Losses:
        return measure_losses(model, behaviour, data.calibration, pad, batch, between)

    before = losses()
    found: list[Sensitivity] = []
    for name, layer in bit_linears(model).items():
        layer.strength = 1.0
        try:
            added = rise(before, losses())
        finally:
            layer.strength = 0.0
        zeros = float((layer.codes()[0] == 0).double().mean())
        found.append(Sensitivity(name, layer.weight.numel(), added, zeros))
        tell(len(found), found[-1])
    return before, found


def stage_groups(found: Sequence[Sensitivity], stages: int) -> list[list[str]]:
    """The matrices in groups of about equally many, the least sensitive first."""
    names = [s.name for s in sorted(found, key=lambda s: s.rise.value)]
    stages = min(stages, len(names))
    ends = [round(i * len(names) / stages) for i in range(stages + 1)]
    return [names[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
