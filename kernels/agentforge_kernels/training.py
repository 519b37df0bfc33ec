"""Training a ternary layer: float master weight, quantised forward, straight-through gradient.

``y = Q(x) T(W)^T`` with ``T`` the absmean ternary quantiser and ``Q`` the absmax int8 one (BitNet
b1.58, https://arxiv.org/abs/2402.17764). The forward's accumulators are exact integers, so that the
trained layer gives the same bits after it was packed. Backward takes rounding and clipping as the
identity (straight-through estimator, https://arxiv.org/abs/1308.3432), as transformers'
``integrations/bitnet.py`` does:

    dL/dx = dL/dy T(W),    dL/dW = dL/dy^T Q(x)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agentforge_kernels import reference
from agentforge_kernels.arguments import check_device, check_floating, check_x
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import PAPER_THRESHOLD, check_quantizer, ternary

EXACT_COLUMNS = (1 << 24) // 128
"""float32 holds integers up to 2^24: sums of this many products of int8 and trit are exact."""


def ste_ternary_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    threshold: float = PAPER_THRESHOLD,
    kept: Tensor | None = None,
) -> Tensor:
    """Linear layer that computes with ternary weights and int8 activations and trains a float one.

    Kept for the backward pass are activations and weights in int8, a quarter of what float32 needs.

    Args:
        x: float32, float16 or bfloat16 ``[..., columns]``.
        weight: The master weight ``[rows, columns]``, same dtypes; quantised in float32.
        bias: Optional floating ``[rows]``.
        threshold: As for :func:`agentforge_kernels.format.quantize_weights`.
        kept: Optional bool ``[rows, columns]``: weights outside are 0 and get no gradient.

    Returns:
        ``[..., rows]`` in the dtype of ``x``: before rounding to it the bits of
        :func:`agentforge_kernels.reference.linear` of the quantised tensors (on the CPU; on a GPU
        too unless its float32 products lose integers below 2^24; Inductor may add up the mean of
        the weight in another order, which moves the scale by its last bit).

    Raises:
        KernelInputError: Wrong dtype, shape or device; NaN or infinity in ``x`` or ``weight`` (on
            the CPU and outside compiled graphs; elsewhere the outputs are NaN).
    """
    check_floating("weight", weight)
    (output,) = ste_ternary_linears(x, [weight], threshold=threshold, kept=[kept])
    if bias is None:
        return output
    check_floating("bias", bias)
    if list(bias.shape) != [weight.shape[0]]:
        raise KernelInputError("bias", f"shape {list(bias.shape)}", f"[{weight.shape[0]}]")
    check_device("bias", bias, weight.device, "the weight")
    return output + bias.to(output.dtype)


def ste_ternary_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    *,
    threshold: float = PAPER_THRESHOLD,
    kept: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """:func:`ste_ternary_linear` with several weights: the input is quantised once for all.

    Args:
        x: As there.
        weights: Master weights ``[rows_i, columns]``, one at least; each has its own scale.
        threshold: Of all weights.
        kept: Of each weight, or ``None``.

    Returns:
        ``[..., rows_i]`` of every weight, the bits of one call each.

    Raises:
        KernelInputError: As there.
    """
    if not weights:
        raise KernelInputError("weights", "none", "one or more")
    masks = [None] * len(weights) if kept is None else list(kept)
    columns = weights[0].shape[-1]
    for weight, mask in zip(weights, masks, strict=True):
        check_floating("weight", weight)
        if weight.ndim != 2 or 0 in weight.shape or weight.shape[1] != columns:
            raise KernelInputError(
                "weight", f"shape {list(weight.shape)}", "[rows, columns], not empty, equal columns"
            )
        check_quantizer(threshold, mask, weight)
    # Strides are the caller's affair here: a training step copies everything several times anyway.
    x = x.contiguous() if isinstance(x, Tensor) else x
    check_x(x, columns, weights[0].device)
    apply: Callable[..., Tensor] = _StraightThrough.apply
    output = apply(x.reshape(-1, columns), threshold, masks, *weights)
    rows = [weight.shape[0] for weight in weights]
    return list(torch.split(output.reshape(*x.shape[:-1], sum(rows)), rows, dim=-1))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, threshold: float, kept: list[Tensor | None], *weights: Tensor
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            pairs = [ternary(w, threshold, k) for w, k in zip(weights, kept, strict=True)]
            q, scale, _ = reference.quantize_activations(x)
            if len(pairs) == 1:
                trits, weight_scale = pairs[0]
            else:
                trits = torch.cat([t for t, _ in pairs])
                weight_scale = torch.cat([s.expand(t.shape[0]) for t, s in pairs])
            _refuse_not_finite(scale, weight_scale)
            ctx.save_for_backward(q, scale, trits, weight_scale)
            ctx.kept, ctx.rows = kept, [w.shape[0] for w in weights]
            ctx.dtypes = x.dtype, [w.dtype for w in weights]
            product = _exact_product(q, trits)
        output = reference.epilogue(product, scale, weight_scale)
        return output.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, scale, trits, weight_scale = ctx.saved_tensors
        x_dtype, weight_dtypes = ctx.dtypes
        grad_x = None
        grad_weights: list[Tensor | None] = [None] * len(weight_dtypes)
        if ctx.needs_input_grad[0]:
            weight = trits.float() * weight_scale[:, None]
            grad_x = (grad @ weight.to(grad.dtype)).to(x_dtype)
        if any(ctx.needs_input_grad[3:]):
            x = q.float() * scale[:, None]
            whole, row = grad.T @ x.to(grad.dtype), 0
            for i, (dtype, kept) in enumerate(zip(weight_dtypes, ctx.kept, strict=True)):
                part = whole[row : row + ctx.rows[i]].to(dtype)
                grad_weights[i] = part if kept is None else part * kept
                row += ctx.rows[i]
        return grad_x, None, None, *grad_weights


def _exact_product(q: Tensor, trits: Tensor) -> Tensor:
    """Integers ``q @ trits.T`` through float32 products, few enough at a time to be exact."""
    if q.shape[1] <= EXACT_COLUMNS:
        return F.linear(q.float(), trits.float())
    total = torch.zeros(q.shape[0], trits.shape[0], dtype=torch.int32, device=q.device)
    for begin in range(0, q.shape[1], EXACT_COLUMNS):
        part = slice(begin, begin + EXACT_COLUMNS)
        total += F.linear(q[:, part].float(), trits[:, part].float()).to(torch.int32)
    return total


def _refuse_not_finite(scale: Tensor, weight_scale: Tensor) -> None:
    """The scales are maximum and mean of magnitudes: they are finite when all the values are."""
    if scale.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not math.isfinite(weight_scale.max().item()):
        raise KernelInputError("weight", "NaN or infinity", "finite values")
    if scale.numel() and not math.isfinite(scale.max().item()):
        token = int((~torch.isfinite(scale)).nonzero()[0])
        raise KernelInputError("x", f"NaN or infinity in token {token}", "finite values")
