"""Kernel cases of the block-sparse kernels.

Seed 0, 3, ...: drawn numbers; 1, 4, ...: all activations +127 or -127, all weights 1; 2, 5, ...: no
activation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agentforge_kernels.format import pack, padded
from agentforge_kernels.sparse import to_block_sparse
from agentforge_kernels.triton import block_sparse
from agentforge_kernels.triton.configs import BlockSparseConfig, BlockSparseGemmConfig
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

# Block-sparse: 64 rows without any tile, then 26 rows of 38 tiles (columns 592 to 599 in the last).
TILE_MATRIX = (90, 600)


def _tile_weights(generator: torch.Generator, kind: int) -> Tensor:
    weights = torch.randint(-1, 2, TILE_MATRIX, generator=generator, dtype=torch.int8)
    if kind == 1:
        weights = torch.ones_like(weights)
    weights[:64] = 0
    # Two tiles fewer, so that tile and column group are not the same number.
    weights[64:, 32:64] = 0
    return weights


def _block_sparse_build(tokens: int, words: bool, heavy: bool) -> Callable[[int], Arguments]:
    def build(seed: int) -> Arguments:
        generator = torch.Generator().manual_seed(seed)
        rows, columns = TILE_MATRIX
        q, scale, _ = draw_activations(generator, tokens, columns, seed % 3)
        weight_scale = torch.rand(rows if heavy else 1, generator=generator) + 0.01
        sparse = to_block_sparse(pack(_tile_weights(generator, seed % 3), weight_scale))
        return {
            "q": q.view(torch.int32) if words else q,
            "activation_scale": scale,
            "tiles": sparse.tiles.view(torch.int32) if words else sparse.tiles,
            "index": sparse.index,
            "start": sparse.start,
            "weight_scale": sparse.scale,
            **outputs(generator, tokens, rows, heavy),
            "tokens": tokens,
            "rows": rows,
            "groups": padded(columns) // 128,
        }

    return build


def _block_sparse_check(before: Arguments, after: Arguments) -> None:
    rows, columns = TILE_MATRIX
    q = tensor_of(before, "q").view(torch.int8)[:, :columns]
    tiles, start = tensor_of(before, "tiles").view(torch.uint8), tensor_of(before, "start")
    # Decoded here word by word, not by the package's own unpacking.
    weights = torch.zeros(64 * (len(start) - 1), padded(columns, 16), dtype=torch.int64)
    for block in range(len(start) - 1):
        for tile in range(int(start[block]), int(start[block + 1])):
            first = 16 * int(tensor_of(before, "index")[tile])
            for field in range(4):
                codes = (tiles[tile].view(64, 4).long() >> (2 * field)) & 3
                place = slice(first + 4 * field, first + 4 * field + 4)
                weights[64 * block : 64 * block + 64, place] = codes - 1
    total = q.long() @ weights[:rows, :columns].T
    expected = expected_outputs(
        total, tensor_of(before, "activation_scale"), tensor_of(before, "weight_scale"), before
    )
    assert_equal("output", tensor_of(after, "output"), expected)


def _block_sparse_gemv_case(variant: GemvVariant) -> KernelCase:
    config, together = variant.config, variant.together
    assert isinstance(config, BlockSparseConfig)
    tokens = SMALL_BATCH[together]
    heavy = together != 1
    return KernelCase(
        name=f"block_sparse_gemv_{config.block_rows}x{config.block_tiles}_w{config.num_warps}"
        f"_t{together}",
        kernel=block_sparse.block_sparse_gemv,
        constexprs={
            "TOKENS": together,
            "BLOCK_ROWS": config.block_rows,
            "BLOCK_TILES": config.block_tiles,
            "SCALE_PER_ROW": heavy,
        },
        family_constexprs=INSTRUCTIONS,
        aligned=POINTERS & set(block_sparse.block_sparse_gemv.arg_names),
        grid=(-(-tokens // together), 2 * (64 // config.block_rows), 1),
        build=_block_sparse_build(tokens, words=True, heavy=heavy),
        check=_block_sparse_check,
        targets=variant.targets,
        work=Work(
            config.block_tiles * config.block_rows * 16 * together,
            0.25 / together,
            "stored weight" if together == 1 else "stored weight and token",
        ),
        num_warps=config.num_warps,
    )


def _block_sparse_gemm_case(config: BlockSparseGemmConfig, targets: tuple[str, ...]) -> KernelCase:
    tokens = 20
    return KernelCase(
        name=f"block_sparse_gemm_{config.block_tokens}x{config.block_tiles}_w{config.num_warps}"
        f"_s{config.num_stages}",
        kernel=block_sparse.block_sparse_gemm,
        constexprs={
            "BLOCK_TOKENS": config.block_tokens,
            "BLOCK_TILES": config.block_tiles,
            "NUM_STAGES": config.num_stages,
            "SCALE_PER_ROW": True,
        },
        family_constexprs=INSTRUCTIONS,
        aligned=POINTERS & set(block_sparse.block_sparse_gemm.arg_names),
        grid=(-(-tokens // config.block_tokens), 2, 1),
        build=_block_sparse_build(tokens, words=False, heavy=True),
        check=_block_sparse_check,
        targets=targets,
        work=Work(config.block_tiles * 64 * 16, item="stored weight"),
        role="gemm",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _cases() -> tuple[KernelCase, ...]:
    cases = [_block_sparse_gemv_case(variant) for variant in gemv_variants("block_sparse")]
    for config, targets in shipped("block_sparse_gemm").items():
        assert isinstance(config, BlockSparseGemmConfig)
        cases.append(_block_sparse_gemm_case(config, targets))
    return tuple(cases)


CASES = _cases()
"""Every shipped configuration."""
