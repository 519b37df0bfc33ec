"""Carrying out a recipe: three stages, a tensor at a time.

    stage 1   interpolation      one tensor from three
    stage 2   task arithmetic    base + merged deltas of the three, then the mean with stage 1
    stage 3   selection          mixed in with the recipe's strength

One-dimensional tensors (gains, gates, biases) skip SLERP, sparsified deltas and selection: they
are merged linearly. Tensors that are not floating are buffers and copied from the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from agentforge.merge.dare import dare
from agentforge.merge.franken import franken
from agentforge.merge.groups import NEVER_DROPPED, block_places, group_of
from agentforge.merge.importance import importance_merge
from agentforge.merge.linear import linear, weighted_deltas
from agentforge.merge.recipe import Recipe
from agentforge.merge.slerp import slerp_all
from agentforge.merge.ties import ties

Tensors = Mapping[str, Tensor]


@torch.no_grad()
def merge(base: Tensors, models: Sequence[Tensors], recipe: Recipe) -> dict[str, Tensor]:
    """Make the child of a recipe.

    Args:
        base: What all models were trained from; deltas are taken from it.
        models: Three, with the base's names and shapes, on its device.
        recipe: How.

    Returns:
        New tensors with the base's names, shapes and dtypes.

    Raises:
        ValueError: Not three models, or names or shapes that differ.
    """
    if len(models) != 3:
        raise ValueError(f"{len(models)} models; a recipe merges exactly three")
    places = block_places(base)
    blocks = len(set(places.values()))
    if len(recipe.slots) != blocks:
        raise ValueError(f"{len(recipe.slots)} slots for a model of {blocks} blocks")
    weights = recipe.groups
    child = {}
    for name, tensor in base.items():
        parents = [_same(model, name, tensor) for model in models]
        shares = weights[group_of(name)]
        if not tensor.is_floating_point():
            child[name] = tensor.clone()
        elif tensor.ndim < 2:
            child[name] = weighted_deltas(tensor, parents, shares)
        else:
            slot = recipe.slots[places[name]] if name in places else 0
            child[name] = _merge_matrix(name, tensor, parents, shares, slot, recipe)
    return child


def _same(model: Tensors, name: str, like: Tensor) -> Tensor:
    tensor = model.get(name)
    if tensor is None or tensor.shape != like.shape:
        found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
        raise ValueError(f"{name} is {found}; the base's has shape {tuple(like.shape)}")
    return tensor


def _merge_matrix(
    name: str,
    base: Tensor,
    parents: list[Tensor],
    shares: Sequence[float],
    slot: int,
    recipe: Recipe,
) -> Tensor:
    first, second, third = (chosen.name for chosen in recipe.combo.techniques)
    if first == "linear":
        merged = weighted_deltas(base, parents, shares)
    else:
        # The arc decides the mixture, the weights only how far from the base it goes.
        merged = slerp_all(parents, recipe.places).sub_(base).mul_(sum(shares)).add_(base)
    origin = merged if recipe.chain else base
    if second == "dare":
        density = 1.0 if name in NEVER_DROPPED else recipe.density
        arithmetic = dare(origin, parents, shares, density, recipe.seed, name, recipe.scale)
    else:
        arithmetic = ties(origin, parents, shares, recipe.density, recipe.scale)
    merged = arithmetic.sub_(merged).mul_(recipe.blend).add_(merged)
    if third == "franken":
        chosen = franken([merged, *parents], slot)
    else:
        chosen = importance_merge([merged, *parents])
    return linear([merged, chosen], [1.0 - recipe.strength, recipe.strength])


def plain_mean(models: Sequence[Tensors]) -> dict[str, Tensor]:
    """The uniform mean of all floating tensors; buffers are the first model's."""
    first = models[0]
    return {
        name: linear([m[name] for m in models], [1.0] * len(models))
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }
