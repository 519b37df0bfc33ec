"""The shortest way from a tensor into the extension, for a dense matrix used again and again.

A 512 x 512 matvec is 1 us, and a call that checks its arguments one by one is several. What cannot
change (addresses, sizes, scale) is bound once; what can is looked at in one condition, and when
anything is unusual the call declines and the ordinary way, slower and with words, takes over.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import _disable_current_modes

from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.native import extension
from agentforge_kernels.native.threads import shares_openmp

DenseCall = Callable[[object, Tensor | None, float, Tensor | None, Tensor | None], Tensor | None]
"""``(x, norm_weight, epsilon, residual, bias)`` to float32 ``[..., rows]``; ``None``: declined."""

_ELEMENT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_CPU = torch.device("cpu")


def bind_dense(panels: Tensor, scale: Tensor, rows: int, columns: int) -> DenseCall:
    """A call that quantises and multiplies by one matrix.

    Args:
        panels: Layout ``panels`` of the native backend; kept alive by the call.
        scale: float32 ``[1]`` or ``[rows]`` on the CPU; copied.
        rows: Of the matrix.
        columns: Of the matrix.

    Returns:
        The call, for use when nobody watches (:func:`is_watched`). It declines (``None``) when a
        gradient is wanted and for any argument that is not contiguous, on the CPU and of matching
        shape. It raises :class:`KernelInputError` for NaN and infinity in ``x``. ``bias`` is
        float32 ``[rows]``, added last.
    """
    assert extension is not None
    # A copy, since an address is kept: nobody else can resize it or let it go.
    with _disable_current_modes():
        scale = scale.detach().clone(memory_format=torch.contiguous_format)
    panels_address, scale_address, per_row = panels.data_ptr(), scale.data_ptr(), scale.numel() > 1
    keep_alive = panels, scale
    linear = extension.dense_linear_fused
    element_type = _ELEMENT_TYPES.get
    threads = torch.get_num_threads if shares_openmp() else lambda: 1
    empty, float32, strided = torch.empty, torch.float32, torch.strided

    def call(
        x: object,
        norm_weight: Tensor | None,
        epsilon: float,
        residual: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor | None:
        if type(x) is not Tensor or not x.is_cpu or x.layout is not strided:
            return None
        kind = element_type(x.dtype)
        shape = x.shape
        if kind is None or not shape or shape[-1] != columns or not x.is_contiguous():
            return None
        tokens = x.numel() // columns
        if tokens == 0 or (x.requires_grad and torch.is_grad_enabled()):
            return None
        norm_address = added_address = 0
        if norm_weight is not None:
            if (
                norm_weight.ndim != 1
                or not _fits(norm_weight, columns)
                or not 0.0 <= epsilon < 1e30
            ):
                return None
            norm_address = norm_weight.data_ptr()
        if residual is not None:
            if not _fits(residual, tokens * rows) or residual.shape[:-1] != shape[:-1]:
                return None
            added_address = residual.data_ptr()
        if bias is not None:
            if not _fits(bias, rows):
                return None
            if tokens == 1 and residual is None:
                added_address, bias = bias.data_ptr(), None
        output = empty((*shape[:-1], rows), dtype=float32, device=_CPU)
        bad = linear(
            x.data_ptr(), kind, norm_address, epsilon, tokens, panels_address, scale_address,
            per_row, added_address, output.data_ptr(), rows, columns, threads(),
        )  # fmt: skip
        if bad >= 0:
            raise KernelInputError("x", f"NaN or infinity in token {bad}", "finite values")
        return output if bias is None else output.add_(bias)

    call.keep_alive = keep_alive  # type: ignore[attr-defined]
    return call


def is_watched() -> bool:
    """Whether a compiler, dispatch mode, function transform or tracer has to see each operation."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state()
    )


def _fits(tensor: Tensor, values: int) -> bool:
    return (
        type(tensor) in (Tensor, Parameter)
        and tensor.dtype == torch.float32
        and tensor.is_cpu
        and tensor.is_contiguous()
        and tensor.numel() == values
        and not (tensor.requires_grad and torch.is_grad_enabled())
    )
