"""A token of a random model of any preset, by every way to run it.

python -m bench.bench_decode --preset full --data-dir DATA      # the tables of `bench MODEL`
pytest bench/bench_decode.py                                    # demo shapes, pytest-benchmark
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentforge import bench_verb
from agentforge.config.load import load_config
from agentforge.formats.packed import PackedModel, read_packed
from agentforge.runtime.bench_variants import (
    ALL,
    NATIVE,
    NATIVE_BF16,
    VARIANTS,
    native_executor,
    native_step,
    torch_model,
    torch_step,
)
from agentforge.runtime.latency import Step
from bench.random_model import write_random_model


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    """Random weights in the shapes of the demo."""
    folder = tmp_path_factory.mktemp("bench") / "model"
    write_random_model(folder, load_config(preset="demo").config)
    return read_packed(folder)


@pytest.mark.parametrize("name", VARIANTS)
def test_token(benchmark: Any, packed: PackedModel, name: str) -> None:
    """pytest-benchmark: one token in the middle of a context."""
    if name in (NATIVE, NATIVE_BF16):
        start = partial(native_step, packed, native_executor(packed, name, "float32"), 32)
    else:
        start = partial(torch_step, torch_model(packed, name), packed, 32)

    def setup() -> tuple[tuple[Step], dict[str, Any]]:
        return (start(),), {}

    benchmark.pedantic(lambda step: step(5, 32), setup=setup, rounds=30, warmup_rounds=3)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="full")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--context", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pruned", type=float, default=0.0, help="Share of zero tiles.")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sets = [f"data.data_dir={given.data_dir}"] if given.data_dir else []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        config = load_config(preset=given.preset, sets=sets).config
        write_random_model(model, config, pruned=given.pruned)
        text = bench_verb.bench(
            model,
            threads=given.threads or (1, 2),
            contexts=given.context or (10, 64, 256, 512),
            rounds=given.rounds,
            names=ALL if given.compile else VARIANTS,
            cache="float32",
            memory=True,
            as_json=given.json,
            csv_file=None,
        )
    print(text)


if __name__ == "__main__":
    main()
