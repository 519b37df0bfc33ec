"""Packed ternary weights of Hugging Face BitNet checkpoints, in and out, without transformers.

transformers packs (``integrations/bitnet.py``, ``pack_weights``) four rows to a byte: with
``r = ceil(rows / 4)``, bits ``2 i`` of stored row ``p`` hold the code ``weight + 1`` of row
``i r + p``. Fields of rows beyond the matrix, which exist when four does not divide ``rows``, hold
0 and mean nothing. (transformers' layers themselves take only rows that four divides.)

Beside ``weight`` lies ``weight_scale``, one number in the model's dtype, bfloat16 as a rule, and
the layer's class decides what it means:

=================  ==============================  ==========================
``linear_class``   layer's output                  weight
=================  ==============================  ==========================
``bitlinear``      ``y / (q_scale weight_scale)``  ``trit / weight_scale``
``autobitlinear``  ``y * weight_scale``            ``trit * weight_scale``
=================  ==============================  ==========================

``bitlinear`` is the default of ``BitNetQuantConfig``. ``autobitlinear`` with
``quantization_mode="online"`` stores float master weights, which are quantised with
:func:`agentforge_kernels.format.quantize_weights`, not read here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import CODES_ALLOWED, PackedTernary, check_trits, pack, unpack

ROWS_PER_BYTE = 4

ScaleConvention = Literal["multiplier", "divisor"]
"""How ``weight_scale`` makes a weight of a trit: times it, or divided by it."""

_CONVENTIONS: dict[str, ScaleConvention] = {"bitlinear": "divisor", "autobitlinear": "multiplier"}


def scale_convention(
    linear_class: str = "bitlinear", quantization_mode: str = "offline"
) -> ScaleConvention:
    """What ``weight_scale`` means in a checkpoint with this ``quantization_config``.

    Args:
        linear_class: The field of that name; transformers' default when it is absent.
        quantization_mode: Likewise.

    Raises:
        KernelInputError: Another class or mode; or ``online``, whose weights are not packed.
    """
    if linear_class not in _CONVENTIONS:
        raise KernelInputError("linear_class", repr(linear_class), " or ".join(_CONVENTIONS))
    if quantization_mode not in ("offline", "online"):
        raise KernelInputError("quantization_mode", repr(quantization_mode), "offline")
    if (linear_class, quantization_mode) == ("autobitlinear", "online"):
        raise KernelInputError(
            "quantization_mode",
            "'online' (the checkpoint holds float weights)",
            "offline",
            "Quantise the float weights with agentforge_kernels.format.quantize_weights.",
        )
    return _CONVENTIONS[linear_class]


def pack_rows(trits: Tensor) -> Tensor:
    """transformers' ``pack_weights``, but the input is not changed.

    Args:
        trits: int8 ``[rows, columns]`` with values in {-1, 0, 1}; any strides, any device.

    Returns:
        uint8 ``[ceil(rows / 4), columns]``.

    Raises:
        KernelInputError: Wrong dtype or shape, a value outside {-1, 0, 1}.
    """
    check_trits(trits)
    rows, columns = trits.shape
    stored_rows = -(-rows // ROWS_PER_BYTE)
    shape = (ROWS_PER_BYTE * stored_rows, columns)
    codes = torch.zeros(shape, dtype=torch.uint8, device=trits.device)
    codes[:rows] = (trits + 1).to(torch.uint8)
    fields = codes.view(ROWS_PER_BYTE, stored_rows, columns)
    return fields[0] | (fields[1] << 2) | (fields[2] << 4) | (fields[3] << 6)


def unpack_rows(weight: Tensor, rows: int) -> Tensor:
    """The trits int8 ``[rows, columns]``; the inverse of :func:`pack_rows`.

    Args:
        weight: uint8 ``[ceil(rows / 4), columns]``; any strides, any device.
        rows: Rows of the matrix (``out_features``), which the packed shape alone does not tell.

    Raises:
        KernelInputError: Wrong dtype or shape, a code 3.
    """
    if weight.dtype != torch.uint8 or weight.ndim != 2 or 0 in weight.shape:
        raise KernelInputError(
            "weight",
            f"{weight.dtype} of shape {list(weight.shape)}",
            "uint8 of shape [rows / 4 rounded up, columns], not empty",
        )
    stored_rows = -(-rows // ROWS_PER_BYTE)
    if rows < 1 or weight.shape[0] != stored_rows:
        raise KernelInputError(
            "rows",
            f"{rows} for {weight.shape[0]} stored rows",
            f"{4 * weight.shape[0] - 3} to {4 * weight.shape[0]} (four rows to a byte)",
        )
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=weight.device).view(4, 1, 1)
    codes = ((weight >> shifts) & 3).reshape(ROWS_PER_BYTE * stored_rows, -1)[:rows]
    if bool((codes == 3).any()):
        raise KernelInputError("weight", "a code 3", CODES_ALLOWED)
    return codes.to(torch.int8) - 1


def from_huggingface(
    weight: Tensor, weight_scale: Tensor, rows: int, convention: ScaleConvention
) -> PackedTernary:
    """A packed layer of a checkpoint in this package's form; the inputs are not changed.

    Args:
        weight: uint8 ``[ceil(rows / 4), columns]``.
        weight_scale: One floating value of any dtype.
        rows: ``out_features``.
        convention: What the scale means; :func:`scale_convention`.

    Returns:
        The matrix with one float32 scale: ``weight_scale`` itself, or its reciprocal rounded once.

    Raises:
        KernelInputError: Wrong dtype or shape, a code 3, a scale that is not finite or, as a
            divisor, 0 or too small for its reciprocal to be a float32.
    """
    _check_convention(convention)
    if weight_scale.numel() != 1 or not weight_scale.is_floating_point():
        raise KernelInputError(
            "weight_scale",
            f"{weight_scale.dtype} of shape {list(weight_scale.shape)}",
            "one floating value",
        )
    scale = weight_scale.double().reshape(1)
    used = (scale if convention == "multiplier" else 1.0 / scale).float()
    if not bool(torch.isfinite(used).all()):
        raise KernelInputError(
            "weight_scale",
            float(scale),
            f"a {convention} that gives finite weights",
        )
    return pack(unpack_rows(weight, rows), used)


def to_huggingface(
    packed: PackedTernary, convention: ScaleConvention, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    """A matrix as a checkpoint holds it.

    Args:
        packed: A matrix with one scale (or equal scales for all rows).
        convention: What the layer that will read it takes the scale for.
        dtype: The model's dtype; bfloat16 rounds the scale by up to 2^-9 of its value.

    Returns:
        ``weight`` uint8 ``[ceil(rows / 4), columns]`` and ``weight_scale`` of ``dtype``, ``[1]``.

    Raises:
        KernelInputError: Rows with different scales, a dtype that is not floating, or a scale that
            ``dtype`` cannot hold.
    """
    _check_convention(convention)
    if not dtype.is_floating_point:
        raise KernelInputError("dtype", dtype, "a floating dtype")
    if bool((packed.scale != packed.scale[0]).any()):
        raise KernelInputError(
            "packed.scale",
            f"values {float(packed.scale.min())} to {float(packed.scale.max())}",
            "one scale for the matrix, as these checkpoints have",
        )
    scale = packed.scale[:1].double()
    stored = (scale if convention == "multiplier" else 1.0 / scale).to(dtype)
    lost = (stored == 0) & (scale != 0)
    if not bool(torch.isfinite(stored).all()) or bool(lost.any()):
        raise KernelInputError(
            "packed.scale",
            float(scale),
            f"a scale that {dtype} holds as a {convention}",
        )
    return pack_rows(unpack(packed)), stored


def _check_convention(convention: str) -> None:
    if convention not in _CONVENTIONS.values():
        raise KernelInputError("convention", repr(convention), "multiplier or divisor")
