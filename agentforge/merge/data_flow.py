"""Data flow: a path through the layers of several models, weights left as they are.

This is Sakana's "DFS", data flow *space* (Akiba et al. 2024, arXiv 2403.13187, section 3.2). It is
not the technique ``dfs`` of the eight combos, which merges weights (``importance.py``): here layers
of different models are run one after the other, any of them left out or used again, and every jump
from one layer to another has a scale.

The path goes through prelude blocks; embedding, recursive core and head are those of the first
model. Its result has another depth than its parents, so no later phase trains it: it is measured
and reported apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from torch import Tensor, nn

from agentforge.merge.recipe import Bounds
from agentforge.model.attention import window_mask
from agentforge.model.language_model import CognateLM
from agentforge.model.record import ForwardRecord

START = -1
"""Where a path comes from before its first layer: the embedding."""
SCALES = Bounds(0.0, 2.0)
"""What a jump's scale may be; 1 leaves the layer's input as it is."""
SCALE_STEP = 0.05
"""Standard deviation of a mutation of one scale."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A path.

    Attributes:
        models: Models with layers to choose from.
        blocks: Layers of each.
        indicator: For every slot whether its layer is run. Slots hold all layers of all models in
            order, model by model, as often as the list is repeated: slot s holds layer
            ``s % (models * blocks)``.
        scales: ``scales[i + 1][j]`` multiplies what layer j gets when it comes from layer i (from
            the embedding for i = -1); ``(models * blocks + 1) x (models * blocks)``.
    """

    models: int
    blocks: int
    indicator: tuple[bool, ...]
    scales: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        layers = self.models * self.blocks
        if layers < 1 or len(self.indicator) % layers or not any(self.indicator):
            raise ValueError(
                f"indicator of {len(self.indicator)} slots for {layers} layers: a multiple of them "
                "with one layer chosen at least is needed"
            )
        if len(self.scales) != layers + 1 or any(len(row) != layers for row in self.scales):
            raise ValueError(f"scales must be {layers + 1} rows of {layers} numbers")
        for row in self.scales:
            for scale in row:
                if not SCALES.low <= scale <= SCALES.high:
                    raise ValueError(f"scale {scale} is not within {SCALES.low} to {SCALES.high}")

    @property
    def layers(self) -> tuple[int, ...]:
        """The chosen layers in the order they are run."""
        count = self.models * self.blocks
        return tuple(s % count for s, chosen in enumerate(self.indicator) if chosen)

    @property
    def steps(self) -> tuple[tuple[int, int, float], ...]:
        """(model, block, scale of its input) in the order they are run."""
        found = []
        before = START
        for layer in self.layers:
            scale = self.scales[before + 1][layer]
            found.append((layer // self.blocks, layer % self.blocks, scale))
            before = layer
        return tuple(found)

    def to_json(self) -> str:
        """One line; numbers come back exactly."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Flow:
        """From `to_json`.

        Raises:
            ValueError: Not a flow.
        """
        try:
            row = json.loads(text)
            row["indicator"] = tuple(bool(i) for i in row["indicator"])
            row["scales"] = tuple(tuple(map(float, r)) for r in row["scales"])
            return cls(**row)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a data flow: {text[:200]} ({error})") from None


def first_flow(models: int, blocks: int, repeats: int = 1) -> Flow:
    """All layers of the first model, once, in order, with scales of 1: that model's own forward."""
    layers = models * blocks
    chosen = tuple(slot < blocks for slot in range(layers * repeats))
    return Flow(models, blocks, chosen, ((1.0,) * layers,) * (layers + 1))


def mutate_flow(flow: Flow, rng: np.random.Generator) -> Flow:
    """One slot switched (never the last one that is on), and a step of every scale in use."""
    indicator = list(flow.indicator)
    slot = int(rng.integers(len(indicator)))
    if not (indicator[slot] and sum(indicator) == 1):
        indicator[slot] = not indicator[slot]
    child = replace(flow, indicator=tuple(indicator))
    scales = [list(row) for row in flow.scales]
    before = START
    for layer in child.layers:
        moved = scales[before + 1][layer] + float(rng.normal(0.0, SCALE_STEP))
        scales[before + 1][layer] = SCALES.clip(moved)
        before = layer
    return replace(child, scales=tuple(tuple(row) for row in scales))


class FlowLM(CognateLM):
    """A model whose prelude is a path; everything else is the first model's.

    Args:
        models: With equal shapes; their blocks are shared, not copied.
        flow: The path; may be replaced by another through the same layers.

    Raises:
        ValueError: The path is through other models than these.
    """

    def __init__(self, models: Sequence[CognateLM], flow: Flow) -> None:
        blocks = [len(model.prelude) for model in models]
        if blocks != [flow.blocks] * flow.models:
            raise ValueError(
                f"a path through {flow.models} models of {flow.blocks} layers; these have {blocks}"
            )
        super().__init__(models[0].config, models[0].vocab_size)
        self.load_state_dict(models[0].state_dict())
        self.to(models[0].rope_cos.device)
        self.donors = nn.ModuleList(model.prelude for model in models)
        self.flow = flow

    def encode(self, ids: Tensor, budget: float, record: ForwardRecord | None = None) -> Tensor:
        """Embedding and path: ids (B, T) -> h (B, T, D)."""
        h: Tensor = self.embedding(ids)
        rope = self.rope(ids.shape[1])
        mask = window_mask(ids.shape[1], self.config.window, ids.device)
        for place, (model, block, scale) in enumerate(self.flow.steps):
            layers = self.donors[model]
            assert isinstance(layers, nn.ModuleList)
            h = layers[block](scale * h, rope, mask, budget, record, f"path.{place}")
        return h
