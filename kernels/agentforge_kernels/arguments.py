"""What a caller hands over is looked at before any kernel sees it.

The operations accept contiguous tensors only and say so: a copy made in silence would be the
caller's lost speed. :class:`agentforge_kernels.linear.TernaryLinear`, which stands where a
``torch.nn.Linear`` stood, takes any strides and copies.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from agentforge_kernels.backend import Activations
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import padded

FLOATING = (torch.float32, torch.float16, torch.bfloat16)


def check_floating(argument: str, tensor: Tensor) -> None:
    """Raise :class:`KernelInputError` unless a tensor is float32, float16 or bfloat16, dense."""
    check_type(argument, tensor, Tensor)
    if tensor.dtype not in FLOATING:
        raise KernelInputError(argument, tensor.dtype, "float32, float16 or bfloat16")
    check_contiguous(argument, tensor)
    # torch would let the tangent of a custom operator vanish without a word.
    if forward_ad._current_level >= 0 and _tangent(tensor) is not None:
        raise KernelInputError(
            argument, "a tangent of forward-mode differentiation", "none: gradients go backward"
        )


def _tangent(tensor: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(tensor).tangent  # type: ignore[no-untyped-call]
    return tangent


def check_type(argument: str, value: object, allowed: type) -> None:
    """Raise :class:`KernelInputError` unless ``value`` is of the class ``allowed``."""
    if not isinstance(value, allowed):
        raise KernelInputError(argument, f"a {type(value).__name__}", f"a {allowed.__name__}")


def check_contiguous(argument: str, tensor: Tensor) -> None:
    """Raise :class:`KernelInputError` unless a tensor is strided and contiguous."""
    if tensor.layout != torch.strided:
        raise KernelInputError(argument, f"layout {tensor.layout}", "a dense tensor")
    if not tensor.is_contiguous():
        raise KernelInputError(
            argument,
            f"shape {list(tensor.shape)} with strides {list(tensor.stride())}",
            "a contiguous tensor",
            f"Call {argument}.contiguous() first",
        )


def check_device(argument: str, tensor: Tensor, device: torch.device, where: str) -> None:
    """Raise :class:`KernelInputError` unless a tensor lies on ``device``, that of ``where``."""
    if tensor.device != device:
        raise KernelInputError(argument, f"device {tensor.device}", f"{device}, where {where} is")


def check_x(x: Tensor, columns: int | None = None, device: torch.device | None = None) -> None:
    """Raise :class:`KernelInputError` unless ``x`` may be quantised (and multiplied by a weight).

    Args:
        x: What should be floating ``[..., columns]``, contiguous.
        columns: Columns of the weight, when there is one.
        device: Device of the weight, when there is one.
    """
    check_floating("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise KernelInputError("x", f"shape {list(x.shape)}", "[..., columns], columns 1 or more")
    if columns is not None and x.shape[-1] != columns:
        raise KernelInputError(
            "x", f"shape {list(x.shape)}", f"[..., {columns}], the columns of the weight"
        )
    if device is not None:
        check_device("x", x, device, "the weight")


def check_norm(
    norm_weight: Tensor | None, epsilon: float, columns: int, device: torch.device
) -> None:
    """Raise :class:`KernelInputError` unless the RMSNorm's weight fits ``x`` (or is ``None``)."""
    if norm_weight is None:
        return
    check_floating("norm_weight", norm_weight)
    if list(norm_weight.shape) != [columns]:
        raise KernelInputError(
            "norm_weight", f"shape {list(norm_weight.shape)}", f"[{columns}], the columns of x"
        )
    check_device("norm_weight", norm_weight, device, "x")
    if not 0.0 <= epsilon < float("inf"):
        raise KernelInputError("epsilon", epsilon, "0 or more, finite")


def check_residual(residual: Tensor | None, shape: list[int], device: torch.device) -> None:
    """Raise :class:`KernelInputError` unless the residual has the output's shape (or is ``None``).

    Args:
        residual: What should be floating, of ``shape`` exactly (nothing is broadcast).
        shape: The output's.
        device: Of the weight.
    """
    if residual is None:
        return
    check_floating("residual", residual)
    if list(residual.shape) != shape:
        raise KernelInputError(
            "residual", f"shape {list(residual.shape)}", f"{shape}, the output's"
        )
    check_device("residual", residual, device, "the weight")


def check_activations(activations: Activations, columns: int, device: torch.device) -> None:
    """Raise :class:`KernelInputError` unless quantised activations fit a weight.

    Args:
        activations: ``q`` int8 ``[..., padded(columns)]``, ``scale`` float32 and ``sum`` int32 of
            the leading shape, all contiguous.
        columns: Of the weight.
        device: Of the weight.
    """
    q, scale, total = activations
    if q.dtype != torch.int8 or q.ndim == 0 or q.shape[-1] != padded(columns):
        raise KernelInputError(
            "x.q",
            f"{q.dtype} of shape {list(q.shape)}",
            f"int8 [..., {padded(columns)}]: {columns} columns padded to a multiple of 128",
        )
    leading = list(q.shape[:-1])
    for name, tensor, dtype in (("scale", scale, torch.float32), ("sum", total, torch.int32)):
        if tensor.dtype != dtype or list(tensor.shape) != leading:
            raise KernelInputError(
                f"x.{name}",
                f"{tensor.dtype} of shape {list(tensor.shape)}",
                f"{dtype} of shape {leading}, the leading shape of x.q",
            )
    for name, tensor in (("q", q), ("scale", scale), ("sum", total)):
        check_contiguous(f"x.{name}", tensor)
        check_device(f"x.{name}", tensor, device, "the weight")
