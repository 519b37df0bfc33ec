"""From which share of zeros on a sparse form is faster than the dense one: measured, by size.

A row says: for matrices whose packed dense form has up to ``most_bytes``, the sparse form pays from
``zero_share`` zeros on, for calls of up to ``most_tokens`` tokens. Rows are sorted by size; a
matrix larger than the last row never takes the sparse form. Only the native backend was measured:
there is no GPU here, and the reference and the fallback restore the dense matrix.
"""

from __future__ import annotations

from typing import NamedTuple


class Threshold(NamedTuple):
    """One row of a table.

    Attributes:
        most_bytes: Largest packed dense form, ``rows * padded(columns) / 4`` bytes.
        zero_share: Share of zeros, 0 to 1, of tiles or of activations.
        most_tokens: Most tokens of a call.
    """

    most_bytes: int
    zero_share: float
    most_tokens: int


# One token only was measured, by the prototype: within the second-level cache, and beyond it.
BLOCK_SPARSE = (
    Threshold(most_bytes=1 << 20, zero_share=0.20, most_tokens=1),
    Threshold(most_bytes=1 << 28, zero_share=0.25, most_tokens=1),
)
ACTIVATION_SPARSE = (
    Threshold(most_bytes=1 << 20, zero_share=0.50, most_tokens=1),
    Threshold(most_bytes=1 << 28, zero_share=0.70, most_tokens=1),
)


def most_tokens(table: tuple[Threshold, ...], packed_bytes: int, zero_share: float) -> int:
    """Most tokens a call may have for the sparse form to be the faster one; 0: it never is.

    Args:
        table: :data:`BLOCK_SPARSE` or :data:`ACTIVATION_SPARSE`.
        packed_bytes: Of the dense form.
        zero_share: Of the matrix (zero tiles) or expected of the activations.
    """
    for row in table:
        if packed_bytes <= row.most_bytes:
            return row.most_tokens if zero_share >= row.zero_share else 0
    return 0
