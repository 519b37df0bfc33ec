"""A projection whose ternary weight is packed: what a loaded 1.58-bit model computes with."""

from __future__ import annotations

import torch
from agentforge_kernels import PackedTernary, TernaryLinear
from torch import Tensor, nn
from torch.nn import functional as F

from agentforge.model.bit_linear import dequantised
from agentforge.model.linear import Projection
from agentforge.model.norm import RMSNorm


class PackedProjection(Projection):
    """Stands where a `Projection` stood; inference only.

    Args:
        packed: The weight.
        norm: Weight (in,) of the norm before it, or None.
        eps: Of that norm.
        zero_activations: Share of its input that was measured to be zero.
    """

    def __init__(
        self, packed: PackedTernary, norm: Tensor | None, eps: float, zero_activations: float = 0.0
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = packed.columns, packed.rows
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        self.normed = norm is None
        self.norm: RMSNorm | None = None
        if norm is not None:
            self.norm = RMSNorm(packed.columns, eps)
            self.norm.weight.data.copy_(norm)
        self.ternary = TernaryLinear.from_packed(packed, zero_activations=zero_activations)

    @property
    def plain(self) -> bool:
        """Never: there is no float weight."""
        return False

    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name nn.Linear has
        """(..., in) -> (..., out), fp32."""
        x = input if self.norm is None else self.norm(input)
        y: Tensor = self.ternary(x)
        return y


class DequantisedProjection(Projection):
    """A ternary weight as floats: what the twin for further training computes with.

    Args:
        weight: (out, in), scale times trit; a parameter, gradients flow.
        norm: Weight (in,) of the norm before it, or None.
        eps: Of that norm.
        quantise_input: Round the input to int8 as the packed model does.
    """

    def __init__(
        self, weight: Tensor, norm: Tensor | None, eps: float, quantise_input: bool
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.float())
        self.register_parameter("bias", None)
        self.normed = norm is None
        self.norm: RMSNorm | None = None
        if norm is not None:
            self.norm = RMSNorm(self.in_features, eps)
            self.norm.weight.data.copy_(norm)
        self.quantise_input = quantise_input

    @property
    def plain(self) -> bool:
        """Never: its input is changed first."""
        return False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name nn.Linear has
        """(..., in) -> (..., out)."""
        x = input if self.norm is None else self.norm(input)
        if self.quantise_input:
            x = x + (dequantised(x.detach()) - x).detach()
        return F.linear(x, self.weight)
