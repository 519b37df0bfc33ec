"""From which share of zeros on a sparse form is faster than the dense one: measured, by size.

A row says: for matrices whose packed dense form has up to ``most_bytes``, the sparse form pays from
``zero_share`` zeros on, for calls of up to ``most_tokens`` tokens. Rows are sorted by size, and of
one size by share: the first size are matrices that stay in the second-level cache, the second
larger ones; a matrix larger than the last row never takes the sparse form.

Measured with ``python -m bench.sparse_thresholds``: an Intel Xeon (family 6, model 207, 2 MB of
second-level cache a core, 26 GB/s from the third level), GCC 12.2, one thread, hot weights, process
pinned; 512 x 1536 and 512 x 2048 for the cache, 2560 x 6912 (4.4 MB) beyond it; the shortest times
of interleaved runs, dense over sparse. A share is listed when the median of all runs there was at
least 1.05 and none was below 0.99. Only the native backend was measured: there is no GPU here, and
the reference and the fallback restore the dense matrix.

Zeros spread at random over the weights never pay: at 35-45 % zero weights no 64 x 16 tile is zero.
"""

from __future__ import annotations

from typing import NamedTuple

from agentforge_kernels.native import extension


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


Table = tuple[Threshold, ...]

CACHE = 1 << 20
"""Bytes of weights taken to stay in the second-level cache, which has 1 or 2 MB a core."""
MEMORY = 1 << 28

# In the comments the median ratios at the shares listed, then those far above them.
BLOCK_SPARSE_BY_LEVEL: dict[str, Table] = {
    # As avx512vnni up to the tokens from which on dense multiplies with tiles.
    "amxint8": (
        Threshold(CACHE, 0.20, 1),
        Threshold(CACHE, 0.25, 12),
        Threshold(MEMORY, 0.15, 1),
        Threshold(MEMORY, 0.20, 12),
    ),
    "avx512vnni": (
        Threshold(CACHE, 0.20, 1),  # 1.11; at 75 % zero tiles 3.2
        Threshold(CACHE, 0.25, 64),  # 1.10-1.15; at 75 % 2.8
        Threshold(MEMORY, 0.15, 1),  # 1.17; at 75 % 6.0
        Threshold(MEMORY, 0.20, 64),  # 1.08-1.11; at 75 % 3.2-3.7
    ),
    "avxvnni": (
        Threshold(CACHE, 0.20, 64),  # 1.12-1.19; at 75 % 2.9-3.3
        Threshold(MEMORY, 0.15, 64),  # 1.10-1.14; at 75 % 3.6-4.4
    ),
    "avx2": (
        Threshold(CACHE, 0.20, 64),  # 1.11-1.20; at 75 % 3.2-3.4
        Threshold(MEMORY, 0.20, 64),  # 1.08-1.29; at 75 % 3.4-4.0
    ),
    # From 3 tokens on dense looks up sums in tables (native/lookup_matmul.hpp), which tiles cannot.
    "portable": (
        Threshold(CACHE, 0.25, 2),  # 1.19; at 75 % 3.5
        Threshold(CACHE, 0.50, 4),  # 1.17; at 75 % 2.0
        Threshold(MEMORY, 0.15, 2),  # 1.08; at 75 % 3.7
        Threshold(MEMORY, 0.50, 4),  # 1.06; at 75 % 2.1
    ),
}
ACTIVATION_SPARSE_BY_LEVEL: dict[str, Table] = {
    # Likewise.
    "amxint8": (
        Threshold(CACHE, 0.40, 1),
        Threshold(CACHE, 0.55, 2),
        Threshold(CACHE, 0.65, 12),
        Threshold(MEMORY, 0.35, 1),
        Threshold(MEMORY, 0.55, 2),
        Threshold(MEMORY, 0.65, 12),
    ),
    "avx512vnni": (
        Threshold(CACHE, 0.40, 1),  # 1.09; at 90 % zero activations 4.7
        Threshold(CACHE, 0.55, 2),  # 1.17; at 90 % 3.7
        Threshold(CACHE, 0.65, 32),  # 1.18-1.25; at 90 % 3.2
        Threshold(MEMORY, 0.35, 1),  # 1.21; at 90 % 10.8
        Threshold(MEMORY, 0.55, 2),  # 1.06; at 90 % 6.5
        Threshold(MEMORY, 0.65, 32),  # 1.14-1.27; at 90 % 3.6
    ),
    "avxvnni": (
        Threshold(CACHE, 0.60, 8),  # 1.18-1.42; at 90 % 4.2
        Threshold(CACHE, 0.65, 32),  # 1.17; at 90 % 3.7
        Threshold(MEMORY, 0.60, 32),  # 1.21-1.42; at 90 % 4.2-5.7
    ),
    "avx2": (
        Threshold(CACHE, 0.40, 2),  # 1.18; at 90 % 5.5
        Threshold(CACHE, 0.55, 32),  # 1.10-1.21; at 90 % 4.5
        Threshold(MEMORY, 0.40, 2),  # 1.13-1.27; at 90 % 7.2
        Threshold(MEMORY, 0.50, 32),  # 1.11-1.22; at 90 % 5.5
    ),
    "portable": (
        Threshold(CACHE, 0.30, 2),  # 1.08; at 90 % 6.2
        Threshold(CACHE, 0.60, 4),  # 1.08; at 90 % 3.8
        Threshold(CACHE, 0.90, 8),  # 1.90
        Threshold(MEMORY, 0.30, 2),  # 1.10; at 90 % 6.3
        Threshold(MEMORY, 0.70, 4),  # 1.51; at 90 % 3.2
        Threshold(MEMORY, 0.90, 8),  # 1.65
    ),
}

_LEVEL = "portable" if extension is None else extension.isa_name(extension.best_isa())
BLOCK_SPARSE = BLOCK_SPARSE_BY_LEVEL[_LEVEL]
"""For the best level of instruction set this processor has."""
ACTIVATION_SPARSE = ACTIVATION_SPARSE_BY_LEVEL[_LEVEL]
"""Asked with :func:`share_of_columns_left_out`, not with the share of zero activations itself."""

BLOCK_ROWS = 256
"""Rows that the activation-sparse kernel reads together; fewer cost as much."""


def most_tokens(table: Table, packed_bytes: int, zero_share: float) -> int:
    """Most tokens a call may have for the sparse form to be the faster one; 0: it never is.

    Args:
        table: :data:`BLOCK_SPARSE` or :data:`ACTIVATION_SPARSE`.
        packed_bytes: Of the dense form.
        zero_share: Of the matrix (zero tiles) or expected of the activations.
    """
    sizes = [row.most_bytes for row in table if packed_bytes <= row.most_bytes]
    if not sizes:
        return 0
    rows = [row for row in table if row.most_bytes == min(sizes) and zero_share >= row.zero_share]
    return max((row.most_tokens for row in rows), default=0)


def share_of_columns_left_out(zero_activations: float, rows: int) -> float:
    """What :data:`ACTIVATION_SPARSE` is asked for a matrix of any number of rows.

    Rows are filled up to a multiple of 256 in the column form, so columns of 64 rows cost what 256
    do: the share that is left out shrinks, below 0 when more is read than the dense form has.

    Args:
        zero_activations: Expected share of zero activations, 0 to 1.
        rows: Of the matrix.
    """
    return 1 - (1 - zero_activations) * (-(-rows // BLOCK_ROWS) * BLOCK_ROWS) / rows


CALL_BYTES = 64 << 10
"""Bytes of dense weights multiplied in the 1.2 us that a sparse call from Python takes longer."""


def share_lost_to_a_call(packed_bytes: int) -> float:
    """How much larger a share of zeros has to be than the tables say when Python calls.

    The tables compare kernels. Measured through :func:`agentforge_kernels.ternary_linear`, one
    token and thread, dense over sparse: 512 x 512 0.88-0.95 at any share up to 70 %; 512 x 1536
    0.97 at 25 %, 1.05 at 50 % zero tiles; 512 x 2048 0.98, 1.12; 2560 x 6912 1.30 at 25 %.

    Args:
        packed_bytes: Of the dense form.
    """
    return CALL_BYTES / packed_bytes
