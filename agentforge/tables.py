"""Plain text tables for terminals, pipes and logs: aligned columns, no colours, no box lines."""

from __future__ import annotations

from collections.abc import Sequence

Cell = str | int | float | bool | None


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Columns side by side; numbers are set right, text left, None is a dash."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    right = [
        bool(rows) and all(_is_number(row[i]) or row[i] is None for row in rows)
        for i in range(len(columns))
    ]
    lines = [_line(columns, widths, right)]
    lines += [_line(row, widths, right) for row in cells]
    return "\n".join(lines)


def size_text(n_bytes: int) -> str:
    """Bytes in the unit that suits them, powers of 1000."""
    for limit, unit, divisor in ((1e8, "GB", 1e9), (1e5, "MB", 1e6), (1e3, "kB", 1e3)):
        if n_bytes >= limit:
            digits = 2 if unit == "GB" else 1
            return f"{n_bytes / divisor:.{digits}f} {unit}"
    return f"{n_bytes} B"


def duration_text(seconds: float) -> str:
    """``45s``, ``3m05s`` or ``2h07m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = [
        cell.rjust(width) if flush else cell.ljust(width)
        for cell, width, flush in zip(cells, widths, right, strict=True)
    ]
    return "  ".join(parts).rstrip()


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else cell
