"""What a backend is: the same six operations over plain tensors, and its layout of weights.

Every backend offers these functions; arguments arrive checked.

Layouts of a weight (``Layout``), made once by ``lay_out_*`` from the stored form:

================  ======================================================================
``rows``          the stored form, uint8 ``[rows, padded_columns / 4]``
``panels``        native: panels of 64 rows x groups of 16 columns, four rows a byte
``int8``          unpacked, int8 ``[rows, columns]``
``columns``       stored column form, uint8 ``[columns, padded_rows / 4]``
``column_blocks`` native: blocks of 256 rows, one 64-byte line a column
``lanes``         native int8 head: 16 rows x 4 columns interleaved
``panel_tiles``   native: block-sparse tiles ``[count, 256]`` in the order of ``panels``
================  ======================================================================
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Layout = Literal["rows", "panels", "int8", "columns", "column_blocks", "lanes", "panel_tiles"]


class Activations(NamedTuple):
    """Quantised activations, ready for any matmul of this package.

    Taken as :func:`agentforge_kernels.quantize_activations` made them: that padding is zero and
    that ``sum`` is the sum of ``q`` is not looked at again, since that costs what quantising does.

    Attributes:
        q: int8 ``[tokens, padded_columns]``: columns padded with zeros to a multiple of 128.
        scale: float32 ``[tokens]``; the activation is ``scale * q``.
        sum: int32 ``[tokens]``, the sum of ``q`` over a row (corrects codes 0..2 to -1..1).
    """

    q: Tensor
    scale: Tensor
    sum: Tensor


class Backend(Protocol):
    """The operations; shapes and the order of float operations are those of ``reference``.

    ``residual`` is float32 ``[tokens, rows]`` or ``None``; every matmul returns float32
    ``[tokens, rows]``; ``weight_scale`` is float32 ``[1]`` or ``[rows]``.
    """

    name: str

    def lay_out_dense(self, codes: Tensor, columns: int) -> tuple[Tensor, Layout]:
        """Stored codes to this backend's dense layout."""

    def lay_out_columns(self, codes: Tensor, rows: int) -> tuple[Tensor, Layout]:
        """Stored column form to this backend's column layout."""

    def lay_out_int8(self, weight: Tensor) -> tuple[Tensor, Layout]:
        """int8 ``[rows, columns]`` to this backend's head layout."""

    def quantize_activations(
        self, x: Tensor, norm_weight: Tensor | None, epsilon: float
    ) -> Activations:
        """Per-token absmax int8 of ``x`` ``[tokens, columns]`` (float32, float16 or bfloat16).

        A token that holds NaN or infinity gets scale NaN, never a plausible number.
        """

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
        """Dense ternary matmul."""

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
        """Quantise (optionally normalised) and multiply in one call.

        The outputs of a token that holds NaN or infinity are NaN.
        """

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
        """Ternary matmul over the stored tiles only (``sparse.BlockSparseTernary``)."""

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
        """Ternary matmul that reads only the columns whose activation is not zero."""

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
        """int8 matmul with a scale a row (language-model head)."""
