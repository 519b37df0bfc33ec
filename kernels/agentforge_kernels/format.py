"""The one stored form of a ternary matrix: two bits a weight, GGUF's TQ2_0 plane order.

A matrix ``[rows, columns]`` of weights in {-1, 0, +1} is stored as ``codes = weight + 1`` in
{0, 1, 2}. Columns are taken in groups of 128, padded with weight 0 (code 1). A group is 32 bytes:
byte ``q`` holds the codes of columns ``128 g + 32 j + q`` at bits ``2 j``, ``j = 0..3``. Hence
``(word >> 2 j) & 0x03030303`` is four consecutive columns for dp4a, and plane ``j`` of a group is a
contiguous slab of 32 columns for matrix units (ggml's ``block_tq2_0`` keeps the same order in its
``qs``: https://github.com/ggml-org/llama.cpp, ggml-common.h).

Quantiser: BitNet b1.58 (https://arxiv.org/abs/2402.17764, equations 1-3), in the operation order of
transformers' ``integrations/bitnet.py``, so that codes and scales are bit-equal to its.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentforge_kernels.errors import KernelInputError

FORMAT_VERSION = 1
GROUP_COLUMNS = 128
"""Columns in a group; the padded column count is a multiple of it."""
GROUP_BYTES = 32
PLANE_COLUMNS = 32
CODES_PER_BYTE = 4
ZERO_WEIGHTS = 0x55
"""A byte of four weights 0 (codes 1)."""
CODES_ALLOWED = "codes 0, 1 and 2 (weights -1, 0 and 1)"
SMALLEST_MAGNITUDE = 1e-5
"""Lower bound of a mean or maximum magnitude before it divides (transformers, BitNet)."""
PAPER_THRESHOLD = 0.5
"""Share of the scale up to which rounding gives 0."""
LARGEST_THRESHOLD = 10.0


@dataclass(frozen=True, slots=True)
class PackedTernary:
    """A ternary matrix as it is stored.

    Attributes:
        codes: uint8 ``[rows, padded_columns / 4]``, contiguous.
        scale: float32 ``[1]`` (one for the matrix) or ``[rows]``; the weight is ``scale * trit``.
        columns: Columns before padding.

    Raises:
        KernelInputError: Codes or scale of another dtype, shape, device or content than described:
            code 3 anywhere, padding that is not weight 0, scales that are not finite.
    """

    codes: Tensor
    scale: Tensor
    columns: int

    def __post_init__(self) -> None:
        check_codes(self.codes, self.columns)
        check_device(self.scale, self.codes)
        check_scale(self.scale, self.rows)

    @property
    def rows(self) -> int:
        """Rows (output features)."""
        return int(self.codes.shape[0])

    @property
    def padded_columns(self) -> int:
        """Columns as stored: the next multiple of 128."""
        return int(self.codes.shape[1]) * CODES_PER_BYTE


def padded(columns: int, multiple: int = GROUP_COLUMNS) -> int:
    """``columns`` rounded up to ``multiple``."""
    return -(-columns // multiple) * multiple


def quantize_weights(
    weight: Tensor, *, threshold: float = PAPER_THRESHOLD, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Absmean quantisation of one matrix (BitNet b1.58, equations 1-3).

    Args:
        weight: Floating ``[rows, columns]``, finite; computed in float32, as in transformers.
        threshold: Share of the scale up to which a magnitude becomes 0. The paper rounds, half to
            even, which is 0.5; for Gaussian weights 0.5 makes 31.0 % zeros, 0.05 makes 3.2 %.
        kept: Optional bool ``[rows, columns]``: weights outside are 0 and not counted in the scale
            (pruned ones, see :mod:`agentforge_kernels.pruning`).

    Returns:
        Trits int8 ``[rows, columns]`` and the scale float32 ``[1]`` with ``weight ~ scale * trit``;
        at the paper's threshold ``scale * trit`` in float32 equals transformers'
        ``(w * s).round().clamp(-1, 1) / s`` of the kept weights, bit for bit.

    Raises:
        KernelInputError: Not a floating matrix, or not finite; a threshold outside [0, 10]; kept
            weights of another shape or dtype.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise KernelInputError(
            "weight", f"{weight.dtype} of shape {list(weight.shape)}", "a floating matrix"
        )
    if not bool(torch.isfinite(weight).all()):
        raise KernelInputError("weight", "NaN or infinity", "finite values")
    check_quantizer(threshold, kept, weight)
    return ternary(weight, threshold, kept)


def ternary(weight: Tensor, threshold: float, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`quantize_weights`, unchecked; a matrix of which nothing is kept is all zero."""
    weight = weight.float()
    values = weight if kept is None else weight[kept]
    mean = values.abs().mean() if values.numel() else weight.new_zeros(())
    inverse = 1.0 / mean.clamp_(min=SMALLEST_MAGNITUDE)
    scaled = weight * inverse
    # |x| > 1/2 is where rounding half to even leaves 0, and one form serves every threshold.
    trits = (scaled > threshold).to(torch.int8) - (scaled < -threshold).to(torch.int8)
    if kept is not None:
        trits = trits * kept
    return trits, (1.0 / inverse).reshape(1)


def check_quantizer(threshold: float, kept: Tensor | None, weight: Tensor) -> None:
    """Raise :class:`KernelInputError` for a threshold or kept weights that cannot be used."""
    if not 0.0 <= threshold <= LARGEST_THRESHOLD:
        raise KernelInputError("threshold", threshold, f"0 to {LARGEST_THRESHOLD:g}")
    if kept is None:
        return
    if kept.dtype != torch.bool or kept.shape != weight.shape or kept.device != weight.device:
        raise KernelInputError(
            "kept",
            f"{kept.dtype} of shape {list(kept.shape)} on {kept.device}",
            f"bool of shape {list(weight.shape)} on {weight.device}",
        )


def pack(trits: Tensor, scale: Tensor | float) -> PackedTernary:
    """Pack a ternary matrix; the input is not changed.

    Args:
        trits: int8 ``[rows, columns]`` with values in {-1, 0, 1}; any strides, any device.
        scale: One float, or float32 ``[1]`` or ``[rows]``.

    Raises:
        KernelInputError: Wrong dtype or shape, a value outside {-1, 0, 1}, a scale not finite.
    """
    check_trits(trits)
    if not isinstance(scale, Tensor):
        scale = torch.tensor([scale], dtype=torch.float32, device=trits.device)
    return PackedTernary(pack_codes(trits), scale.to(trits.device, copy=True), int(trits.shape[1]))


def unpack(packed: PackedTernary) -> Tensor:
    """The trits, int8 ``[rows, columns]``; the inverse of :func:`pack`."""
    return unpack_codes(packed.codes)[:, : packed.columns].contiguous()


def pack_codes(trits: Tensor, multiple: int = GROUP_COLUMNS) -> Tensor:
    """Trits int8 ``[rows, n]`` -> codes uint8 ``[rows, padded(n, multiple) / 4]``, unchecked."""
    rows, columns = trits.shape
    codes = torch.ones(rows, padded(columns, multiple), dtype=torch.uint8, device=trits.device)
    codes[:, :columns] = (trits + 1).to(torch.uint8)
    planes = codes.view(rows, -1, CODES_PER_BYTE, PLANE_COLUMNS)
    packed = (
        planes[:, :, 0] | (planes[:, :, 1] << 2) | (planes[:, :, 2] << 4) | (planes[:, :, 3] << 6)
    )
    return packed.reshape(rows, -1).contiguous()


def unpack_codes(codes: Tensor) -> Tensor:
    """Trits of raw codes, padding included: uint8 ``[rows, n]`` -> int8 ``[rows, 4 * n]``."""
    rows = codes.shape[0]
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=codes.device).view(1, 1, 4, 1)
    planes = (codes.view(rows, -1, 1, GROUP_BYTES) >> shifts) & 3
    return (planes.to(torch.int8) - 1).reshape(rows, -1)


def check_trits(trits: Tensor, argument: str = "trits") -> None:
    """Raise :class:`KernelInputError` unless ``trits`` is an int8 matrix over {-1, 0, 1}."""
    if trits.ndim != 2 or trits.dtype != torch.int8 or 0 in trits.shape:
        raise KernelInputError(
            argument, f"{trits.dtype} of shape {list(trits.shape)}", "an int8 matrix, not empty"
        )
    smallest, largest = int(trits.min()), int(trits.max())
    if smallest < -1 or largest > 1:
        raise KernelInputError(argument, f"values {smallest} to {largest}", "-1, 0 and 1")


def check_scale(scale: Tensor, rows: int, argument: str = "scale") -> None:
    """Raise :class:`KernelInputError` unless ``scale`` is finite float32 ``[1]`` or ``[rows]``."""
    if scale.dtype != torch.float32 or scale.ndim != 1 or scale.shape[0] not in (1, rows):
        raise KernelInputError(
            argument,
            f"{scale.dtype} of shape {list(scale.shape)}",
            f"float32 of shape [1] or [{rows}]",
        )
    if not bool(torch.isfinite(scale).all()):
        raise KernelInputError(argument, "NaN or infinity", "finite values")


def check_device(scale: Tensor, codes: Tensor) -> None:
    """Raise :class:`KernelInputError` unless the scale lies where the codes are."""
    if scale.device != codes.device:
        raise KernelInputError(
            "scale", f"device {scale.device}", f"the device of the codes, {codes.device}"
        )


def check_codes(codes: Tensor, columns: int, *, line: str = "row", value: str = "column") -> None:
    """Raise :class:`KernelInputError` unless ``codes`` hold lines of ``columns`` packed weights.

    Args:
        codes: What should be uint8 ``[lines, padded(columns) / 4]``.
        columns: Weights in a line.
        line: What a line is called in the message.
        value: What a weight's place in it is called.
    """
    expected = padded(columns) // CODES_PER_BYTE
    if codes.dtype != torch.uint8 or codes.ndim != 2 or 0 in codes.shape or columns < 1:
        raise KernelInputError(
            "codes",
            f"{codes.dtype} of shape {list(codes.shape)} for {columns} {value}s",
            f"uint8 of shape [{line}s, padded {value}s / 4], not empty",
        )
    if codes.shape[1] != expected:
        raise KernelInputError(
            "codes",
            f"{codes.shape[1]} bytes a {line} for {columns} {value}s",
            f"{expected} ({value}s padded to a multiple of {GROUP_COLUMNS}, four to a byte)",
        )
    if not codes.is_contiguous():
        raise KernelInputError("codes", f"strides {list(codes.stride())}", "a contiguous tensor")
    if has_code_3(codes):
        raise KernelInputError("codes", "a code 3", CODES_ALLOWED)
    if columns % GROUP_COLUMNS:
        last = unpack_codes(codes[:, -GROUP_BYTES:].contiguous())
        if bool(last[:, columns % GROUP_COLUMNS :].any()):
            raise KernelInputError(
                "codes", "padding that is not weight 0", f"weight 0 beyond {value} {columns - 1}"
            )


def has_code_3(packed: Tensor) -> bool:
    """Whether a uint8 tensor of two-bit codes holds a 3, which stands for no weight."""
    return bool(((packed & (packed >> 1)) & 0x55).any())
