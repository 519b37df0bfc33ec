"""A look at what matrices are given: some training items through the model, with hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from agentforge.data.batching import micro_batches
from agentforge.model.behaviour import Behaviour
from agentforge.model.bit_linear import BitLinear
from agentforge.model.language_model import CognateLM
from agentforge.phases.bitnet.data import BitData


@torch.no_grad()
def visit_inputs(
    model: CognateLM,
    layers: Sequence[BitLinear],
    note: Callable[[BitLinear, Tensor], None],
    behaviour: Behaviour,
    data: BitData,
    *,
    items: int,
    tokens: int,
) -> None:
    """Call `note` with every input of some layers.

    Projections of one input are computed together, past their hooks; those behind none are not.

    Args:
        model: The model.
        layers: Whose inputs are looked at.
        note: Called with the layer and its input (..., in).
        behaviour: How the model is run.
        data: Its training corpora.
        items: Items of each corpus.
        tokens: Padded tokens of a forward.
    """

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, BitLinear)
        note(layer, inputs[0])

    hooks = [layer.register_forward_pre_hook(hook) for layer in layers]
    train = data.reasoning.prepared.train
    chosen = [(name, i) for name in data.weights for i in range(min(items, len(train[name])))]
    pad = data.reasoning.prepared.tokenizer.pad_id
    try:
        for batch in micro_batches(train, chosen, tokens, pad):
            model(batch.ids.to(model.rope_cos.device), behaviour)
    finally:
        for handle in hooks:
            handle.remove()
