"""What the tuner tries: configurations whose blocks fill a program's threads with 128-bit loads.

Blocks that would leave threads without work, or give each so much that registers spill, are not
made. Those that a device refuses all the same (shared memory, registers) the tuner skips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.triton.configs import (
    ActivationSparseConfig,
    BlockSparseConfig,
    BlockSparseGemmConfig,
    Config,
    FusedConfig,
    GemmConfig,
    GemvConfig,
    Int8GemmConfig,
    Int8GemvConfig,
    QuantizeConfig,
    SmallBatchConfig,
)
from agentforge_kernels.triton.devices import Family, int8_matrix_units
from agentforge_kernels.triton.words import power_of_two

WORDS_A_LOAD = 4


class _Gpu(NamedTuple):
    """Threads of a warp, whether there are int8 matrix units, and most tokens of a call."""

    wave: int
    units: bool
    tokens: int

    def together(self) -> tuple[int, ...]:
        """Tokens a program may take together."""
        return tuple(sorted({min(tokens, self.tokens) for tokens in (2, 4, 8)}))


def candidates(operation: str, family: Family, tokens: int) -> list[Config]:
    """Configurations to time, without repetition.

    Args:
        operation: Key of ``configs.CONFIG_TYPES``.
        family: Of the GPU.
        tokens: Of the call; no program takes more together.

    Raises:
        KernelInputError: An unknown operation.
    """
    if operation not in _MADE_BY:
        raise KernelInputError("operation", operation, ", ".join(_MADE_BY))
    wave = 64 if family == "cdna" else 32
    gpu = _Gpu(wave, int8_matrix_units(family), power_of_two(tokens))
    return list(dict.fromkeys(_MADE_BY[operation](gpu)))


def _gemv(gpu: _Gpu) -> Iterator[Config]:
    for warps, words, rows in product((1, 2, 4, 8), (32, 64, 128), (1, 2, 4)):
        block_rows = warps * gpu.wave * WORDS_A_LOAD // words
        if block_rows >= 2:
            yield GemvConfig(warps, block_rows, words, rows)
    for split in (2, 4, 8):
        yield GemvConfig(128 // gpu.wave, 4, 128, 1, split)


def _small_batch(gpu: _Gpu) -> Iterator[Config]:
    for warps, words in product((1, 2, 4, 8), (32, 64, 128)):
        block_rows = warps * gpu.wave * WORDS_A_LOAD // words
        if block_rows >= 2:
            yield SmallBatchConfig(warps, block_rows, words)


def _gemm(gpu: _Gpu) -> Iterator[Config]:
    if not gpu.units:
        for warps, tokens, rows, columns in product((4, 8), (32, 64), (64, 128), (16, 32)):
            yield GemmConfig(warps, tokens, rows, 1, columns)
        return
    for tokens, rows, stages in product((16, 32, 64), (32, 64, 128), (2, 3, 5)):
        yield GemmConfig(8 if tokens * rows >= 8192 else 4, tokens, rows, stages)


def _quantize(_gpu: _Gpu) -> Iterator[Config]:
    for warps, columns in product((2, 4, 8), (512, 1024, 2048)):
        yield QuantizeConfig(warps, columns)


def _fused(_gpu: _Gpu) -> Iterator[Config]:
    for warps, rows in product((2, 4, 8), (4, 8, 16, 32)):
        yield FusedConfig(warps, rows)


def _block_sparse_gemm(_gpu: _Gpu) -> Iterator[Config]:
    for warps, tokens, tiles, stages in product((4, 8), (16, 32, 64), (8, 16), (2, 3)):
        yield BlockSparseGemmConfig(warps, tokens, tiles, stages)


def _int8_gemm(_gpu: _Gpu) -> Iterator[Config]:
    for tokens, rows, columns, stages in product((16, 32, 64), (64, 128), (32, 64), (2, 3, 4)):
        yield Int8GemmConfig(8 if tokens * rows >= 8192 else 4, tokens, rows, columns, stages)


def _block_sparse(gpu: _Gpu) -> Iterator[Config]:
    for warps, rows, tokens in product((1, 2, 4, 8), (16, 32, 64), gpu.together()):
        tiles = warps * gpu.wave * WORDS_A_LOAD // rows
        if tiles >= 2:
            yield BlockSparseConfig(warps, rows, tiles, tokens)


def _activation_sparse(gpu: _Gpu) -> Iterator[Config]:
    for warps, chunk, words in product((1, 2, 4), (256, 512, 1024), (32, 64, 128)):
        fours = warps * gpu.wave * WORDS_A_LOAD // words
        if fours >= 1 and chunk >= 4 * fours:
            yield ActivationSparseConfig(warps, chunk, words, fours)


def _int8_gemv(gpu: _Gpu) -> Iterator[Config]:
    for warps, quads, rows, tokens in product((2, 4, 8), (8, 32), (1, 2, 4), gpu.together()):
        block_rows = warps * gpu.wave // quads
        # Beyond 32 sums a thread registers would spill.
        if block_rows >= 2 and rows * tokens <= 32:
            yield Int8GemvConfig(warps, block_rows, quads, rows, tokens)


_MADE_BY: dict[str, Callable[[_Gpu], Iterator[Config]]] = {
    "gemv": _gemv,
    "small_batch": _small_batch,
    "gemm": _gemm,
    "quantize": _quantize,
    "fused": _fused,
    "block_sparse": _block_sparse,
    "block_sparse_gemm": _block_sparse_gemm,
    "activation_sparse": _activation_sparse,
    "int8_gemv": _int8_gemv,
    "int8_gemm": _int8_gemm,
}
"""By operation."""
