"""``python -m bench.gpu [--quick] [--op OPERATION] [--output FILE]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from agentforge_kernels.triton.configs import CONFIG_TYPES

from bench.gpu.gpu import describe, measure_limits, time_cold, time_in_graph
from bench.gpu.kernels import Row, cases, line, measure, write

NO_DEVICE = 3
RESULTS = Path(__file__).parents[1] / "results" / "gpu_kernels.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns its exit code: 0, or 3 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two shapes, one share of zeros")
    parser.add_argument("--op", action="append", choices=tuple(CONFIG_TYPES), help="only this one")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"instead of {RESULTS}")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA or HIP device is visible to torch: no GPU kernel was timed", file=sys.stderr)
        return NO_DEVICE
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = describe(device)
    limits = measure_limits(device, time_cold)
    print(f"{gpu.name} ({gpu.capability}, {gpu.family} configurations), {gpu.versions}")
    print(
        f"limits: {limits.bytes_per_second / 1e9:.0f} GB/s, "
        f"{2 * limits.products_per_second / 1e12:.1f} int8 TOPS"
    )
    rows: list[Row] = []
    for case in cases(gpu.family, chosen.quick, chosen.op or tuple(CONFIG_TYPES)):
        rows.append(measure(case, device, gpu, limits, time_cold, time_in_graph))
        print(line(rows[-1]), flush=True)
    write(rows, chosen.output)
    print(f"{len(rows)} rows in {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
