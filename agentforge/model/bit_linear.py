"""BitLinear (BitNet b1.58, arXiv 2402.17764): a projection that computes with ternary weights.

    y = Q(norm(x)) T(W)^T        Q: int8 per token (absmax), T: {-1, 0, +1} times the mean |W|

Between full precision and that lies a strength in [0, 1]: every rounding f becomes
``a + strength (f(a) - a)`` with the gradient of the identity, and the norm of the input is blended
likewise. Switching a trained model at once destroys what it knew; raising the strength while
training lets it follow. At strength 1 the forward has the bits of the packed matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from agentforge_kernels import kept_tiles, quantize_weights, reference, ste_ternary_linears
from agentforge_kernels.format import ternary
from agentforge_kernels.pruning import weights_of_tiles
from torch import Tensor, nn
from torch.nn import functional as F

from agentforge.model.linear import Projection
from agentforge.model.norm import RMSNorm


class BitLinear(Projection):
    """A projection on its way to ternary weights.

    Args:
        source: What it stands for; the weight is shared, not copied.
        threshold: Share of the mean magnitude up to which a weight becomes 0; .5 is the paper's
            rounding.
        eps: Of the norm of its input, for inputs that do not come out of a norm (SubLN, arXiv
            2210.06423; what BitNet 2B4T does before its output and down projections); None: none.

    Attributes:
        strength: 0 is the projection it stands for, 1 the ternary one.
        norm: RMSNorm of the input, or None.
        tiles: bool (ceil(out / 64), ceil(in / 16)): the tiles that are not pruned.
    """

    tiles: Tensor

    def __init__(self, source: Projection, threshold: float, eps: float | None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.weight = source.weight
        self.register_parameter("bias", None)
        self.normed = source.normed
        self.threshold = threshold
        self.strength = 0.0
        self.norm = RMSNorm(source.in_features, eps).to(self.weight.device) if eps else None
        self.register_buffer("tiles", kept_tiles(self.weight, 0.0))

    @property
    def plain(self) -> bool:
        """Never: even at strength 0 tiles may be pruned."""
        return False

    def prune(self, share: float) -> None:
        """Choose the tiles that go, by their magnitudes now; (1 - share) of them stay."""
        # A pruned weight has no gradient and would keep its place by its old magnitude.
        self.tiles.copy_(kept_tiles(self.weight * self.kept, share))

    @property
    def kept(self) -> Tensor:
        """bool (out, in): the weights whose tile is not pruned."""
        return weights_of_tiles(self.tiles, self.out_features, self.in_features)

    def codes(self) -> tuple[Tensor, Tensor]:
        """Trits int8 (out, in) and the scale fp32 (1,) of the weight as it is."""
        return quantize_weights(self.weight.detach(), threshold=self.threshold, kept=self._mask())

    def normalised(self, x: Tensor) -> Tensor:
        """The input through the norm, as far as the strength goes."""
        if self.norm is None or self.strength == 0.0:
            return x
        y: Tensor = self.norm(x)
        return y if self.strength == 1.0 else x + self.strength * (y - x)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name nn.Linear has
        """(..., in) -> (..., out)."""
        x = self.normalised(input)
        if self.strength == 1.0:
            return ternary_products(x, [self])[0]
        return F.linear(*self.blended(x))

    @staticmethod
    def products(x: Tensor, projections: Sequence[Projection]) -> list[Tensor]:
        """One input through several projections, ternary or not, quantised once where it can be."""
        layers = [p for p in projections if isinstance(p, BitLinear)]
        alike = {(p.strength, p.threshold, p.norm is None) for p in layers}
        if len(layers) == len(projections) and alike == {(1.0, layers[0].threshold, True)}:
            return ternary_products(x, layers)
        return [p(x) for p in projections]

    def blended(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight of the product below strength 1, as floats with straight gradients."""
        weight = self.weight if self._mask() is None else self.weight * self.kept
        if self.strength == 0.0:
            return x, weight
        with torch.no_grad():
            trits, scale = ternary(weight, self.threshold, self._mask())
            quantised = trits.float() * scale
            rounded = dequantised(x)
        x = x + self.strength * (rounded - x).detach()
        return x, weight + self.strength * (quantised - weight).detach()

    def _mask(self) -> Tensor | None:
        return None if bool(self.tiles.all()) else self.kept


def ternary_products(x: Tensor, layers: Sequence[BitLinear]) -> list[Tensor]:
    """Outputs (..., out_i) of layers at strength 1 and one threshold for one normalised input."""
    return ste_ternary_linears(
        x,
        [layer.weight for layer in layers],
        threshold=layers[0].threshold,
        kept=[layer._mask() for layer in layers],
    )


def dequantised(x: Tensor) -> Tensor:
    """Activations (..., K) after int8 rounding by their token's maximum, as floats."""
    q, scale, _ = reference.quantize_activations(x.reshape(-1, x.shape[-1]))
    values = q[:, : x.shape[-1]].float() * scale[:, None]
    return values.view(x.shape).to(x.dtype)


def bit_linears(model: nn.Module) -> dict[str, BitLinear]:
    """Every BitLinear of a model by name, in the order of its modules."""
    return {n: m for n, m in model.named_modules() if isinstance(m, BitLinear)}


def make_bit_linear(model: nn.Module, name: str, threshold: float, eps: float | None) -> BitLinear:
    """Put a BitLinear in the place of a projection; the weight stays the same parameter.

    Raises:
        TypeError: There is something else at that name.
    """
    source = model.get_submodule(name)
    if not isinstance(source, Projection) or isinstance(source, BitLinear):
        raise TypeError(f"{name} is a {type(source).__name__}, not a plain projection")
    parent, _, leaf = name.rpartition(".")
    layer = BitLinear(source, threshold, None if source.normed else eps)
    setattr(model.get_submodule(parent), leaf, layer)
    return layer
