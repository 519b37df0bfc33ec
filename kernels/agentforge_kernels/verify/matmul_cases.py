"""Kernel cases of the dense matmuls: every line of their configuration table, small launches.

The shapes hold what goes wrong: a second program that is not full, a last step that is not full, a
share of split columns that is empty, columns that are no multiple of 128, tokens beyond the last.
Of the seeds, multiples of three draw numbers, then come all activations +127 or -127 against
weights of one sign, then all activations zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from agentforge_kernels import reference
from agentforge_kernels.triton import gemm, gemv, launch, small_batch
from agentforge_kernels.triton.configs import GemmConfig, GemvConfig, SmallBatchConfig
from agentforge_kernels.triton.devices import family_of_target
from agentforge_kernels.verify.case_parts import (
    INSTRUCTIONS,
    POINTERS,
    bytes_of,
    check_equal,
    draw,
    residual_of,
    run_time_arguments,
    shipped,
    tensor_of,
    trits_of,
)
from agentforge_kernels.verify.cases import Arguments, KernelCase, Work
from agentforge_kernels.verify.targets import ALL


def check_matmul(before: Arguments, after: Arguments) -> None:
    """Outputs equal the reference, bit for bit."""
    q = bytes_of(before, "q", torch.int8)
    expected = reference.linear(
        q,
        tensor_of(before, "activation_scale"),
        trits_of(before),
        tensor_of(before, "weight_scale"),
        residual_of(before),
    )
    check_equal("output", tensor_of(after, "output"), expected)


def check_totals(before: Arguments, after: Arguments) -> None:
    """Sums of codes times activations, on top of what was there."""
    codes = trits_of(before).long() + 1
    expected = (bytes_of(before, "q", torch.int8).long() @ codes.T)[0] + tensor_of(
        before, "totals"
    ).long()
    check_equal("totals", tensor_of(after, "totals").long(), expected)


def check_finished(before: Arguments, after: Arguments) -> None:
    """Outputs from sums of codes times activations."""
    total = tensor_of(before, "totals").long() - tensor_of(before, "activation_sum").long()
    expected = reference.epilogue(
        total[None],
        tensor_of(before, "activation_scale"),
        tensor_of(before, "weight_scale"),
        residual_of(before),
    )
    check_equal("output", tensor_of(after, "output"), expected)


def _matmul_build(
    names: tuple[str, ...],
    words: bool,
    tokens: int,
    rows: int,
    columns: int,
    ragged: bool,
) -> Callable[[int], Arguments]:
    """A launch with the arguments ``names``; ragged ones have a scale a row and a residual."""

    def build(seed: int) -> Arguments:
        arguments = draw(seed, tokens, rows, columns, ragged, ragged)
        if words:
            arguments["q"] = tensor_of(arguments, "q").view(torch.int32)
            arguments["codes"] = tensor_of(arguments, "codes").view(torch.int32)
        arguments["totals"] = torch.zeros(rows, dtype=torch.int32)
        return {name: arguments[name] for name in names}

    return build


def _gemv_case(config: GemvConfig, even: bool, targets: tuple[str, ...]) -> KernelCase:
    block_rows = config.block_rows * config.rows_per_thread
    if even:
        rows, columns = 2 * block_rows, 16 * config.block_words * max(2, config.split)
    else:
        # Of four shares of split columns the third is not full and the last is empty.
        rows = block_rows + 3
        columns = 16 * config.block_words + 300 + 2048 * (config.split > 1)
    constexprs: dict[str, object] = {
        "BLOCK_ROWS": config.block_rows,
        "BLOCK_WORDS": config.block_words,
        "ROWS_PER_THREAD": config.rows_per_thread,
        "EVEN": even,
    }
    split = config.split > 1
    kernel = gemv.ternary_gemv_split if split else gemv.ternary_gemv
    constexprs |= {"SPLIT": config.split} if split else {"SCALE_PER_ROW": not even}
    names = run_time_arguments(kernel, constexprs)
    return KernelCase(
        name=f"gemv{'_split' if split else ''}{'' if even else '_masked'}_{config.block_rows}x"
        f"{config.block_words}_r{config.rows_per_thread}_w{config.num_warps}",
        kernel=kernel,
        constexprs=constexprs,
        family_constexprs=INSTRUCTIONS,
        aligned=POINTERS & set(names),
        grid=(-(-rows // block_rows), config.split, 1),
        build=_matmul_build(names, True, 1, rows, columns, not even),
        check=check_totals if split else check_matmul,
        targets=targets,
        work=Work(
            block_rows * config.block_words * 16,
            loaded_bytes_per_item=0.25 + 1 / config.rows_per_thread,
        ),
        role="gemv" if even else "masked_gemv",
        num_warps=config.num_warps,
    )


def _gemv_cases() -> Iterator[KernelCase]:
    for config, targets in shipped(GemvConfig):
        for even in (True, False):
            yield _gemv_case(config, even, targets)
    rows = launch.FINISHED_ROWS + 5
    constexprs: dict[str, object] = {"BLOCK_ROWS": launch.FINISHED_ROWS, "SCALE_PER_ROW": True}

    def build(seed: int) -> Arguments:
        arguments = draw(seed, 1, rows, 1, True, True)
        largest = 2**30 if seed % 3 == 1 else 2**20
        generator = torch.Generator().manual_seed(seed)
        totals = torch.randint(-largest, largest, (rows,), generator=generator)
        arguments["totals"] = totals.to(torch.int32)
        return {name: arguments[name] for name in run_time_arguments(gemv.finish_split, constexprs)}

    yield KernelCase(
        name="gemv_finish_split",
        kernel=gemv.finish_split,
        constexprs=constexprs,
        aligned=POINTERS & set(gemv.finish_split.arg_names),
        grid=(2, 1, 1),
        build=build,
        check=check_finished,
        targets=ALL,
        work=Work(launch.FINISHED_ROWS, 12.0, "row"),
        num_warps=launch.FINISHED_ROWS // 32,
    )


def _small_batch_cases() -> Iterator[KernelCase]:
    for config, targets in shipped(SmallBatchConfig):
        for tokens, even in ((2, True), (3, False), (4, False), (8, False)):
            held = tuple(
                name
                for name in targets
                if tokens <= launch.SMALL_BATCH_TOKENS[family_of_target(name)]
            )
            if not held:
                continue
            if even:
                rows, columns = 2 * config.block_rows, 32 * config.block_words
            else:
                rows, columns = config.block_rows + 3, 16 * config.block_words + 300
            constexprs: dict[str, object] = {
                "TOKENS": tokens,
                "BLOCK_ROWS": config.block_rows,
                "BLOCK_WORDS": config.block_words,
                "EVEN": even,
                "SCALE_PER_ROW": not even,
            }
            names = run_time_arguments(small_batch.ternary_small_batch, constexprs)
            yield KernelCase(
                name=f"small_batch_{tokens}{'' if even else '_masked'}_{config.block_rows}x"
                f"{config.block_words}_w{config.num_warps}",
                kernel=small_batch.ternary_small_batch,
                constexprs=constexprs,
                family_constexprs=INSTRUCTIONS,
                aligned=POINTERS & set(names),
                grid=(2, 1, 1),
                build=_matmul_build(names, True, tokens, rows, columns, not even),
                check=check_matmul,
                targets=held,
                work=Work(config.block_rows * config.block_words * 16),
                num_warps=config.num_warps,
            )


def _gemm_cases() -> Iterator[KernelCase]:
    for config, targets in shipped(GemmConfig):
        float32 = targets == ("sm_75",)
        kernel = gemm.ternary_gemm_float32 if float32 else gemm.ternary_gemm_int8
        constexprs: dict[str, object] = {
            "BLOCK_TOKENS": config.block_tokens,
            "BLOCK_ROWS": config.block_rows,
            "SCALE_PER_ROW": True,
        }
        constexprs |= {"BLOCK_COLUMNS": config.block_columns} if float32 else {}
        names = run_time_arguments(kernel, constexprs)
        tokens, rows, columns = config.block_tokens // 2 + 3, config.block_rows + 9, 300
        if config.block_tokens == 16:
            tokens = 20
        if float32:
            # 512 or 1,024 multiply-adds a thread and step, which the PTX executor takes one by one:
            # two groups of columns for the smaller tile, one tile and group for the larger.
            rows, columns = (rows, 140) if config.block_rows == 64 else (100, 100)
        yield KernelCase(
            name=f"gemm{'_float32' if float32 else ''}_{config.block_tokens}x{config.block_rows}"
            f"_w{config.num_warps}_s{config.num_stages}",
            kernel=kernel,
            constexprs=constexprs,
            family_constexprs={} if float32 else INSTRUCTIONS,
            aligned=POINTERS & set(names),
            grid=(-(-tokens // config.block_tokens), -(-rows // config.block_rows), 1),
            build=_matmul_build(names, False, tokens, rows, columns, True),
            check=check_matmul,
            targets=targets,
            work=Work(config.block_rows * config.block_columns),
            role="gemm",
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )


CASES: tuple[KernelCase, ...] = (*_gemv_cases(), *_small_batch_cases(), *_gemm_cases())
