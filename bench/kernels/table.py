"""Tables of results: for the terminal and for the README, both from the rows of the CSV file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.kernels import cases
from bench.kernels.process import OURS
from bench.kernels.results import LIMITS, Row

BEGIN, END = "<!-- kernels-table -->", "<!-- /kernels-table -->"
MISSING = "missing"
ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Results:
    """Rows by case and contestant."""

    rows: Sequence[Row]

    def find(self, op: str, n: int, k: int, m: int, threads: int, name: str = OURS) -> Row | None:
        """One row."""
        wanted = (op, n, k, m, threads)
        return next((row for row in self.rows if row.case == wanted and row.name == name), None)

    def ratio(self, ours: Row, name: str) -> str:
        """The peer's time over ours; ``missing`` when it was not installed."""
        row = self.find(*ours.case, name)
        if row is None:
            return ABSENT
        return MISSING if row.ratio is None else f"{row.ratio:.2f}x"

    def ours(self, keep: Callable[[Row], bool]) -> list[Row]:
        """Our rows of a kind, in the order measured."""
        return [row for row in self.rows if row.name == OURS and keep(row)]

    def names(self, keep: Callable[[Row], bool], own: bool = False) -> list[str]:
        """Peers of our rows of a kind, in the order measured: others', or other forms of ours."""
        wanted = {row.case for row in self.ours(keep)}
        seen = [row for row in self.rows if row.case in wanted and row.name not in (OURS, *LIMITS)]
        return list(dict.fromkeys(row.name for row in seen if (row.backend == "native") == own))


def microseconds(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return ABSENT
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def share(value: float | None) -> str:
    """Per cent."""
    return ABSENT if value is None else f"{100 * value:.0f} %"


def grid(header: Sequence[str], lines: Sequence[Sequence[str]], markdown: bool) -> str:
    """A table, columns aligned to the right but for the first."""
    widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]
    if markdown:
        rule = ["---"] + ["---:"] * (len(header) - 1)
        return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
    rows = []
    for line in (header, *lines):
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        rows.append("  ".join(cells))
    return "\n".join(rows)


def dense_table(results: Results, keep: Callable[[Row], bool], own: bool = False) -> str:
    """Our time, its share of the limit, and every peer's time over ours.

    ``own``: other forms of ours (levels, from Python) instead of peers, where they were measured.
    """
    names = results.names(keep, own)
    ours = results.ours(keep)
    if own:
        ours = [row for row in ours if any(results.find(*row.case, name) for name in names)]
    lines = []
    for row in ours:
        what = [f"{row.n}x{row.k}", _batch(row)]
        figures = [microseconds(row.median_us), share(row.share_of_limit)]
        lines.append([*what, *figures, *(results.ratio(row, name) for name in names)])
    return grid(["out x in", "batch", "ours, us", "of limit", *names], lines, markdown=False)


def sparse_table(results: Results, op: str) -> str:
    """Time of our dense kernel over that of the sparse one, by share of zeros."""
    ours = results.ours(lambda row: row.op.startswith(op))
    shapes = list(dict.fromkeys((row.n, row.k) for row in ours))
    zeros = sorted({int(row.op.rsplit("_", 1)[1]) for row in ours})
    lines = []
    for per_cent in zeros:
        line = [f"{per_cent} %"]
        for n, k in shapes:
            row = results.find(f"{op}_{per_cent}", n, k, 1, 1)
            line += (
                [microseconds(row.median_us), results.ratio(row, "native dense")]
                if row
                else [ABSENT, ABSENT]
            )
        lines.append(line)
    header = ["zeros"]
    for n, k in shapes:
        header += [f"{n}x{k}, us", "dense"]
    return grid(header, lines, markdown=False)


def _batch(row: Row) -> str:
    return f"{row.m} cold" if row.op == cases.COLD else str(row.m)


def _is_dense(threads: int) -> Callable[[Row], bool]:
    return lambda row: row.op in (cases.DENSE, cases.COLD) and row.threads == threads


def text(rows: Sequence[Row]) -> str:
    """Everything, for the terminal."""
    results = Results(rows)
    parts = [rows[0].machine, f"kernels: {rows[0].isa}; {versions(rows)}"]
    parts += missing(rows)
    parts.append("")
    for threads in sorted({row.threads for row in rows}):
        parts += [f"Dense, {threads} thread(s): time of the peer over ours"]
        parts += [dense_table(results, _is_dense(threads)), ""]
        if results.names(_is_dense(threads), own=True):
            parts += [f"Other forms of ours over ours, {threads} thread(s)"]
            parts += [dense_table(results, _is_dense(threads), own=True), ""]
    for op, title in (
        (cases.BLOCK_SPARSE, "Block-sparse: our dense kernel over the sparse one, batch 1"),
        (cases.ACTIVATION_SPARSE, "Activation-sparse: likewise"),
    ):
        if results.ours(lambda row, op=op: row.op.startswith(op)):  # type: ignore[misc]
            parts += [title, sparse_table(results, op), ""]
    for op, title in ((cases.HEAD, "int8 head"), (cases.QUANTIZE, "Quantising activations")):
        for threads in sorted({row.threads for row in rows if row.op == op}):
            keep = _of(op, threads)
            parts += [f"{title}, {threads} thread(s)", dense_table(results, keep), ""]
    return "\n".join(parts)


def _of(op: str, threads: int) -> Callable[[Row], bool]:
    return lambda row: row.op == op and row.threads == threads


def versions(rows: Sequence[Row]) -> str:
    """Versions of everybody's software, once each."""
    return "; ".join(
        dict.fromkeys(row.versions for row in rows if row.versions and row.median_us is not None)
    )


def missing(rows: Sequence[Row]) -> list[str]:
    """A line for every peer that could not take part."""
    return list(
        dict.fromkeys(
            f"MISSING PEER {row.name}: {row.versions}" for row in rows if row.median_us is None
        )
    )


README_CASES = ((cases.DENSE, 1), (cases.COLD, 1), (cases.DENSE, 16), (cases.DENSE, 256))
README_SHAPES = {
    1: ((512, 512), (1536, 512), (2560, 2560), (6912, 2560)),
    2: ((2560, 2560), (6912, 2560)),
}
"""By threads: with two, small matrices are not split."""
README_PEERS = {
    "ggml TQ2_0": "ggml TQ2_0",
    "ggml Q4_0": "ggml Q4_0",
    "torch fp32": "torch fp32",
    "torch bf16": "torch bf16",
    "torch int8pack": "torch int8",
}
README_ZEROS = (20, 50, 75, 90)


def readme(rows: Sequence[Row]) -> str:
    """What stands between the markers of the README, markers not included."""
    results = Results(rows)
    parts = [
        f"Measured on: {rows[0].machine}; kernels: {rows[0].isa}; {versions(rows)}.",
        *missing(rows),
        "Times are medians, without Python: the call is repeated inside the extension."
        + _from_python(results),
        "`of limit`: the machine's limit (reading the packed weights, or multiplying int8 in "
        "registers, whichever is slower, measured in the same run) over our time. `cold`: many "
        "matrices used in turn, so that none is in a near cache. Ours and ggml's times contain the "
        "quantisation of activations. Other columns: time of the peer over ours.",
    ]
    for threads in sorted({row.threads for row in rows}):
        table = _readme_table(results, threads)
        if table:
            parts += [f"{'One thread' if threads == 1 else f'{threads} threads'}:", table]
    parts += _readme_sparse(results)
    return "\n\n".join(parts)


def _readme_table(results: Results, threads: int) -> str:
    lines = []
    for n, k in README_SHAPES.get(threads, ()):
        for op, m in README_CASES:
            row = results.find(op, n, k, m, threads)
            if row is None:
                continue
            figures = [microseconds(row.median_us), share(row.share_of_limit)]
            ratios = [results.ratio(row, name) for name in README_PEERS]
            lines.append([f"{n}x{k}", _batch(row), *figures, *ratios])
    header = ["out x in", "batch", "ours, us", "of limit", *README_PEERS.values()]
    return grid(header, lines, markdown=True) if lines else ""


def _readme_sparse(results: Results) -> list[str]:
    """Gain of the sparse kernels over our dense one."""
    lines = []
    for op, title in (
        (cases.BLOCK_SPARSE, "zero blocks of 64 x 16 weights"),
        (cases.ACTIVATION_SPARSE, "zero activations"),
    ):
        for n, k in cases.SPARSE_SHAPES:
            found = [results.find(f"{op}_{zeros}", n, k, 1, 1) for zeros in README_ZEROS]
            if any(found):
                gains = [results.ratio(row, "native dense") if row else ABSENT for row in found]
                lines.append([f"{title}, {n}x{k}", *gains])
    if not lines:
        return []
    header = ["our dense kernel's time over the sparse one's", *(f"{z} %" for z in README_ZEROS)]
    return ["Sparse, one token, one thread:", grid(header, lines, markdown=True)]


def _from_python(results: Results) -> str:
    base = results.find(cases.DENSE, 512, 512, 1, 1)
    raw = results.find(cases.DENSE, 512, 512, 1, 1, "native raw call")
    operation = results.find(cases.DENSE, 512, 512, 1, 1, "native operation")
    if base is None or base.median_us is None:
        return ""
    texts = []
    for row, what in (
        (raw, "a call of the extension with addresses"),
        (operation, "the operation"),
    ):
        if row is not None and row.median_us is not None:
            texts.append(f"{what} {row.median_us - base.median_us:.2f} us")
    return f" From Python add: {', '.join(texts)}." if texts else ""


def write_readme(path: Path, rows: Sequence[Row]) -> None:
    """Put the tables between the markers of a README.

    Raises:
        ValueError: The file lacks the markers.
    """
    content = path.read_text(encoding="utf-8")
    path.write_text(with_table(content, readme(rows)), encoding="utf-8")


def with_table(content: str, table: str) -> str:
    """A document with the table between its markers.

    Raises:
        ValueError: It lacks the markers.
    """
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} ... {END} in the document")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
