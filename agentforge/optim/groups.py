"""Which parameter belongs to which optimiser: hidden matrices to Muon, everything else to AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class ParameterRoles:
    """A model's parameters by role; every parameter is in exactly one of the three.

    Attributes:
        hidden: 2-D hidden matrices, for Muon.
        decayed: Other parameters of two or more dimensions (embeddings, head, gates): AdamW with
            weight decay.
        plain: Vectors and scalars (norm gains, biases, memory scalars): AdamW without weight
            decay, which would pull a gain towards 0 instead of 1.
    """

    hidden: dict[str, nn.Parameter]
    decayed: dict[str, nn.Parameter]
    plain: dict[str, nn.Parameter]


def split_parameters(
    named: Mapping[str, nn.Parameter], hidden: Mapping[str, nn.Parameter]
) -> ParameterRoles:
    """Give every parameter its role.

    Args:
        named: All parameters of the model by name, each once (``dict(model.named_parameters())``).
        hidden: Those that Muon shall train. The model lists them: shape alone cannot tell a hidden
            matrix from an embedding, and an orthogonalised update of an embedding moves every row
            of it, rare words included.

    Returns:
        The roles, each in the order of `named`.

    Raises:
        ValueError: A hidden parameter that `named` does not know, that is another object there, is
            not 2-D, or shares its storage with another parameter (tied weights belong to AdamW).
    """
    for name, parameter in hidden.items():
        if name not in named:
            raise ValueError(f"hidden matrix {name!r} is not a parameter of the model")
        if named[name] is not parameter:
            raise ValueError(f"hidden matrix {name!r} is not the model's parameter of that name")
        if parameter.ndim != 2:
            raise ValueError(
                f"hidden matrix {name!r} has shape {tuple(parameter.shape)}; Muon takes 2-D only"
            )
    owner: dict[int, str] = {}
    for name, parameter in named.items():
        key = parameter.untyped_storage().data_ptr() or id(parameter)  # 0: empty or meta tensor
        if key in owner and (name in hidden or owner[key] in hidden):
            raise ValueError(
                f"parameters {owner[key]!r} and {name!r} are tied; a tied matrix cannot be hidden"
            )
        owner.setdefault(key, name)
    rest = {name: p for name, p in named.items() if name not in hidden}
    return ParameterRoles(
        hidden={name: p for name, p in named.items() if name in hidden},
        decayed={name: p for name, p in rest.items() if p.ndim >= 2},
        plain={name: p for name, p in rest.items() if p.ndim < 2},
    )
