"""Gradient of a ternary layer with frozen weights: straight through the quantiser.

``y = W h`` with ``h`` the quantised, optionally normalised activations. Rounding is taken as the
identity (straight-through estimator, https://arxiv.org/abs/1308.3432; transformers' ``ActQuant``),
so that ``dL/dh = W^T dL/dy`` with the dequantised weight, and the norm is differentiated exactly:
for ``h = w x r``, ``r = (mean(x^2) + epsilon)^(-1/2)``,

    dL/dx = r (w g) - x r^3 mean(w g x),    dL/dw = sum over tokens of g x r,    g = dL/dh
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agentforge_kernels import custom_ops
from agentforge_kernels.format import unpack_codes


def dense_weight(codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    """Dequantised float32 ``[rows, columns]`` of stored codes: ``scale * trit``."""
    return unpack_codes(codes)[:, :columns].float() * scale[:, None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, norm_weight, epsilon, codes, weight_scale, _, columns = inputs
    # Without a norm the gradient does not depend on x: it is not kept.
    kept = (codes, weight_scale) if norm_weight is None else (codes, weight_scale, x, norm_weight)
    ctx.save_for_backward(*kept)
    ctx.epsilon = epsilon
    ctx.columns = columns
    ctx.dtype = x.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    codes, weight_scale, *normed = ctx.saved_tensors
    needs_x, needs_norm = ctx.needs_input_grad[:2]
    grad_residual = grad if ctx.needs_input_grad[5] else None
    grad_x = grad_norm = None
    if needs_x or needs_norm:
        grad_x = grad @ dense_weight(codes, weight_scale, ctx.columns)
    if normed and grad_x is not None:
        x, norm_weight = normed
        grad_x, grad_norm = _norm_gradient(grad_x, x, norm_weight, ctx.epsilon)
    if grad_x is not None:
        grad_x = grad_x.to(ctx.dtype)
    return grad_x, grad_norm, None, None, None, grad_residual, None


def _norm_gradient(
    grad: Tensor, x: Tensor, norm_weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Gradients of RMSNorm's input (float32) and weight (its dtype)."""
    wide = x.float()
    root = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    grad_weight = (grad * wide * root).sum(dim=0).to(norm_weight.dtype)
    inner = grad * norm_weight.float()
    mean = (inner * wide).mean(dim=-1, keepdim=True)
    return root * inner - wide * root**3 * mean, grad_weight


custom_ops.ternary_linear.register_autograd(_backward, setup_context=_setup)
