"""The verb ``bench``: a packed model timed against torch on this machine."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from agentforge_kernels.native import extension, unavailable_reason

from agentforge.errors import PreflightError
from agentforge.formats.packed import read_packed
from agentforge.hardware import cpu_name
from agentforge.run.atomic import disk_error
from agentforge.runtime.bench import BenchResult, bench_model
from agentforge.runtime.states import CacheType
from agentforge.tables import text_table


def bench(
    folder: Path,
    *,
    threads: Sequence[int],
    contexts: Sequence[int],
    rounds: int,
    names: Sequence[str],
    cache: CacheType,
    memory: bool,
    as_json: bool,
    csv_file: Path | None,
) -> str:
    """Time a model; the table or JSON to print.

    Args:
        folder: The packed directory.
        threads: Numbers of threads.
        contexts: Context lengths.
        rounds: Repetitions.
        names: Variants (`agentforge.runtime.bench_variants`).
        cache: How the native executor keeps keys and values.
        memory: Measure the memory of each variant too.
        as_json: JSON instead of tables.
        csv_file: Where to write the decode times too.

    Raises:
        CheckpointError: The directory is missing or damaged.
        PreflightError: The native extension was not built, or the CSV file cannot be written.
    """
    if extension is None:
        raise PreflightError(
            f"bench compares with the native executor: {unavailable_reason()}",
            remedy="install with a C++ compiler",
        )
    found = bench_model(
        read_packed(folder),
        threads=threads,
        contexts=contexts,
        rounds=rounds,
        names=names,
        cache=cache,
        machine=cpu_name(),
        memory=memory,
    )
    if csv_file is not None:
        _write_csv(csv_file, found)
    if not as_json:
        return _tables(found)
    answer = asdict(found)
    for layer, told in zip(found.layers, answer["layers"], strict=True):
        told["gain"] = layer.gain
    return json.dumps(answer, indent=1)


def _tables(found: BenchResult) -> str:
    parts = [
        f"{found.machine}; head {found.head}; keys and values in {found.cache}",
        text_table(
            ("variant", "threads", "context", "us a token", "10 %", "90 %", "tokens/s"),
            [
                (v.name, v.threads, v.context,
                 *(round(t) for t in (v.us_per_token, v.low, v.high)), round(1e6 / v.us_per_token))
                for v in found.variants
            ],
        ),
        text_table(
            ("prefill", "threads", "tokens", "ms to the first token"),
            [(p.name, p.threads, p.tokens, round(p.ms, 1)) for p in found.prefills],
        ),
        text_table(
            ("threads", "context", "MB a token", "limit, us", "share of the limit"),
            [
                (x.threads, x.context, round(x.bytes / 1e6, 2), round(x.limit_us),
                 f"{100 * x.share:.0f} %")
                for x in found.limits
            ],
        ),
        text_table(
            ("matrix", "kernel", "shape", "zeros", "zero tiles", "zero inputs", "us", "dense us",
             "gain"),
            [
                (_short(layer.name), layer.form, f"{layer.rows}x{layer.columns}",
                 _share(layer.zero_share), _share(layer.zero_tiles), _share(layer.zero_inputs),
                 f"{layer.us:.2f}", f"{layer.dense_us:.2f}", f"{layer.gain:.2f}x")
                for layer in found.layers
            ],
        ),
        "\n".join(
            f"native against {name}, {threads} thread{'s' if threads > 1 else ''}: {ratio:.1f}x"
            for threads, ratios in found.speedup_by_threads.items()
            for name, ratio in ratios.items()
        ),
        "\n".join(
            [f"weights of {n}: {size / 1e6:.2f} MB" for n, size in found.weight_bytes.items()]
            + [f"peak memory of {n}: {s / 1e6:.0f} MB" for n, s in found.peak_bytes.items()]
            + [f"energy of {n}: {1000 * j:.2f} mJ a token"
               for n, j in found.joules_per_token.items()]
            + ([] if found.joules_per_token else ["energy: this machine does not tell"])
            + [f"{name} could not be run: {why}" for name, why in found.missing.items()]
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _short(name: str) -> str:
    """Name of a product that may be several matrices in one."""
    first, *others = name.split("+")
    return f"{first} and {len(others)} more" if others else first


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _write_csv(path: Path, found: BenchResult) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("name", "threads", "context", "us_per_token", "low", "high"))
            writer.writerows(
                (v.name, v.threads, v.context, v.us_per_token, v.low, v.high)
                for v in found.variants
            )
    except OSError as error:
        raise disk_error(error, path) from None
