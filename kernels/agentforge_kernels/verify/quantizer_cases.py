"""Kernel cases of the quantiser and of the fused kernel: every configuration, small launches.

Of the seeds, multiples of three draw numbers, then come magnitudes from 1e-30 to 1e30 with an
infinity and a NaN among them, then all zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from agentforge_kernels import reference
from agentforge_kernels.format import SMALLEST_MAGNITUDE, padded
from agentforge_kernels.triton import fused, quantize
from agentforge_kernels.triton.configs import FusedConfig, QuantizeConfig
from agentforge_kernels.triton.words import power_of_two
from agentforge_kernels.verify.case_parts import (
    INSTRUCTIONS,
    NOT_WRITTEN,
    POINTERS,
    check_close,
    check_equal,
    draw,
    residual_of,
    run_time_arguments,
    shipped,
    tensor_of,
    trits_of,
)
from agentforge_kernels.verify.cases import Arguments, KernelCase, Work

EPSILON = 1e-5


def _floats(seed: int, tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Activations for a quantiser; extremes stay within the range of their dtype."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator)
    if seed % 3 == 1:
        large, small = (1e30, 1e-30) if dtype is not torch.float16 else (6e4, 6e-8)
        magnitudes = (large, 1.0, small, 0.0)
        for token in range(tokens):
            x[token] = x[token].clamp(-1.0, 1.0) * magnitudes[token % len(magnitudes)]
        if tokens > 1:
            x[1, 0], x[-1, -1] = float("inf"), float("nan")
    elif seed % 3 == 2:
        x = torch.zeros_like(x)
    return x.to(dtype)


def expected_q(x: Tensor, norm_weight: Tensor | None) -> Tensor:
    """``q`` as the kernels define it, for finite tokens: the root mean square cancels in it.

    In float32, every operation rounded once, so equal to the kernels bit for bit unless a
    normalised token is all below ``SMALLEST_MAGNITUDE`` (then the scale's bound decides, and it is
    compared with the reference).
    """
    u = x.float() if norm_weight is None else x.float() * norm_weight
    largest = u.abs().amax(dim=-1, keepdim=True)
    return (u * (127.0 / largest)).round().to(torch.int8)


def _norm_of(launch: Arguments) -> Tensor | None:
    value = launch["norm_weight"]
    assert value is None or isinstance(value, Tensor)
    return value


def check_quantised(before: Arguments, after: Arguments) -> None:
    """Without a norm equal to the reference; with one, ``q`` within a step, the scale to 1e-6."""
    x, norm_weight = tensor_of(before, "x"), _norm_of(before)
    q, scale, total = (tensor_of(after, name) for name in ("q", "scale", "total"))
    finite = torch.isfinite(x.float()).all(dim=-1)
    columns = x.shape[1]
    check_equal("padding of q", q[:, columns:], torch.zeros_like(q[:, columns:]))
    check_equal("total", total, q.sum(dim=1, dtype=torch.int32))
    check_equal("finite scales", torch.isfinite(scale), finite)
    x, q, scale = x[finite], q[finite, :columns], scale[finite]
    if norm_weight is None:
        same, exact_scale, _ = reference.quantize_activations(x)
        check_equal("q", q, same)
        check_equal("scale", scale, exact_scale)
        return
    near, near_scale, _ = reference.quantize_activations(x, norm_weight, EPSILON)
    check_close("q", q, near, 1.0)
    check_close("scale", scale, near_scale, 1e-6 * near_scale.double())
    above = near_scale > 1.01 * SMALLEST_MAGNITUDE / 127.0
    check_equal("q by its definition", q[above], expected_q(x[above], norm_weight))


def check_fused(before: Arguments, after: Arguments) -> None:
    """Equal to quantisation by definition and an exact product, up to the rounding of the scale."""
    x, norm_weight, weight_scale = (
        tensor_of(before, "x")[None],
        _norm_of(before),
        tensor_of(before, "weight_scale"),
    )
    output, residual = tensor_of(after, "output"), residual_of(before)
    trits = trits_of(before)[:, : x.shape[1]]
    q, scale, _ = reference.quantize_activations(x, norm_weight, EPSILON)
    if norm_weight is None:
        check_equal("output", output, reference.linear(q, scale, trits, weight_scale, residual)[0])
        return
    if float(scale) > 1.01 * SMALLEST_MAGNITUDE / 127.0:
        near, q = q, expected_q(x, norm_weight)
        check_close("q by its definition", q, near, 1.0)
    product = reference.accumulate(q, trits).double() * scale.double() * weight_scale.double()
    expected = product if residual is None else product + residual
    allowed = 1e-6 * (product.abs() + expected.abs()) + 1e-12
    check_close("output", output, expected[0], allowed[0])


def _quantize_case(
    config: QuantizeConfig,
    targets: tuple[str, ...],
    dtype: torch.dtype,
    norm: bool,
    columns: int,
) -> KernelCase:
    tokens, even = 4, columns % 16 == 0

    def build(seed: int) -> Arguments:
        weight = torch.rand(columns, generator=torch.Generator().manual_seed(seed)) + 0.5
        return {
            "x": _floats(seed, tokens, columns, dtype),
            "norm_weight": weight if norm else None,
            "q": torch.full((tokens, padded(columns)), -128, dtype=torch.int8),
            "scale": torch.full((tokens,), NOT_WRITTEN),
            "total": torch.full((tokens,), 1 << 30, dtype=torch.int32),
            "columns": columns,
            "groups": padded(columns) // 128,
            "epsilon": EPSILON,
        }

    aligned = POINTERS & set(quantize.quantize_tokens.arg_names)
    return KernelCase(
        name=f"quantize{'_norm' if norm else ''}_{str(dtype).removeprefix('torch.')}"
        f"{'' if even else '_ragged'}_{config.block_columns}_w{config.num_warps}",
        kernel=quantize.quantize_tokens,
        constexprs={"BLOCK_COLUMNS": config.block_columns},
        aligned=aligned | {"columns"} if even else aligned,
        grid=(tokens, 1, 1),
        build=build,
        check=check_quantised,
        targets=targets,
        work=Work(config.block_columns, float(dtype.itemsize), "activation"),
        num_warps=config.num_warps,
    )


def _quantize_cases() -> Iterator[KernelCase]:
    for config, targets in shipped(QuantizeConfig):
        yield _quantize_case(config, targets, torch.float32, True, 2048)
        yield _quantize_case(config, targets, torch.float16, False, 1552)
        yield _quantize_case(config, targets, torch.bfloat16, True, 1101)


def _fused_case(
    config: FusedConfig,
    targets: tuple[str, ...],
    dtype: torch.dtype,
    norm: bool,
    columns: int,
) -> KernelCase:
    rows, even = config.block_rows + 5, columns % 16 == 0
    block_words = power_of_two(padded(columns) // 16)
    constexprs: dict[str, object] = {
        "BLOCK_ROWS": config.block_rows,
        "BLOCK_WORDS": block_words,
        "SCALE_PER_ROW": not even,
    }
    names = run_time_arguments(fused.fused_linear, constexprs)

    def build(seed: int) -> Arguments:
        matmul = draw(seed, 1, rows, columns, not even, norm)
        weight = torch.rand(columns, generator=torch.Generator().manual_seed(seed)) + 0.5
        arguments: Arguments = {
            **matmul,
            "x": _floats(seed, 1, columns, dtype)[0],
            "norm_weight": weight if norm else None,
            "codes": tensor_of(matmul, "codes").view(torch.int32),
            "output": torch.full((rows,), NOT_WRITTEN),
            "residual": tensor_of(matmul, "residual")[0] if norm else None,
            "columns": columns,
            "epsilon": EPSILON,
        }
        return {name: arguments[name] for name in names}

    aligned = POINTERS & set(names)
    return KernelCase(
        name=f"fused{'_norm' if norm else ''}_{str(dtype).removeprefix('torch.')}"
        f"{'' if even else '_ragged'}_{config.block_rows}x{block_words}_w{config.num_warps}",
        kernel=fused.fused_linear,
        constexprs=constexprs,
        family_constexprs=INSTRUCTIONS,
        aligned=aligned | {"columns"} if even else aligned,
        grid=(2, 1, 1),
        build=build,
        check=check_fused,
        targets=targets,
        work=Work(config.block_rows * block_words * 16),
        num_warps=config.num_warps,
    )


def _fused_cases() -> Iterator[KernelCase]:
    for config, targets in shipped(FusedConfig):
        if config.block_rows == 16:
            yield _fused_case(config, targets, torch.float16, True, 512)
            yield _fused_case(config, targets, torch.bfloat16, True, 301)
            yield _fused_case(config, targets, torch.float32, False, 1024)
        else:
            yield _fused_case(config, targets, torch.float32, True, 2048)


CASES: tuple[KernelCase, ...] = (*_quantize_cases(), *_fused_cases())
