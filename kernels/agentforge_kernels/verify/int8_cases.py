"""Kernel cases of the int8 kernels.

Seed 0, 3, ...: drawn numbers; 1, 4, ...: activations +-127, weights 127 or -128; 2, 5, ...: no
activation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from agentforge_kernels.triton import int8
from agentforge_kernels.triton.configs import Int8GemmConfig, Int8GemvConfig
from agentforge_kernels.verify.cases import Arguments, KernelCase, Work
from agentforge_kernels.verify.sparse_case_inputs import (
    INSTRUCTIONS,
    POINTERS,
    SMALL_BATCH,
    GemvVariant,
    assert_equal,
    draw_activations,
    expected_outputs,
    gemv_variants,
    outputs,
    shipped,
    tensor_of,
)


def _int8_build(
    tokens: int, rows: int, columns: int, words: bool, with_residual: bool
) -> Callable[[int], Arguments]:
    def build(seed: int) -> Arguments:
        generator = torch.Generator().manual_seed(seed)
        q, scale, _ = draw_activations(generator, tokens, columns, seed % 3)
        weight = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
        if seed % 3 == 1:
            weight = torch.where(weight < 0, -128, 127).to(torch.int8)
        weight = int8.lay_out_int8(weight)
        return {
            "q": q.view(torch.int32) if words else q,
            "activation_scale": scale,
            "weight": weight.view(torch.int32) if words else weight,
            "row_scale": torch.rand(rows, generator=generator),
            **outputs(generator, tokens, rows, with_residual),
            "tokens": tokens,
            "rows": rows,
            "groups": q.shape[1] // 128,
            "quads": weight.shape[1] // 16,
        }

    return build


def _int8_check(before: Arguments, after: Arguments) -> None:
    q, weight = (
        tensor_of(before, "q").view(torch.int8),
        tensor_of(before, "weight").view(torch.int8),
    )
    total = q[:, : weight.shape[1]].long() @ weight.long().T
    expected = expected_outputs(
        total, tensor_of(before, "activation_scale"), tensor_of(before, "row_scale"), before
    )
    assert_equal("output", tensor_of(after, "output"), expected)


def _int8_gemv_case(variant: GemvVariant, even: bool) -> KernelCase:
    config, together = variant.config, variant.together
    assert isinstance(config, Int8GemvConfig)
    rows, tokens = 40, SMALL_BATCH[together]
    columns = 32 * config.block_quads if even else 200
    rows_a_program = config.block_rows * config.rows_per_thread
    return KernelCase(
        name=f"int8_gemv_{config.block_rows}x{config.block_quads}x{config.rows_per_thread}"
        f"_w{config.num_warps}_t{together}{'' if even else '_tail'}",
        kernel=int8.int8_gemv,
        constexprs={
            "TOKENS": together,
            "BLOCK_ROWS": config.block_rows,
            "BLOCK_QUADS": config.block_quads,
            "ROWS_PER_THREAD": config.rows_per_thread,
            "EVEN": even,
            "SCALE_PER_ROW": True,
        },
        family_constexprs=INSTRUCTIONS,
        aligned=POINTERS & set(int8.int8_gemv.arg_names),
        grid=(-(-tokens // together), -(-rows // rows_a_program), 1),
        build=_int8_build(tokens, rows, columns, words=True, with_residual=not even),
        check=_int8_check,
        targets=variant.targets,
        work=Work(
            rows_a_program * config.block_quads * 16 * together,
            1.0 / together,
            "weight" if together == 1 else "weight and token",
            # A weight serves every token, an activation every row of a thread.
            1 / together + 1 / config.rows_per_thread,
        ),
        # With several tokens a weight is more than one product, which the gates of a matvec count.
        role="other" if together > 1 else "gemv" if even else "masked_gemv",
        num_warps=config.num_warps,
    )


def _int8_gemm_case(config: Int8GemmConfig, targets: tuple[str, ...]) -> KernelCase:
    tokens, rows, columns = 20, 70, 200
    return KernelCase(
        name=f"int8_gemm_{config.block_tokens}x{config.block_rows}x{config.block_columns}"
        f"_w{config.num_warps}_s{config.num_stages}",
        kernel=int8.int8_gemm,
        constexprs={
            "BLOCK_TOKENS": config.block_tokens,
            "BLOCK_ROWS": config.block_rows,
            "BLOCK_COLUMNS": config.block_columns,
            "NUM_STAGES": config.num_stages,
            "EVEN": False,
            "SCALE_PER_ROW": True,
        },
        aligned=POINTERS & set(int8.int8_gemm.arg_names),
        grid=(-(-tokens // config.block_tokens), -(-rows // config.block_rows), 1),
        build=_int8_build(tokens, rows, columns, words=False, with_residual=True),
        check=_int8_check,
        targets=targets,
        work=Work(config.block_rows * config.block_columns * 2, 1.0),
        role="gemm",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _cases() -> tuple[KernelCase, ...]:
    cases = []
    for variant in gemv_variants("int8_gemv"):
        cases.append(_int8_gemv_case(variant, even=False))
        if variant.together == 1:
            cases.append(_int8_gemv_case(variant, even=True))
    for config, targets in shipped("int8_gemm").items():
        assert isinstance(config, Int8GemmConfig)
        cases.append(_int8_gemm_case(config, targets))
    return tuple(cases)


CASES = _cases()
"""Every shipped configuration."""
