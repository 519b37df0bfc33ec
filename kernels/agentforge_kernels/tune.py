"""``python -m agentforge_kernels.tune``: time configurations on the GPU of this machine.

For every operation and shape asked for, each candidate runs once and must equal the checked-in
configuration bit for bit; then it is timed (median, second-level cache emptied between runs). The
fastest go to the user's file, which later processes read before the checked-in table:
``AGENTFORGE_KERNELS_CONFIGS``, else ``agentforge/kernels.json`` under the XDG cache directory.
Lines of other shapes and families already there are kept.

Exit code 0: done; 1: nothing could be timed; 2: usage; 3: no GPU that the Triton kernels serve.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from agentforge_kernels.errors import BackendUnavailableError, KernelInputError

if TYPE_CHECKING:
    from agentforge_kernels.triton.configs import Config, Key
    from agentforge_kernels.triton.devices import Family
    from agentforge_kernels.triton.problems import Problem

NO_DEVICE = 3
Timer = Callable[[Callable[[], object]], float]
"""Microseconds of a call."""

SHAPES = ((512, 512), (1792, 512), (512, 896), (2560, 2560), (6912, 2560), (2560, 6912))
"""Rows and columns of the default run: our 25M model and BitNet b1.58 2B4T."""
HEAD_SHAPES = ((32_000, 512), (128_256, 2560))
"""The same for the int8 language-model head."""
TOKENS = (1, 2, 4, 8, 16, 64, 512)
SMALLEST_GAIN = 0.02
"""A candidate must be this much faster than what is checked in; less is noise."""


@dataclass(frozen=True, slots=True)
class Timed:
    """What came of one operation and shape.

    Attributes:
        operation: Key of ``configs.CONFIG_TYPES``.
        rows: Rows (1: the operation has none).
        columns: Columns.
        tokens: Tokens.
        key: Of the user's file.
        before: The configuration in use until now, and its microseconds.
        best: The fastest, and its microseconds; ``before`` unless something is faster by
            :data:`SMALLEST_GAIN`.
        refused: Candidates that did not run, or differed, and why.
    """

    operation: str
    rows: int
    columns: int
    tokens: int
    key: Key
    before: tuple[Config, float]
    best: tuple[Config, float]
    refused: tuple[str, ...]


def default_timer(call: Callable[[], object]) -> float:
    """Median microseconds by Triton's own benchmark, with cold second-level cache."""
    from triton.testing import do_bench

    return 1000.0 * float(do_bench(call, warmup=10, rep=50, return_mode="median"))


def tune(
    operation: str,
    rows: int,
    columns: int,
    tokens: int,
    device: torch.device,
    family: Family,
    timer: Timer = default_timer,
    tried: Sequence[Config] | None = None,
) -> Timed:
    """Time every candidate of one operation at one shape.

    Args:
        operation: Key of ``configs.CONFIG_TYPES``.
        rows: Rows of the matrix.
        columns: Columns.
        tokens: Tokens.
        device: Where.
        family: Of the device.
        timer: Microseconds of a call.
        tried: Candidates; those of ``candidates`` by default.

    Raises:
        KernelInputError: Tokens or columns with which another kernel answers.
    """
    from agentforge_kernels.triton import configs
    from agentforge_kernels.triton.candidates import candidates
    from agentforge_kernels.triton.problems import make_problem

    # Without the norm results are equal bit for bit; with it the time is that of a model's layer.
    exact, timed = (
        make_problem(operation, rows, columns, tokens, device, family, norm=norm)
        for norm in (False, operation in ("quantize", "fused"))
    )
    key = _key_of(exact)
    before = configs.lookup(key[0], key[1], *key[2])
    expected = exact.run()
    times = {before: timer(timed.run)}
    refused = []
    for config in candidates(operation, family, tokens) if tried is None else tried:
        if config in times:
            continue
        with configs.use(operation, config):
            try:
                seen = exact.run()
            # Whatever a compiler or driver raises, the next candidate may still run.
            except Exception as error:
                refused.append(f"{config}: {type(error).__name__}: {_first_line(error)}")
                continue
            if not all(map(torch.equal, seen, expected)):
                refused.append(f"{config}: another result than {before}")
                continue
            times[config] = timer(timed.run)
    fastest = min(times, key=lambda config: times[config])
    if times[fastest] > times[before] * (1.0 - SMALLEST_GAIN):
        fastest = before
    return Timed(
        operation,
        exact.rows,
        columns,
        tokens,
        key,
        (before, times[before]),
        (fastest, times[fastest]),
        tuple(refused),
    )


def _key_of(problem: Problem) -> Key:
    """Under which key a call looks its configuration up: asked of the call itself."""
    from agentforge_kernels.triton import configs
    from agentforge_kernels.triton.config_table import TABLE

    some = next(entry.config for entry in TABLE if entry.operation == problem.operation)
    with configs.use(problem.operation, some) as asked:
        problem.run()
    if not asked:
        raise KernelInputError(
            "tokens", problem.tokens, f"numbers with which {problem.operation} answers"
        )
    return asked[0]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def save(results: Iterable[Timed], path: Path, device_name: str) -> None:
    """Add the fastest configurations to a user's file; what is there for other keys stays.

    Raises:
        OSError: The file cannot be read or written.
        ValueError: The file that is there holds something else than configurations.
    """
    from agentforge_kernels.triton.user_configs import read_user_configs, write_user_configs

    table = read_user_configs(path) if path.exists() else {}
    table.update({timed.key: timed.best[0] for timed in results})
    write_user_configs(path, table, device_name)


def table_lines(results: Sequence[Timed]) -> list[str]:
    """The results as lines of text."""
    heads = ("operation", "rows x columns", "tokens", "before us", "best us", "gain", "best")
    cells = [
        (
            timed.operation,
            f"{timed.rows} x {timed.columns}",
            str(timed.tokens),
            f"{timed.before[1]:.1f}",
            f"{timed.best[1]:.1f}",
            f"{timed.before[1] / timed.best[1]:.2f}x",
            "as before" if timed.best[0] == timed.before[0] else _short(timed.best[0]),
        )
        for timed in results
    ]
    widths = [max(len(row[i]) for row in (heads, *cells)) for i in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *cells)
    ]


def _short(config: Config) -> str:
    values = (f"{item.name}={getattr(config, item.name)}" for item in fields(config))
    return f"{type(config).__name__}({', '.join(values)})"


def main(
    arguments: Sequence[str] | None = None,
    *,
    timer: Timer = default_timer,
    machine: tuple[torch.device, Family, str] | None = None,
    tried: Sequence[Config] | None = None,
) -> int:
    """Run the command; returns its exit code.

    Args:
        arguments: Instead of the command line's.
        timer: Microseconds of a call (tests give their own).
        machine: Device, family and name instead of the machine's GPU (tests).
        tried: Candidates instead of all (tests).
    """
    chosen = _parser().parse_args(arguments)
    try:
        device, family, name = machine or _gpu()
    except BackendUnavailableError as error:
        _say(f"nothing to tune: {error}", sys.stderr)
        return NO_DEVICE
    from agentforge_kernels.triton.user_configs import user_config_path

    path = Path(chosen.output) if chosen.output else user_config_path()
    _say(f"tuning for {name} ({family}); the file is {path}")
    results = []
    for operation, rows, columns, tokens in _work(chosen, family):
        timed = tune(operation, rows, columns, tokens, device, family, timer, tried)
        results.append(timed)
        for line in timed.refused if chosen.verbose else ():
            _say(f"  skipped {line}")
        _say("  ".join(table_lines([timed])[1].split()))
    if not results:
        _say("none of these operations runs with these shapes and tokens on this GPU", sys.stderr)
        return 1
    try:
        save(results, path, name)
    except (OSError, ValueError) as error:
        _say(f"{path} was not written: {error}", sys.stderr)
        return 1
    _say("\n" + "\n".join(table_lines(results)))
    _say(f"\n{len(results)} configurations in {path}, read before the checked-in ones from now on")
    return 0


def _work(chosen: argparse.Namespace, family: Family) -> Iterator[tuple[str, int, int, int]]:
    """Operation, rows, columns and tokens of everything asked for that the GPU runs."""
    from agentforge_kernels.triton.fused import MOST_FUSED_COLUMNS
    from agentforge_kernels.triton.problems import tokens_of

    for operation in chosen.op or OPERATIONS:
        shapes = chosen.shape or (HEAD_SHAPES if operation.startswith("int8") else SHAPES)
        fewest, most = tokens_of(operation, family)
        seen = set()
        for (rows, columns), tokens in (
            (shape, tokens) for shape in shapes for tokens in chosen.tokens or TOKENS
        ):
            if tokens < fewest or (most is not None and tokens > most):
                continue
            if operation == "fused" and columns > MOST_FUSED_COLUMNS:
                continue
            # Operations without rows, or whose tokens run one by one, would be timed twice.
            if operation == "activation_sparse" and tokens > 1:
                continue
            size = (1 if operation == "quantize" else rows, columns, tokens)
            if size not in seen:
                seen.add(size)
                yield operation, *size


OPERATIONS = (
    "gemv",
    "small_batch",
    "gemm",
    "quantize",
    "fused",
    "block_sparse",
    "block_sparse_gemm",
    "activation_sparse",
    "int8_gemv",
    "int8_gemm",
)
"""Keys of ``configs.CONFIG_TYPES``, here because ``--help`` needs no Triton."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agentforge_kernels.tune",
        description="Time kernel configurations on this machine's GPU and keep the fastest.",
        epilog="Without options: all operations at the shapes of our 25M model and of BitNet 2B; "
        "every configuration is compiled once, which takes minutes.",
    )
    parser.add_argument(
        "--op", action="append", choices=OPERATIONS, help="only this operation (repeatable)"
    )
    parser.add_argument(
        "--shape",
        action="append",
        type=_shape,
        metavar="ROWSxCOLUMNS",
        help="shape of the weights, such as 2560x6912 (repeatable)",
    )
    parser.add_argument(
        "--tokens", action="append", type=_positive, metavar="N", help="tokens (repeatable)"
    )
    parser.add_argument("--output", metavar="FILE", help="instead of the user's file")
    parser.add_argument(
        "--verbose", action="store_true", help="say which candidates were skipped and why"
    )
    return parser


def _shape(text: str) -> tuple[int, int]:
    rows, separator, columns = text.partition("x")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text}; expected ROWSxCOLUMNS, such as 2560x6912")
    return _positive(rows), _positive(columns)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number above zero")
    return int(text)


def _gpu() -> tuple[torch.device, Family, str]:
    """The current GPU.

    Raises:
        BackendUnavailableError: There is none, or none that the kernels serve.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailableError("no CUDA or HIP device is visible to torch")
    try:
        from agentforge_kernels.triton.devices import family_of_device
    except ImportError as error:
        raise BackendUnavailableError(f"Triton cannot be imported: {error}") from None
    device = torch.device("cuda", torch.cuda.current_device())
    return device, family_of_device(device), torch.cuda.get_device_name(device)


def _say(text: str, stream: object = None) -> None:
    print(text, file=stream or sys.stdout, flush=True)  # type: ignore[arg-type]  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
