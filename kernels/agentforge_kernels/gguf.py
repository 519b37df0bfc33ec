"""TQ2_0 tensors of GGUF files, out and in: the bytes of a tensor, not of a whole file.

A row is cut into blocks of 256 columns, 66 bytes each: 64 bytes of two-bit codes (two groups of 128
in the plane order of :mod:`agentforge_kernels.format`), then the scale as a little-endian float16
(``block_tq2_0``: https://github.com/ggml-org/llama.cpp, ggml-common.h). Columns are padded with
weight 0 to a multiple of 256; GGUF itself has no notion of padding, so the tensor's row length in a
file is the padded one and activations must be padded alike.

Bytes are those of the ``gguf`` package (``gguf.quants.TQ2_0``) for the float32 weights: a block of
zeros has scale 0, and a negative scale becomes positive with the codes' signs turned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import (
    CODES_ALLOWED,
    CODES_PER_BYTE,
    ZERO_WEIGHTS,
    PackedTernary,
    has_code_3,
    pack_codes,
    padded,
    unpack,
    unpack_codes,
)

BLOCK_COLUMNS = 256
CODE_BYTES = BLOCK_COLUMNS // CODES_PER_BYTE
BLOCK_BYTES = CODE_BYTES + 2


def to_tq2_0(packed: PackedTernary) -> Tensor:
    """A matrix as TQ2_0 blocks; on the device of ``packed``.

    The scale is rounded to float16 (relative error up to 2^-11, more below 6.1e-5, where float16 is
    subnormal).

    Returns:
        uint8 ``[rows, ceil(columns / 256) * 66]``.

    Raises:
        KernelInputError: A scale beyond float16's range (above 65,504, or so small that it would
            become 0).
    """
    scale = packed.scale.abs().half()
    lost = torch.isinf(scale) | ((scale == 0) & (packed.scale != 0))
    if bool(lost.any()):
        raise KernelInputError(
            "packed.scale",
            float(packed.scale[lost][0]),
            "0, or a magnitude of 3e-8 to 65504, which float16 holds",
        )
    signed = unpack(packed) * packed.scale.sign().to(torch.int8)[:, None]
    codes = pack_codes(signed, BLOCK_COLUMNS).view(packed.rows, -1, CODE_BYTES)
    block_scale = scale[:, None].expand(packed.rows, codes.shape[1])
    block_scale = torch.where(_holds_weights(codes), block_scale, torch.zeros_like(block_scale))
    scale_bytes = block_scale.unsqueeze(-1).contiguous().view(torch.uint8)
    return torch.cat([codes, scale_bytes], dim=-1).reshape(packed.rows, -1)


def from_tq2_0(data: Tensor, columns: int) -> PackedTernary:
    """TQ2_0 blocks as a packed matrix; the input is not changed.

    Args:
        data: uint8 ``[rows, ceil(columns / 256) * 66]``; any device.
        columns: Columns of the matrix; those beyond must be weight 0.

    Returns:
        The matrix with the one scale of all its blocks, or else with a scale a row. Blocks of zeros
        may have any finite scale. A matrix or row of zeros gets the scale 0.

    Raises:
        KernelInputError: Wrong dtype or shape, a code 3, padding that is not weight 0, a scale that
            is not finite, or blocks of one row with different scales, which this package's form
            (one scale for the matrix or a row) cannot hold.
    """
    expected = padded(columns, BLOCK_COLUMNS) // BLOCK_COLUMNS * BLOCK_BYTES if columns > 0 else 0
    if data.dtype != torch.uint8 or data.ndim != 2 or 0 in data.shape or columns < 1:
        raise KernelInputError(
            "data",
            f"{data.dtype} of shape {list(data.shape)} for {columns} columns",
            f"uint8 of shape [rows, {expected}] (66 bytes for 256 columns), not empty",
        )
    if data.shape[1] != expected:
        raise KernelInputError(
            "data",
            f"{data.shape[1]} bytes a row for {columns} columns",
            f"{expected} (66 bytes for 256 columns)",
        )
    blocks = data.reshape(data.shape[0], -1, BLOCK_BYTES)
    codes = blocks[:, :, :CODE_BYTES].contiguous()
    if has_code_3(codes):
        raise KernelInputError("data", "a code 3", CODES_ALLOWED)
    block_scale = blocks[:, :, CODE_BYTES:].contiguous().view(torch.float16).squeeze(-1).float()
    if not bool(torch.isfinite(block_scale).all()):
        raise KernelInputError("data", "a block's scale NaN or infinity", "finite scales")
    trits = unpack_codes(codes.view(data.shape[0], -1))
    if bool(trits[:, columns:].any()):
        raise KernelInputError(
            "data", "padding that is not weight 0", f"weight 0 beyond column {columns - 1}"
        )
    scale = _common_scale(block_scale, _holds_weights(codes))
    return PackedTernary(pack_codes(trits[:, :columns]), scale, columns)


def _holds_weights(codes: Tensor) -> Tensor:
    """Which blocks are not all zero: uint8 ``[rows, blocks, 64]`` -> bool ``[rows, blocks]``."""
    return (codes != ZERO_WEIGHTS).any(dim=-1)


def _common_scale(block_scale: Tensor, holds_weights: Tensor) -> Tensor:
    """One scale for the matrix, ``[1]``, or for each row, ``[rows]``, of its blocks' scales."""
    infinity = torch.full_like(block_scale, float("inf"))
    smallest = torch.where(holds_weights, block_scale, infinity).amin(dim=1)
    largest = torch.where(holds_weights, block_scale, -infinity).amax(dim=1)
    mixed = smallest < largest
    if bool(mixed.any()):
        row = int(mixed.nonzero()[0])
        raise KernelInputError(
            "data",
            f"scales {float(smallest[row])} to {float(largest[row])} in row {row}",
            "one scale for all blocks of a row that are not zero",
            "A packed matrix has one scale, or one a row; blocks with scales of their own cannot "
            "be represented: quantise the original weights instead.",
        )
    rows_with_weights = holds_weights.any(dim=1)
    scale = torch.where(rows_with_weights, largest, torch.zeros_like(largest))
    used = scale[rows_with_weights]
    if not used.numel():
        return torch.zeros(1, device=scale.device)
    return used[:1].clone() if bool((used == used[0]).all()) else scale
