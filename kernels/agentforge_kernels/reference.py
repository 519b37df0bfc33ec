"""The oracle: every operation in plain int64 and float32 torch, written to be read, not to be fast.

Accumulators are int64 sums of products of small integers, so they are the mathematical value; every
backend must equal them bit for bit as int32. Floats enter only in the epilogue, whose order of
operations is part of the contract (no fused multiply-add), so that float32 results are equal too:

    scale  = activation_scale * weight_scale        (float32, rounded)
    output = float32(accumulator) * scale           (rounded)
    output = output + residual                      (rounded; only when given)
"""

from __future__ import annotations

import torch
from torch import Tensor

from agentforge_kernels.format import SMALLEST_MAGNITUDE


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm over the last axis in float64 (https://arxiv.org/abs/1910.07467, equation 4).

    Args:
        x: Floating ``[tokens, columns]``.
        weight: Floating ``[columns]``.
        epsilon: Added to the mean square.

    Returns:
        float64 ``[tokens, columns]``.
    """
    wide = x.double()
    root = torch.sqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    return wide / root * weight.double()


def quantize_activations(
    x: Tensor, norm_weight: Tensor | None = None, epsilon: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Absmax int8 per token (BitNet b1.58, section 2; transformers' ``activation_quant``).

    ``q = round_half_even(x * (127 / m))`` with ``m = max(max |x|, 1e-5)``, in float32. With
    ``norm_weight`` the RMSNorm is computed in float64 and rounded once to float32; a backend that
    computes it in float32 may differ by one step of ``q``.

    Args:
        x: Floating ``[tokens, columns]``, finite.
        norm_weight: Optional floating ``[columns]``.
        epsilon: Of the norm.

    Returns:
        ``q`` int8 ``[tokens, columns]``, scale ``m / 127`` float32 ``[tokens]``, sum of ``q`` int32
        ``[tokens]``.
    """
    values = x.float() if norm_weight is None else rms_norm(x, norm_weight, epsilon).float()
    largest = values.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_MAGNITUDE)
    q = (values * (127.0 / largest)).round().clamp(-128, 127).to(torch.int8)
    return q, (largest / 127.0).squeeze(-1), q.sum(dim=-1, dtype=torch.int32)


def accumulate(q: Tensor, weight: Tensor) -> Tensor:
    """Exact ``q @ weight.T``: int8 ``[tokens, columns]``, ``[rows, columns]`` -> int64."""
    return q.long() @ weight.long().T


def epilogue(
    accumulator: Tensor,
    activation_scale: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    """Accumulators to float32 outputs in the contract's order of operations.

    Args:
        accumulator: Integer ``[tokens, rows]``.
        activation_scale: float32 ``[tokens]``.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: Optional float32 ``[tokens, rows]``.
    """
    scale = activation_scale[:, None] * weight_scale[None, :]
    output = accumulator.to(torch.int32).float() * scale
    return output if residual is None else output + residual


def linear(
    q: Tensor,
    activation_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    """Quantised linear layer, ternary or int8: the oracle of every matmul of this package.

    Args:
        q: int8 ``[tokens, columns]``.
        activation_scale: float32 ``[tokens]``.
        weight: int8 ``[rows, columns]`` (trits, or the int8 head).
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: Optional float32 ``[tokens, rows]``.

    Returns:
        float32 ``[tokens, rows]``.
    """
    return epilogue(accumulate(q, weight), activation_scale, weight_scale, residual)
