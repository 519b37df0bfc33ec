"""An int8 matrix with a scale a row: the language-model head, which ternary weights would harm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import SMALLEST_MAGNITUDE, check_device, check_scale

MOST_COLUMNS = (2**31 - 1) // (128 * 128)
"""Above, a sum of int8 products could leave 32 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Int8Weight:
    """An int8 matrix as it is stored.

    Attributes:
        weight: int8 ``[rows, columns]``, contiguous, at most 131,071 columns.
        scale: float32 ``[1]`` or ``[rows]``; the weight stands for ``scale * weight``.

    Raises:
        KernelInputError: A tensor of another dtype, shape, device or content than described.
    """

    weight: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        weight = self.weight
        if weight.dtype != torch.int8 or weight.ndim != 2 or 0 in weight.shape:
            raise KernelInputError(
                "weight", f"{weight.dtype} of shape {list(weight.shape)}", "an int8 matrix"
            )
        if not weight.is_contiguous():
            raise KernelInputError(
                "weight", f"strides {list(weight.stride())}", "a contiguous tensor"
            )
        if self.columns > MOST_COLUMNS:
            raise KernelInputError(
                "weight",
                f"{self.columns} columns",
                f"{MOST_COLUMNS} or fewer (32-bit sums)",
            )
        check_device(self.scale, weight)
        check_scale(self.scale, self.rows)

    @property
    def rows(self) -> int:
        """Rows (output features)."""
        return int(self.weight.shape[0])

    @property
    def columns(self) -> int:
        """Columns (input features)."""
        return int(self.weight.shape[1])


def quantize_int8(weight: Tensor) -> Int8Weight:
    """Absmax quantisation row by row: ``round(w * 127 / max |w|)``, in float32.

    Args:
        weight: Floating ``[rows, columns]``, finite.

    Raises:
        KernelInputError: Not a floating matrix, or not finite.
    """
    if weight.ndim != 2 or not weight.is_floating_point() or 0 in weight.shape:
        raise KernelInputError(
            "weight", f"{weight.dtype} of shape {list(weight.shape)}", "a floating matrix"
        )
    weight = weight.detach().float()
    largest = weight.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST_MAGNITUDE)
    if not bool(torch.isfinite(largest).all()):
        raise KernelInputError("weight", "NaN or infinity", "finite values")
    q = (weight * (127.0 / largest)).round().clamp(-127, 127).to(torch.int8)
    return Int8Weight(q, (largest / 127.0).squeeze(1))
