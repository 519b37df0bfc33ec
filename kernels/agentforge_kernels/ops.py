"""The operations of the package; every backend gives the same bits for them.

Activations are ``[..., columns]``: any leading shape, no token at all included. A weight is a
matrix ``[rows, columns]``; the result is float32 ``[..., rows]``:

    output = float32(sum over k of q[k] * trit[row, k]) * (activation_scale * weight_scale[row])
             + residual

with the sum an exact integer and every float operation rounded once, in this order. Each operation
takes activations as they come (float32, float16, bfloat16), which it quantises itself, or quantised
by :func:`quantize_activations`, which saves the work where several matrices read the same input.

Tensors must be contiguous: anything else is refused, never copied in silence. NaN and infinity in
activations are an error on the CPU, where seeing them costs nothing. On a GPU the outputs of such a
token are NaN, because an error would have to wait for the device; ``AGENTFORGE_KERNELS_CHECK=1``
waits. A residual is not looked at: what is NaN in it stays NaN.

In a compiled graph, under dispatch modes and where a gradient is wanted the operations are
``torch.ops.agentforge.*``; otherwise the backend is called directly, which saves 10 us a call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agentforge_kernels import custom_ops, execute
from agentforge_kernels import gradient as _gradient  # noqa: F401  (registers itself)
from agentforge_kernels.arguments import (
    check_activations,
    check_norm,
    check_residual,
    check_type,
    check_x,
)
from agentforge_kernels.backend import Activations
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import PackedTernary
from agentforge_kernels.int8 import Int8Weight
from agentforge_kernels.native_call import is_watched
from agentforge_kernels.prepared import PreparedTernary
from agentforge_kernels.sparse import BlockSparseTernary, ColumnTernary


def quantize_activations(
    x: Tensor, *, norm_weight: Tensor | None = None, epsilon: float = 1e-5
) -> Activations:
    """Quantise each token to int8 by its largest magnitude, optionally normalised first.

    ``q = round_half_even(h * (127 / m))``, ``m = max(max |h|, 1e-5)``, in float32, ``h`` being
    ``x`` or ``RMSNorm(x)`` (BitNet b1.58, https://arxiv.org/abs/2402.17764, section 2; RMSNorm:
    https://arxiv.org/abs/1910.07467). With a norm two backends may differ by one step of ``q``.

    Args:
        x: float32, float16 or bfloat16 ``[..., columns]``, contiguous, finite.
        norm_weight: RMSNorm's weight ``[columns]``, same dtypes; ``None``: no norm.
        epsilon: Of the norm, added to the mean square.

    Returns:
        ``q`` int8 ``[..., padded]`` (columns padded with zeros to a multiple of 128), ``scale``
        float32 ``[...]`` (``h ~ scale * q``) and ``sum`` int32 ``[...]``, the sum of ``q``.

    Raises:
        KernelInputError: Wrong dtype, shape, device or strides; NaN or infinity (on a GPU only with
            ``AGENTFORGE_KERNELS_CHECK=1``, else the token's scale is NaN).
        BackendUnavailableError: The backend forced by ``AGENTFORGE_KERNELS`` cannot run here.
    """
    check_x(x)
    check_norm(norm_weight, epsilon, x.shape[-1], x.device)
    flat = x.reshape(-1, x.shape[-1])
    run = execute if _is_direct(x, norm_weight) else custom_ops
    q, scale, total = run.quantize_activations(flat, norm_weight, epsilon)
    leading = x.shape[:-1]
    if len(leading) == 1:
        return Activations(q, scale, total)
    return Activations(
        q.reshape(*leading, q.shape[-1]), scale.reshape(leading), total.reshape(leading)
    )


def ternary_linear(
    x: Tensor | Activations,
    weight: PackedTernary | PreparedTernary,
    *,
    norm_weight: Tensor | None = None,
    epsilon: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor:
    """Linear layer with a dense ternary weight, from one token to a long prefill.

    Where a gradient is wanted it goes straight through the quantiser (``dL/dh = W^T dL/dy`` with
    the dequantised weight), through the norm and into the residual; the weight is frozen. To train
    the weight see :func:`agentforge_kernels.training.ste_ternary_linear`.

    Args:
        x: float32, float16 or bfloat16 ``[..., columns]``, contiguous, finite; or the result of
            :func:`quantize_activations`, through which no gradient flows.
        weight: A matrix ``[rows, columns]``; packed weights are laid out at the first call and the
            layout is kept as long as they live (:func:`agentforge_kernels.prepared.prepare` does it
            at once and makes calls shorter).
        norm_weight: RMSNorm's weight ``[columns]``, applied before quantising.
        epsilon: Of the norm.
        residual: Floating ``[..., rows]``, added last; nothing is broadcast.

    Returns:
        float32 ``[..., rows]``.

    Raises:
        KernelInputError: An argument of the wrong type, dtype, shape, device or strides; NaN or
            infinity in ``x`` (see the head of this module for GPUs).
        BackendUnavailableError: The backend forced by ``AGENTFORGE_KERNELS`` cannot run here.
    """
    if isinstance(weight, PreparedTernary):
        if weight.call is not None and not is_watched():
            output = weight.call(x, norm_weight, epsilon, residual, None)
            if output is not None:
                return output
        packed = weight.packed
    else:
        check_type("weight", weight, PackedTernary)
        packed = weight
    if isinstance(x, Activations):
        _refuse_norm(norm_weight)
        return _quantized_linear(x, packed, residual)
    return dense_linear(
        x, packed.codes, packed.scale, packed.columns, norm_weight, epsilon, residual
    )


def dense_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    columns: int,
    norm_weight: Tensor | None,
    epsilon: float,
    residual: Tensor | None,
) -> Tensor:
    """:func:`ternary_linear` of the fields of a :class:`PackedTernary` that was checked before."""
    check_x(x, columns, codes.device)
    check_norm(norm_weight, epsilon, columns, codes.device)
    shape = [*x.shape[:-1], codes.shape[0]]
    residual = _flat_residual(residual, shape, codes.device)
    linear: Callable[..., Tensor]
    if not _is_direct(x, norm_weight, residual):
        linear = custom_ops.ternary_linear
    elif x.is_cuda:
        linear = execute.ternary_linear_on_gpu
    else:
        linear = execute.ternary_linear
    tokens = x.reshape(-1, columns)
    output = linear(tokens, norm_weight, epsilon, codes, scale, residual, columns)
    return output.reshape(shape)


def _quantized_linear(x: Activations, packed: PackedTernary, residual: Tensor | None) -> Tensor:
    codes, columns = packed.codes, packed.columns
    check_activations(x, columns, codes.device)
    shape = [*x.scale.shape, packed.rows]
    tokens = _flat(x)
    residual = _flat_residual(residual, shape, codes.device)
    run = execute if _is_direct(*tokens, residual) else custom_ops
    output: Tensor = run.ternary_linear_quantized(*tokens, codes, packed.scale, residual, columns)
    return output.reshape(shape)


def ternary_linear_block_sparse(
    x: Tensor | Activations,
    weight: BlockSparseTernary,
    *,
    norm_weight: Tensor | None = None,
    epsilon: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor:
    """Linear layer over the 64 x 16 tiles of a ternary weight that are not zero.

    The same bits as the dense operation, faster from 15 to 25 % zero tiles on. Zeros spread at
    random over the weights (35 to 45 % in a trained model) leave no tile empty and never pay.
    No gradient flows through it.

    Args:
        x: As for :func:`ternary_linear`.
        weight: Made by :func:`agentforge_kernels.sparse.to_block_sparse`.
        norm_weight: As for :func:`ternary_linear`.
        epsilon: Of the norm.
        residual: Floating ``[..., rows]``, added last.

    Returns:
        float32 ``[..., rows]``.

    Raises:
        KernelInputError: As :func:`ternary_linear`.
        BackendUnavailableError: As :func:`ternary_linear`.
    """
    check_type("weight", weight, BlockSparseTernary)
    rows, columns, tiles = weight.rows, weight.columns, weight.tiles
    x = _activations(x, norm_weight, epsilon, columns, tiles.device)
    shape = [*x.scale.shape, rows]
    tokens = _flat(x)
    residual = _flat_residual(residual, shape, tiles.device)
    run = execute if _is_direct(*tokens, residual) else custom_ops
    output: Tensor = run.ternary_linear_block_sparse(
        *tokens, tiles, weight.index, weight.start, weight.scale, residual, rows, columns
    )
    return output.reshape(shape)


def ternary_linear_activation_sparse(
    x: Tensor | Activations,
    weight: ColumnTernary,
    *,
    norm_weight: Tensor | None = None,
    epsilon: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor:
    """Linear layer that reads only the columns of a ternary weight whose activation is not zero.

    The same bits as the dense operation. Meant for one token at a time behind squared ReLU, where
    most activations are exactly zero: faster from 50 % zeros on when the weight lies in the second
    level cache. No gradient flows through it.

    Args:
        x: As for :func:`ternary_linear`; what is zero after quantising is left out.
        weight: Made by :func:`agentforge_kernels.sparse.to_columns`.
        norm_weight: As for :func:`ternary_linear`.
        epsilon: Of the norm.
        residual: Floating ``[..., rows]``, added last.

    Returns:
        float32 ``[..., rows]``.

    Raises:
        KernelInputError: As :func:`ternary_linear`.
        BackendUnavailableError: As :func:`ternary_linear`.
    """
    check_type("weight", weight, ColumnTernary)
    rows, columns, codes = weight.rows, weight.columns, weight.codes
    x = _activations(x, norm_weight, epsilon, columns, codes.device)
    shape = [*x.scale.shape, rows]
    tokens = _flat(x)
    residual = _flat_residual(residual, shape, codes.device)
    run = execute if _is_direct(*tokens, residual) else custom_ops
    output: Tensor = run.ternary_linear_activation_sparse(
        *tokens, codes, weight.scale, residual, rows
    )
    return output.reshape(shape)


def int8_linear(
    x: Tensor | Activations,
    weight: Int8Weight,
    *,
    norm_weight: Tensor | None = None,
    epsilon: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor:
    """Linear layer with an int8 weight and a scale a row: the language-model head.

    No gradient flows through it.

    Args:
        x: As for :func:`ternary_linear`.
        weight: Made by :func:`agentforge_kernels.int8.quantize_int8`.
        norm_weight: As for :func:`ternary_linear`.
        epsilon: Of the norm.
        residual: Floating ``[..., rows]``, added last.

    Returns:
        float32 ``[..., rows]``.

    Raises:
        KernelInputError: As :func:`ternary_linear`.
        BackendUnavailableError: As :func:`ternary_linear`.
    """
    check_type("weight", weight, Int8Weight)
    rows, columns = weight.rows, weight.columns
    x = _activations(x, norm_weight, epsilon, columns, weight.weight.device)
    shape = [*x.scale.shape, rows]
    tokens = _flat(x)
    residual = _flat_residual(residual, shape, weight.weight.device)
    run = execute if _is_direct(*tokens, residual) else custom_ops
    output: Tensor = run.int8_linear(*tokens, weight.weight, weight.scale, residual)
    return output.reshape(shape)


def _is_direct(*tensors: Tensor | None) -> bool:
    """Whether a call may bypass torch's dispatcher: plain tensors, no gradient, nobody watching."""
    if is_watched():
        return False
    grad = torch.is_grad_enabled()
    return not any(
        type(tensor) not in (Tensor, torch.nn.Parameter)
        or tensor.is_meta
        or (grad and tensor.requires_grad)
        for tensor in tensors
        if tensor is not None
    )


def _activations(
    x: Tensor | Activations,
    norm_weight: Tensor | None,
    epsilon: float,
    columns: int,
    device: torch.device,
) -> Activations:
    """Activations checked against a weight; quantised here when they are floating."""
    if isinstance(x, Activations):
        _refuse_norm(norm_weight)
        check_activations(x, columns, device)
        return x
    check_x(x, columns, device)
    return quantize_activations(x, norm_weight=norm_weight, epsilon=epsilon)


def _refuse_norm(norm_weight: Tensor | None) -> None:
    if norm_weight is not None:
        raise KernelInputError(
            "norm_weight", "given with quantised activations", "None: they were normalised before"
        )


def _flat(x: Activations) -> Activations:
    """One leading dimension, the tokens."""
    if x.scale.ndim == 1:
        return x
    return Activations(x.q.reshape(-1, x.q.shape[-1]), x.scale.reshape(-1), x.sum.reshape(-1))


def _flat_residual(
    residual: Tensor | None, shape: list[int], device: torch.device
) -> Tensor | None:
    """The residual as float32 ``[tokens, rows]``."""
    check_residual(residual, shape, device)
    return None if residual is None else residual.float().reshape(-1, shape[-1])
