"""The Triton backend: the package's operations on a GPU.

Which kernel runs is decided by the number of tokens and the family of the GPU alone, from tables;
nothing is timed or tuned on the way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agentforge_kernels.backend import Activations, Layout
from agentforge_kernels.reference_backend import check_layout
from agentforge_kernels.triton import launch
from agentforge_kernels.triton.devices import Family, family_of_device
from agentforge_kernels.triton.fused import MOST_FUSED_COLUMNS

LOAD_BYTES = 16
"""Kernels load 16 bytes at a time where tensors begin at a multiple of it."""


class TritonBackend:
    """:class:`agentforge_kernels.backend.Backend` by Triton kernels.

    Args:
        family: Family of GPUs to compute as; by default that of each call's device. Given for tests
            in the interpreter, where tensors are on the CPU.
    """

    name = "triton"

    def __init__(self, family: Family | None = None) -> None:
        self._forced = family
        self._families: dict[torch.device, Family] = {}

    def lay_out_dense(self, codes: Tensor, columns: int) -> tuple[Tensor, Layout]:
        """The stored form as it is, copied only if it does not begin at a multiple of 16 bytes."""
        return _aligned(codes), "rows"

    def lay_out_columns(self, codes: Tensor, rows: int) -> tuple[Tensor, Layout]:
        """The stored form as it is, copied only if it does not begin at a multiple of 16 bytes."""
        return _aligned(codes), "columns"

    def lay_out_int8(self, weight: Tensor) -> tuple[Tensor, Layout]:
        """Columns padded with zeros to a multiple of 16."""
        from agentforge_kernels.triton.int8 import lay_out_int8

        return _aligned(lay_out_int8(weight)), "int8"

    def quantize_activations(
        self, x: Tensor, norm_weight: Tensor | None = None, epsilon: float = 1e-5
    ) -> Activations:
        """Per-token absmax int8; a token that holds NaN or infinity gets scale NaN."""
        with _on(x):
            return launch.quantize_tokens(
                x.resolve_neg().contiguous(), _float(norm_weight), epsilon, self.family(x.device)
            )

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
        """Dense ternary matmul: matvec, small batch or matrix kernel by the number of tokens."""
        check_layout(layout, "rows")
        with _on(codes):
            return launch.multiply(
                activations, codes, weight_scale, _whole(residual), self.family(codes.device)
            )

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
        """One launch for one token of up to 2,048 columns, else quantise, then multiply."""
        if x.shape[0] != 1 or columns > MOST_FUSED_COLUMNS:
            activations = self.quantize_activations(x, norm_weight, epsilon)
            return self.ternary_linear(
                activations, codes, layout, weight_scale, residual, rows, columns
            )
        check_layout(layout, "rows")
        with _on(codes):
            return launch.fused_multiply(
                x.resolve_neg().contiguous(),
                _float(norm_weight),
                epsilon,
                codes,
                weight_scale,
                _whole(residual),
                self.family(codes.device),
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
        """Ternary matmul over the stored tiles only."""
        from agentforge_kernels.triton.block_sparse import block_sparse_linear

        family = self.family(tiles.device)
        with _on(tiles):
            return block_sparse_linear(
                activations,
                tiles,
                index,
                start,
                weight_scale,
                _whole(residual),
                rows,
                columns,
                family=family,
            )

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
        from agentforge_kernels.triton.activation_sparse import activation_sparse_linear

        check_layout(layout, "columns")
        family = self.family(codes.device)
        with _on(codes):
            return activation_sparse_linear(
                activations, codes, weight_scale, _whole(residual), rows, columns, family=family
            )

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
        from agentforge_kernels.triton.int8 import int8_linear

        check_layout(layout, "int8")
        family = self.family(weight.device)
        with _on(weight):
            return int8_linear(
                activations, weight, row_scale, _whole(residual), rows, columns, family=family
            )

    def family(self, device: torch.device) -> Family:
        """Family of GPUs whose kernels compute on a device.

        Raises:
            BackendUnavailableError: Not a GPU, or one the kernels do not know.
        """
        if self._forced is not None:
            return self._forced
        if device not in self._families:
            self._families[device] = family_of_device(device)
        return self._families[device]


def _aligned(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % LOAD_BYTES == 0 else tensor.clone()


def _float(norm_weight: Tensor | None) -> Tensor | None:
    return None if norm_weight is None else norm_weight.float().contiguous()


def _whole(residual: Tensor | None) -> Tensor | None:
    return None if residual is None else residual.contiguous()


def _on(tensor: Tensor) -> torch.cuda.device_of:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
