"""Static reports for people (a table) and for programs (JSON)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from agentforge_kernels.verify.report import StaticReport


def as_json(report: StaticReport) -> dict[str, object]:
    """A report as plain numbers and names, the modelled times included."""
    fields = dataclasses.asdict(report)
    fields["instructions_per_item"] = report.instructions_per_item
    fields["modelled"] = [
        {**dataclasses.asdict(time), "us": time.us} for time in report.modelled_times()
    ]
    return fields


def table(reports: Sequence[StaticReport]) -> str:
    """The reports as lines of text."""
    rows = [COLUMNS, *(_cells(report) for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", NOTE])


COLUMNS = (
    "kernel",
    "target",
    "regs",
    "spill",
    "smem",
    "occ",
    "loop",
    "loads (bits)",
    "dot4",
    "int8 MMA",
    "FMA",
    "instr/item",
    "modelled us",
)
NOTE = """\
regs: registers a thread; spill, smem: bytes; occ: share of the warps a multiprocessor can hold;
loop: instructions of the hot loop ("-": no loop, the counts are of the whole kernel); loads:
from device memory in it; instr/item: instructions a weight (or element), all threads together.
Modelled us: a model, not a measurement: the longest of memory, integer pipe, loads and matrix
units for the largest of the product's shapes (6912 x 2560 weights; a kernel without a loop over
columns: 1792 x 512), with the memory time's share of it. --json has the other shapes."""


def _cells(report: StaticReport) -> tuple[str, ...]:
    work = report.work
    loads = " ".join(f"{count}x{8 * width}" for width, count in work.loads.items())
    per_item = report.instructions_per_item
    time = max(report.modelled_times(), key=lambda time: time.rows * time.columns, default=None)
    unit = "" if report.item in ("", "weight") else f" per {report.item}"
    return (
        report.case,
        report.target,
        str(report.registers),
        str(report.spill_bytes),
        str(report.shared_bytes),
        f"{report.occupancy.share:.0%}",
        "-" if report.loop is None else str(work.instructions),
        loads or "-",
        str(work.count("dot4")),
        str(work.count("int8_matrix")),
        str(work.count("float_multiply_add")),
        "-" if per_item is None else f"{per_item:.2f}{unit}",
        "-" if time is None else f"{time.device} {time.us:.1f} ({time.roofline_share:.0%})",
    )
