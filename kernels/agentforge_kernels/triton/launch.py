"""Host side of the dense kernels: from tensors to launches, for a family of GPUs.

Outputs are always new float32 tensors. With CPU tensors the same functions run under
``verify.interpreter.interpreted()``, which is how they are tested without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from agentforge_kernels.backend import Activations
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import GROUP_COLUMNS, padded
from agentforge_kernels.triton import fused, gemm, gemv, quantize, small_batch
from agentforge_kernels.triton.configs import (
    FusedConfig,
    GemmConfig,
    GemvConfig,
    QuantizeConfig,
    SmallBatchConfig,
    lookup,
)
from agentforge_kernels.triton.devices import DOT4_INSTRUCTION, Family, int8_matrix_units
from agentforge_kernels.triton.words import as_words, power_of_two

GROUP_WORDS = 8
FINISHED_ROWS = 128
"""Rows a program of ``finish_split``, one a thread (of a warp of 32)."""
MOST_WORDS = 1 << 31
"""Words of codes that a matvec's 32-bit offsets reach: 8 GB."""
SMALL_BATCH_TOKENS: dict[Family, int] = {
    "turing": 8,
    "ampere": 4,
    "hopper": 4,
    "blackwell": 4,
    "cdna": 8,
    "rdna3": 8,
}
"""Most tokens of a small batch. Tensor-core GPUs change over to matrix units at five: from there
their accumulators need more than 64 registers, and the integer work outlasts the memory."""


def quantize_tokens(
    x: Tensor, norm_weight: Tensor | None, epsilon: float, family: Family
) -> Activations:
    """Per-token absmax int8 of ``x`` ``[tokens, columns]`` (float32, float16 or bfloat16).

    Args:
        x: Contiguous, on the device.
        norm_weight: float32 ``[columns]``, or ``None``.
        epsilon: Of the norm.
        family: Family of the device.

    Returns:
        Activations, columns padded to 128; scale NaN for a token that holds NaN or infinity.
    """
    tokens, columns = x.shape
    config = lookup("quantize", family, 1, columns, tokens)
    assert isinstance(config, QuantizeConfig)
    q = torch.empty(tokens, padded(columns), dtype=torch.int8, device=x.device)
    scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
    total = torch.empty(tokens, dtype=torch.int32, device=x.device)
    if tokens:
        quantize.quantize_tokens[(tokens,)](
            x,
            norm_weight,
            q,
            scale,
            total,
            columns,
            padded(columns) // GROUP_COLUMNS,
            epsilon,
            BLOCK_COLUMNS=config.block_columns,
            num_warps=config.num_warps,
            enable_fp_fusion=False,
        )
    return Activations(q, scale, total)


def multiply_one(
    activations: Activations,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    family: Family,
    config: GemvConfig,
) -> Tensor:
    """One token times ``codes`` uint8 ``[rows, padded columns / 4]``; else as :func:`multiply`."""
    rows, groups = _size(codes)
    _check_reach(codes)
    words = as_words(codes)
    output = torch.empty(1, rows, dtype=torch.float32, device=codes.device)
    block_rows = config.block_rows * config.rows_per_thread
    programs = triton.cdiv(rows, block_rows)
    blocks: dict[str, Any] = {
        "BLOCK_ROWS": config.block_rows,
        "BLOCK_WORDS": config.block_words,
        "ROWS_PER_THREAD": config.rows_per_thread,
        "INSTRUCTION": DOT4_INSTRUCTION[family],
        "EVEN": rows % block_rows == 0
        and groups * GROUP_WORDS % (config.block_words * config.split) == 0,
        "num_warps": config.num_warps,
        "num_stages": 1,
        "enable_fp_fusion": False,
    }
    scale_per_row = weight_scale.shape[0] > 1
    if config.split == 1:
        gemv.ternary_gemv[(programs,)](
            as_words(activations.q),
            activations.scale,
            activations.sum,
            words,
            weight_scale,
            residual,
            output,
            rows,
            groups,
            SCALE_PER_ROW=scale_per_row,
            **blocks,
        )
        return output
    totals = torch.zeros(rows, dtype=torch.int32, device=codes.device)
    gemv.ternary_gemv_split[(programs, config.split)](
        as_words(activations.q), words, totals, rows, groups, SPLIT=config.split, **blocks
    )
    gemv.finish_split[(triton.cdiv(rows, FINISHED_ROWS),)](
        totals,
        activations.scale,
        activations.sum,
        weight_scale,
        residual,
        output,
        rows,
        BLOCK_ROWS=FINISHED_ROWS,
        SCALE_PER_ROW=scale_per_row,
        num_warps=FINISHED_ROWS // 32,
        enable_fp_fusion=False,
    )
    return output


def multiply_few(
    activations: Activations,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    family: Family,
    config: SmallBatchConfig,
) -> Tensor:
    """Two to eight tokens; arguments as for :func:`multiply_one`."""
    rows, groups = _size(codes)
    _check_reach(codes)
    tokens = activations.q.shape[0]
    output = torch.empty(tokens, rows, dtype=torch.float32, device=codes.device)
    small_batch.ternary_small_batch[(triton.cdiv(rows, config.block_rows),)](
        as_words(activations.q),
        activations.scale,
        activations.sum,
        as_words(codes),
        weight_scale,
        residual,
        output,
        rows,
        groups,
        TOKENS=tokens,
        BLOCK_ROWS=config.block_rows,
        BLOCK_WORDS=config.block_words,
        EVEN=rows % config.block_rows == 0 and groups * GROUP_WORDS % config.block_words == 0,
        SCALE_PER_ROW=weight_scale.shape[0] > 1,
        INSTRUCTION=DOT4_INSTRUCTION[family],
        num_warps=config.num_warps,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return output


def multiply_many(
    activations: Activations,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    family: Family,
    config: GemmConfig,
) -> Tensor:
    """Any number of tokens; arguments as for :func:`multiply_one`."""
    rows, groups = _size(codes)
    tokens = activations.q.shape[0]
    output = torch.empty(tokens, rows, dtype=torch.float32, device=codes.device)
    grid = (triton.cdiv(tokens, config.block_tokens), triton.cdiv(rows, config.block_rows))
    arguments = (
        activations.q,
        activations.scale,
        activations.sum,
        codes,
        weight_scale,
        residual,
        output,
        tokens,
        rows,
        groups,
    )
    options: dict[str, Any] = {
        "BLOCK_TOKENS": config.block_tokens,
        "BLOCK_ROWS": config.block_rows,
        "SCALE_PER_ROW": weight_scale.shape[0] > 1,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": False,
    }
    if int8_matrix_units(family):
        gemm.ternary_gemm_int8[grid](*arguments, INSTRUCTION=DOT4_INSTRUCTION[family], **options)
    else:
        gemm.ternary_gemm_float32[grid](*arguments, BLOCK_COLUMNS=config.block_columns, **options)
    return output


def multiply(
    activations: Activations,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    family: Family,
) -> Tensor:
    """Dense ternary matmul by the kernel and configuration for the number of tokens.

    Args:
        activations: Quantised tokens, columns padded as the codes'.
        codes: uint8 ``[rows, padded columns / 4]``, the stored form.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[tokens, rows]``, or ``None``.
        family: Family of the device.

    Returns:
        float32 ``[tokens, rows]``.

    Raises:
        KernelInputError: Activations of another padded width than the codes, or a matrix beyond the
            offsets of the kernels.
    """
    tokens, padded_columns = activations.q.shape
    rows, groups = _size(codes)
    if padded_columns != groups * GROUP_COLUMNS:
        raise KernelInputError(
            "activations.q",
            f"{padded_columns} columns",
            f"{groups * GROUP_COLUMNS}, as the codes after padding",
        )
    arguments = (activations, codes, weight_scale, residual, family)
    if tokens == 0:
        return torch.empty(0, rows, dtype=torch.float32, device=codes.device)
    if tokens == 1:
        one = lookup("gemv", family, rows, padded_columns, 1)
        assert isinstance(one, GemvConfig)
        return multiply_one(*arguments, one)
    if tokens <= SMALL_BATCH_TOKENS[family]:
        few = lookup("small_batch", family, rows, padded_columns, tokens)
        assert isinstance(few, SmallBatchConfig)
        return multiply_few(*arguments, few)
    many = lookup("gemm", family, rows, padded_columns, tokens)
    assert isinstance(many, GemmConfig)
    return multiply_many(*arguments, many)


def fused_multiply(
    x: Tensor,
    norm_weight: Tensor | None,
    epsilon: float,
    codes: Tensor,
    weight_scale: Tensor,
    residual: Tensor | None,
    family: Family,
) -> Tensor:
    """Norm, quantisation, product and residual of one token in one launch.

    Args:
        x: float32, float16 or bfloat16 ``[1, columns]``, at most ``MOST_FUSED_COLUMNS`` columns.
        norm_weight: float32 ``[columns]``, or ``None``.
        epsilon: Of the norm.
        codes: uint8 ``[rows, padded columns / 4]``, the stored form.
        weight_scale: float32 ``[1]`` or ``[rows]``.
        residual: float32 ``[1, rows]``, or ``None``.
        family: Family of the device.

    Returns:
        float32 ``[1, rows]``, equal to ``quantize_tokens`` and ``multiply``.
    """
    rows, groups = _size(codes)
    _check_reach(codes)
    columns = x.shape[1]
    config = lookup("fused", family, rows, columns, 1)
    assert isinstance(config, FusedConfig)
    output = torch.empty(1, rows, dtype=torch.float32, device=codes.device)
    fused.fused_linear[(triton.cdiv(rows, config.block_rows),)](
        x,
        norm_weight,
        as_words(codes),
        weight_scale,
        residual,
        output,
        rows,
        columns,
        groups,
        epsilon,
        BLOCK_ROWS=config.block_rows,
        BLOCK_WORDS=power_of_two(groups * GROUP_WORDS),
        SCALE_PER_ROW=weight_scale.shape[0] > 1,
        INSTRUCTION=DOT4_INSTRUCTION[family],
        num_warps=config.num_warps,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return output


def _size(codes: Tensor) -> tuple[int, int]:
    """Rows, and groups of 128 columns."""
    return codes.shape[0], codes.shape[1] // (GROUP_COLUMNS // 4)


def _check_reach(codes: Tensor) -> None:
    if codes.numel() // 4 >= MOST_WORDS:
        raise KernelInputError(
            "codes", f"{codes.numel()} bytes", f"fewer than {4 * MOST_WORDS} in one matrix"
        )
