"""The oracle as a backend: plain torch on any device, int64 accumulators, slow and certain.

Forced by ``AGENTFORGE_KERNELS=reference``, and the base of the fallback without a compiler.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from agentforge_kernels import reference
from agentforge_kernels.backend import Activations, Layout
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import padded, unpack_codes
from agentforge_kernels.sparse import unpack_tiles


class ReferenceBackend:
    """:class:`agentforge_kernels.backend.Backend` by :mod:`agentforge_kernels.reference`."""

    name = "reference"

    def lay_out_dense(self, codes: Tensor, columns: int) -> tuple[Tensor, Layout]:
        """The stored form as it is."""
        return codes, "rows"

    def lay_out_columns(self, codes: Tensor, rows: int) -> tuple[Tensor, Layout]:
        """The stored form as it is."""
        return codes, "columns"

    def lay_out_int8(self, weight: Tensor) -> tuple[Tensor, Layout]:
        """The weight as it is."""
        return weight, "int8"

    def quantize_activations(
        self, x: Tensor, norm_weight: Tensor | None = None, epsilon: float = 1e-5
    ) -> Activations:
        """Per-token absmax int8; a token that holds NaN or infinity gets scale NaN."""
        finite = torch.isfinite(x).all(dim=-1)
        x = torch.where(finite[:, None], x, torch.zeros((), dtype=x.dtype, device=x.device))
        q, scale, total = reference.quantize_activations(x, norm_weight, epsilon)
        q = F.pad(q, (0, padded(x.shape[1]) - x.shape[1]))
        # A norm's weight may overflow what was finite.
        finite &= torch.isfinite(scale)
        return Activations(q, scale.masked_fill(~finite, float("nan")), total)

    def ternary_linear(
        self,
        activations: Activations,
        codes: Tensor,
        layout: Layout,
        weight_scale: Tensor,
        residual: Tensor | None,
        rows: int,
        columns: int,
    ) -> Tensor:
        """Dense ternary matmul over the stored form (or unpacked trits)."""
        trits = dense_trits(codes, layout, columns)
        return self._linear(activations, trits, weight_scale, residual)

    def ternary_linear_fused(
        self,
        x: Tensor,
        norm_weight: Tensor | None,
        epsilon: float,
        codes: Tensor,
        layout: Layout,
        weight_scale: Tensor,
        residual: Tensor | None,
        rows: int,
        columns: int,
    ) -> Tensor:
        """Quantise, then multiply."""
        activations = self.quantize_activations(x, norm_weight, epsilon)
        return self.ternary_linear(
            activations, codes, layout, weight_scale, residual, rows, columns
        )

    def ternary_linear_block_sparse(
        self,
        activations: Activations,
        tiles: Tensor,
        index: Tensor,
        start: Tensor,
        weight_scale: Tensor,
        residual: Tensor | None,
        rows: int,
        columns: int,
    ) -> Tensor:
        """The dense matrix is restored, then multiplied: an oracle, not a saving."""
        trits = unpack_tiles(tiles, index, start, rows, columns)
        return self._linear(activations, trits, weight_scale, residual)

    def ternary_linear_activation_sparse(
        self,
        activations: Activations,
        codes: Tensor,
        layout: Layout,
        weight_scale: Tensor,
        residual: Tensor | None,
        rows: int,
        columns: int,
    ) -> Tensor:
        """The dense matrix is restored, then multiplied: an oracle, not a saving."""
        trits = column_trits(codes, layout, rows)
        return self._linear(activations, trits, weight_scale, residual)

    def int8_linear(
        self,
        activations: Activations,
        weight: Tensor,
        layout: Layout,
        row_scale: Tensor,
        residual: Tensor | None,
        rows: int,
        columns: int,
    ) -> Tensor:
        """int8 matmul with a scale a row."""
        check_layout(layout, "int8")
        return self._linear(activations, weight, row_scale, residual)

    def accumulate(self, q: Tensor, weight: Tensor) -> Tensor:
        """Exact integers ``q @ weight.T``: int8 ``[tokens, columns]`` and ``[rows, columns]``."""
        return reference.accumulate(q, weight)

    def _linear(
        self,
        activations: Activations,
        weight: Tensor,
        weight_scale: Tensor,
        residual: Tensor | None,
    ) -> Tensor:
        q = activations.q[:, : weight.shape[1]]
        accumulator = self.accumulate(q, weight)
        return reference.epilogue(accumulator, activations.scale, weight_scale, residual)


def dense_trits(codes: Tensor, layout: Layout, columns: int) -> Tensor:
    """int8 ``[rows, columns]`` of a matrix laid out as ``rows`` or ``int8``."""
    if layout == "int8":
        return codes
    check_layout(layout, "rows")
    return unpack_codes(codes)[:, :columns]


def column_trits(codes: Tensor, layout: Layout, rows: int) -> Tensor:
    """int8 ``[rows, columns]`` of a matrix laid out as ``columns`` or ``int8``."""
    if layout == "int8":
        return codes
    check_layout(layout, "columns")
    return unpack_codes(codes)[:, :rows].T


def check_layout(layout: Layout, expected: Layout) -> None:
    """Raise :class:`KernelInputError` unless the weights were laid out for this operation."""
    if layout != expected:
        raise KernelInputError(
            "layout", layout, f"{expected} (prepare the weights with this backend first)"
        )
