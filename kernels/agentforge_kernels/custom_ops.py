"""The operations as torch sees them: schemas, kernels by device, fake kernels.

Weights are in their stored form, so that a compiled or exported graph holds nothing that belongs to
one machine; the layout a backend reads is looked up when the operation runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agentforge_kernels import execute
from agentforge_kernels.execute import empty_activations, empty_output

custom_op = torch.library.custom_op
quantize_activations = custom_op(
    "agentforge::quantize_activations", execute.quantize_activations, mutates_args=()
)
ternary_linear = custom_op("agentforge::ternary_linear", execute.ternary_linear, mutates_args=())
ternary_linear.register_kernel("cuda")(execute.ternary_linear_on_gpu)
ternary_linear_quantized = custom_op(
    "agentforge::ternary_linear_quantized", execute.ternary_linear_quantized, mutates_args=()
)
ternary_linear_block_sparse = custom_op(
    "agentforge::ternary_linear_block_sparse", execute.ternary_linear_block_sparse, mutates_args=()
)
ternary_linear_activation_sparse = custom_op(
    "agentforge::ternary_linear_activation_sparse",
    execute.ternary_linear_activation_sparse,
    mutates_args=(),
)
int8_linear = custom_op("agentforge::int8_linear", execute.int8_linear, mutates_args=())


@quantize_activations.register_fake
def _(x: Tensor, norm_weight: Tensor | None, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    return empty_activations(x)


@ternary_linear.register_fake
def _(
    x: Tensor,
    norm_weight: Tensor | None,
    epsilon: float,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    columns: int,
) -> Tensor:
    return empty_output(x, codes.shape[0])


@ternary_linear_quantized.register_fake
def _(q: Tensor, scale: Tensor, total: Tensor, codes: Tensor, *_: object) -> Tensor:
    return empty_output(q, codes.shape[0])


@ternary_linear_block_sparse.register_fake
def _(
    q: Tensor,
    scale: Tensor,
    total: Tensor,
    tiles: Tensor,
    index: Tensor,
    start: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    rows: int,
    columns: int,
) -> Tensor:
    return empty_output(q, rows)


@ternary_linear_activation_sparse.register_fake
def _(
    q: Tensor,
    scale: Tensor,
    total: Tensor,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    rows: int,
) -> Tensor:
    return empty_output(q, rows)


@int8_linear.register_fake
def _(q: Tensor, scale: Tensor, total: Tensor, weight: Tensor, *_: object) -> Tensor:
    return empty_output(q, weight.shape[0])
