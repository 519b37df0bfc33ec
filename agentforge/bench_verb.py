"""The verb ``bench``: a packed model timed against torch on this machine."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from agentforge.errors import PreflightError
from agentforge.formats.packed import read_packed
from agentforge.run.atomic import disk_error
from agentforge.runtime.bench import BenchResult, bench_model
from agentforge.tables import text_table


def bench(
    folder: Path,
    *,
    threads: Sequence[int],
    contexts: Sequence[int],
    rounds: int,
    as_json: bool,
    csv_file: Path | None,
) -> str:
    """Time a model; the table or JSON to print.

    Args:
        folder: The packed directory.
        threads: Numbers of threads.
        contexts: Context lengths.
        rounds: Repetitions.
        as_json: JSON instead of tables.
        csv_file: Where to write the decode times too.

    Raises:
        CheckpointError: The directory is missing or damaged.
        PreflightError: The native extension was not built, or the CSV file cannot be written.
    """
    packed = read_packed(folder)
    try:
        found = bench_model(packed, threads=threads, contexts=contexts, rounds=rounds)
    except RuntimeError as error:
        raise PreflightError(str(error), remedy="install with a C++ compiler") from None
    if csv_file is not None:
        _write_csv(csv_file, found)
    return json.dumps(asdict(found), indent=1) if as_json else _tables(found)


def _tables(found: BenchResult) -> str:
    decode = text_table(
        ("variant", "threads", "context", "us a token", "10 %", "90 %", "tokens/s"),
        [
            (v.name, v.threads, v.context, *(round(t) for t in (v.us_per_token, v.low, v.high)),
             round(1e6 / v.us_per_token))
            for v in found.variants
        ],
    )  # fmt: skip
    prefill = text_table(
        ("prefill", "threads", "tokens", "ms"),
        [(p.name, p.threads, p.tokens, round(p.ms, 1)) for p in found.prefills],
    )
    faster = "\n".join(f"native against {n}: {v:.1f}x" for n, v in found.speedup.items())
    forms = ", ".join(f"{n} {form}" for form, n in Counter(found.forms.values()).items())
    weights = f"weights in memory {found.weight_bytes / 1e6:.2f} MB; products: {forms}"
    return f"{decode}\n\n{prefill}\n\n{faster}\n{weights}"


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
