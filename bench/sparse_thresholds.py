"""From how many zeros on a sparse matmul beats the dense one here: the source of thresholds.py.

``python -m bench.sparse_thresholds [level ...]``. Kernels only, one thread, hot weights; dense and
sparse take turns in one process and the shortest times are compared, because other programs only
add to them. Pin the process, and raise its priority, where others use the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from agentforge_kernels import native
from agentforge_kernels.format import pack, padded
from agentforge_kernels.native_backend import NativeBackend
from agentforge_kernels.sparse import tile_grid, to_block_sparse, to_columns
from torch import Tensor

SHAPES = {"cache": ((512, 1536), (512, 2048)), "memory": ((2560, 6912),)}
"""Packed weights in the second-level cache, and beyond it (4.4 MB)."""
BLOCK_TOKENS = (1, 2, 4, 16, 64)
COLUMN_TOKENS = (1, 2, 4, 8, 32)
BLOCK_ZEROS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75)
COLUMN_ZEROS = (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9)
PAYS = 1.05
"""Times faster than dense that count as paying."""
ROUNDS = 9
ROUND_SECONDS = 0.002

Repeat = Callable[[int], float]


def ratio(dense: Repeat, sparse: Repeat) -> float:
    """Shortest time of dense over shortest time of sparse."""
    shortest = []
    for repeat in (dense, sparse):
        repeat(2)
        shortest.append(repeat(3) / 3)
    repeats = [max(1, int(ROUND_SECONDS / seconds)) for seconds in shortest]
    for _ in range(ROUNDS):
        for i, repeat in enumerate((dense, sparse)):
            shortest[i] = min(shortest[i], repeat(repeats[i]) / repeats[i])
    return shortest[0] / shortest[1]


def exactly(share: float, count: int, generator: torch.Generator) -> Tensor:
    """Bool ``[count]``: this share of it true, at random places."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=generator)[: round(share * count)]] = True
    return chosen


class Bench:
    """One shape at the level in use."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.generator = torch.Generator().manual_seed(0)
        self.backend = NativeBackend(1)
        self.scale = torch.ones(1)
        self.trits = torch.randint(
            -1, 2, (rows, columns), generator=self.generator, dtype=torch.int8
        )

    def tokens(self, count: int, zeros: float) -> tuple[Tensor, Tensor, Tensor]:
        """``q``, scale and sum; zeros at other places in every token."""
        q = torch.zeros(count, padded(self.columns), dtype=torch.int8)
        for token in q:
            values = torch.randint(1, 128, (self.columns,), generator=self.generator)
            zero = exactly(zeros, self.columns, self.generator)
            token[: self.columns] = values.masked_fill(zero, 0).to(torch.int8)
        return q, torch.ones(count), q.sum(dim=1, dtype=torch.int32)

    def repeat(
        self, entry: str, tokens: tuple[Tensor, Tensor, Tensor], weights: tuple[Tensor | int, ...]
    ) -> Repeat:
        """Seconds of so many calls of an entry point of the extension."""
        assert native.extension is not None
        call = getattr(native.extension, f"repeat_{entry}")
        q, scale, total = tokens
        output = torch.empty(q.shape[0], self.rows)
        kept = (q, scale, total, output, weights)
        addresses = [item if isinstance(item, int) else item.data_ptr() for item in weights]

        def run(repeats: int) -> float:
            seconds: float = call(
                q.data_ptr(), q.shape[1], scale.data_ptr(), total.data_ptr(), q.shape[0],
                *addresses, self.scale.data_ptr(), False, 0, kept[3].data_ptr(),
                self.rows, self.columns, 1, 1, 0, repeats,
            )  # fmt: skip
            return seconds

        return run

    def block_sparse(self) -> Iterator[tuple[int, float, float]]:
        """Tokens, share of zero tiles, times faster than dense."""
        grid = tile_grid(self.rows, self.columns)
        for zeros in BLOCK_ZEROS:
            stored = ~exactly(zeros, grid[0] * grid[1], self.generator).view(grid)
            mask = stored.repeat_interleave(64, 0).repeat_interleave(16, 1)
            packed = pack(self.trits * mask[: self.rows, : self.columns].to(torch.int8), 1.0)
            panels, _ = self.backend.lay_out_dense(packed.codes, self.columns)
            form = to_block_sparse(packed)
            tiles, _ = self.backend.lay_out_tiles(form.tiles)
            for count in BLOCK_TOKENS:
                tokens = self.tokens(count, 0)
                weights = (tiles, form.index, form.start, form.count)
                yield (
                    count,
                    zeros,
                    ratio(
                        self.repeat("dense_linear", tokens, (panels,)),
                        self.repeat("block_sparse_linear", tokens, weights),
                    ),
                )

    def activation_sparse(self) -> Iterator[tuple[int, float, float]]:
        """Tokens, share of zero activations, times faster than dense."""
        packed = pack(self.trits, 1.0)
        panels, _ = self.backend.lay_out_dense(packed.codes, self.columns)
        blocks, _ = self.backend.lay_out_columns(to_columns(packed).codes, self.rows)
        for zeros in COLUMN_ZEROS:
            for count in COLUMN_TOKENS:
                tokens = self.tokens(count, zeros)
                yield (
                    count,
                    zeros,
                    ratio(
                        self.repeat("dense_linear", tokens, (panels,)),
                        self.repeat("activation_sparse_linear", tokens, (blocks,)),
                    ),
                )


def main(levels: list[str]) -> None:
    """Print every ratio, and for each number of tokens the share from which on it pays."""
    extension = native.extension
    assert extension is not None, native.unavailable_reason()
    torch.set_num_threads(1)
    for level in range(5):
        name = extension.isa_name(level)
        if not extension.isa_reported(level) or (levels and name not in levels):
            continue
        extension.force_isa(level)
        for place, shapes in SHAPES.items():
            for rows, columns in shapes:
                bench = Bench(rows, columns)
                for operation in ("block_sparse", "activation_sparse"):
                    seen: dict[int, list[tuple[float, float]]] = {}
                    for tokens, zeros, faster in getattr(bench, operation)():
                        seen.setdefault(tokens, []).append((zeros, faster))
                    for tokens, ratios in seen.items():
                        below = [zeros for zeros, faster in ratios if faster < PAYS]
                        pays = [zeros for zeros, _ in ratios if not below or zeros > max(below)]
                        row = " ".join(f"{zeros:.2f}:{faster:.2f}" for zeros, faster in ratios)
                        print(
                            f"{name} {operation} {place} {rows}x{columns} tokens {tokens}: "
                            f"pays from {pays[0] if pays else 'never'} ({row})",
                            flush=True,
                        )
    extension.force_isa(-1)


if __name__ == "__main__":
    main(sys.argv[1:])
