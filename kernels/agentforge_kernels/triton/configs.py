"""Launch configurations: typed, by operation, family of GPUs and shape.

The checked-in table is ``config_table.TABLE``; a file written by
``python -m agentforge_kernels.tune`` on a user's own GPU comes before it (``user_configs``).
Nothing is tuned at import or at first use: tuning one kernel takes minutes and needs the device
for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.triton.devices import Family


@dataclass(frozen=True, slots=True)
class Config:
    """What every kernel launch has.

    Attributes:
        num_warps: Warps of a program (32 threads; 64 on CDNA).

    Raises:
        KernelInputError: A field is not a power of two (Triton's blocks are).
    """

    num_warps: int

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if (
                type(value) is not int
                or value < 1
                or (value & (value - 1) and item.name not in ANY)
            ):
                raise KernelInputError(
                    f"{type(self).__name__}.{item.name}", value, "a power of two"
                )


ANY = frozenset({"num_stages"})
"""Fields that may be any positive number."""


@dataclass(frozen=True, slots=True)
class GemvConfig(Config):
    """Matrix times one vector.

    Attributes:
        block_rows: Rows side by side in a program.
        block_words: int32 words (16 weights each) of a row a step.
        rows_per_thread: Rows that share a thread's loads of activations.
        split: Programs that share a row's columns; more than one adds int32 sums atomically.
    """

    block_rows: int
    block_words: int
    rows_per_thread: int = 1
    split: int = 1


@dataclass(frozen=True, slots=True)
class SmallBatchConfig(Config):
    """Matrix times two to eight vectors.

    Attributes:
        block_rows: Rows side by side in a program.
        block_words: int32 words (16 weights each) of a row a step.
    """

    block_rows: int
    block_words: int


@dataclass(frozen=True, slots=True)
class GemmConfig(Config):
    """Matrix times many vectors.

    Attributes:
        block_tokens: Tokens of an output tile.
        block_rows: Weight rows of an output tile.
        num_stages: Steps whose loads are in flight (asynchronous copies; no effect on Turing).
        block_columns: Columns a step: 128 for matrix units, 16 or 32 for float32.
    """

    block_tokens: int
    block_rows: int
    num_stages: int
    block_columns: int = 128

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        for name, smallest in (("block_tokens", 16), ("block_rows", 32)):
            if (value := getattr(self, name)) < smallest:
                raise KernelInputError(f"GemmConfig.{name}", value, f"{smallest} or more")
        if self.block_columns not in (16, 32, 128):
            raise KernelInputError("GemmConfig.block_columns", self.block_columns, "16, 32 or 128")


@dataclass(frozen=True, slots=True)
class QuantizeConfig(Config):
    """Activation quantisation.

    Attributes:
        block_columns: Columns a step.
    """

    block_columns: int


@dataclass(frozen=True, slots=True)
class FusedConfig(Config):
    """Norm, quantisation and matvec in one launch.

    Attributes:
        block_rows: Rows of a program.
    """

    block_rows: int


@dataclass(frozen=True, slots=True)
class BlockSparseConfig(Config):
    """Stored tiles times a few vectors.

    Attributes:
        block_rows: Rows of a program: 16, 32 or 64, of a tile's 64.
        block_tiles: Tiles a step.
        tokens: Most tokens of a program; more tokens are more programs.
    """

    block_rows: int
    block_tiles: int
    tokens: int

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        if self.block_rows not in (16, 32, 64):
            raise KernelInputError("BlockSparseConfig.block_rows", self.block_rows, "16, 32 or 64")


@dataclass(frozen=True, slots=True)
class BlockSparseGemmConfig(Config):
    """Stored tiles times many vectors, by matrix units.

    Attributes:
        block_tokens: Tokens of an output tile.
        block_tiles: Tiles a step: 8 or more, so that a plane of them is 32 columns deep.
        num_stages: Steps whose loads are in flight.
    """

    block_tokens: int
    block_tiles: int
    num_stages: int

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        for name, smallest in (("block_tokens", 16), ("block_tiles", 8)):
            if (value := getattr(self, name)) < smallest:
                raise KernelInputError(
                    f"BlockSparseGemmConfig.{name}", value, f"{smallest} or more"
                )


@dataclass(frozen=True, slots=True)
class ActivationSparseConfig(Config):
    """Columns whose activation is not zero times these activations.

    Attributes:
        chunk: Columns of a program.
        block_words: Words (16 rows each) of a column of a program.
        block_fours: Fours of columns a step.
    """

    chunk: int
    block_words: int
    block_fours: int

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        if self.chunk < 4 * self.block_fours:
            raise KernelInputError(
                "ActivationSparseConfig.chunk", self.chunk, "4 * block_fours or more"
            )


@dataclass(frozen=True, slots=True)
class Int8GemvConfig(Config):
    """int8 matrix times a few vectors.

    Attributes:
        block_rows: Rows side by side in a program.
        block_quads: Quads (16 weights each) of a row a step.
        rows_per_thread: Rows a thread keeps in registers for every load of activations.
        tokens: Most tokens of a program; more tokens are more programs.
    """

    block_rows: int
    block_quads: int
    rows_per_thread: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Int8GemmConfig(Config):
    """int8 matrix times many vectors, by matrix units.

    Attributes:
        block_tokens: Tokens of an output tile.
        block_rows: Weight rows of an output tile.
        block_columns: Columns of a product, 32 or more; two a step.
        num_stages: Steps whose loads are in flight.
    """

    block_tokens: int
    block_rows: int
    block_columns: int
    num_stages: int

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        for name, smallest in (("block_tokens", 16), ("block_rows", 16), ("block_columns", 32)):
            if (value := getattr(self, name)) < smallest:
                raise KernelInputError(f"Int8GemmConfig.{name}", value, f"{smallest} or more")


CONFIG_TYPES: dict[str, type[Config]] = {
    "gemv": GemvConfig,
    "small_batch": SmallBatchConfig,
    "gemm": GemmConfig,
    "quantize": QuantizeConfig,
    "fused": FusedConfig,
    "block_sparse": BlockSparseConfig,
    "block_sparse_gemm": BlockSparseGemmConfig,
    "activation_sparse": ActivationSparseConfig,
    "int8_gemv": Int8GemvConfig,
    "int8_gemm": Int8GemmConfig,
}
"""Operations that are looked up, and the type of their configuration."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table: a configuration for shapes at least this large.

    Attributes:
        operation: Key of ``CONFIG_TYPES``.
        families: Families it holds for.
        config: The configuration.
        rows: Fewest rows.
        columns: Fewest columns.
        tokens: Fewest tokens.
    """

    operation: str
    families: tuple[Family, ...]
    config: Config
    rows: int = 1
    columns: int = 1
    tokens: int = 1

    def holds(self, operation: str, family: Family, bucket: tuple[int, int, int]) -> bool:
        """Whether this line answers for a shape bucket (rows, columns, tokens)."""
        return (
            operation == self.operation
            and family in self.families
            and bucket[0] >= self.rows
            and bucket[1] >= self.columns
            and bucket[2] >= self.tokens
        )


def bucket_of(rows: int, columns: int, tokens: int) -> tuple[int, int, int]:
    """Shape bucket: each size rounded up to a power of two."""
    return _round_up(rows), _round_up(columns), _round_up(tokens)


def _round_up(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


Key = tuple[str, Family, tuple[int, int, int]]
"""Operation, family, shape bucket."""

_in_use: dict[str, tuple[Config, list[Key]]] = {}


@contextmanager
def use(operation: str, config: Config) -> Iterator[list[Key]]:
    """Within the block every call of an operation runs with one configuration, table or not.

    For the tuner and for tests; it holds for the whole process, not for one thread.

    Args:
        operation: Key of ``CONFIG_TYPES``.
        config: Of that operation's type.

    Yields:
        What is looked up within the block, in order, as keys of the user's file.

    Raises:
        KernelInputError: Another operation, or another type of configuration.
    """
    if type(config) is not CONFIG_TYPES.get(operation):
        allowed = CONFIG_TYPES[operation].__name__ if operation in CONFIG_TYPES else "an operation"
        raise KernelInputError(operation, type(config).__name__, allowed)
    before = _in_use.get(operation)
    asked: list[Key] = []
    _in_use[operation] = (config, asked)
    try:
        yield asked
    finally:
        del _in_use[operation]
        if before is not None:
            _in_use[operation] = before


def lookup(operation: str, family: Family, rows: int, columns: int, tokens: int) -> Config:
    """The configuration for one call: the user's own file first, then the checked-in table.

    Args:
        operation: Key of ``CONFIG_TYPES``.
        family: Family of the GPU.
        rows: Weight rows (1 where there are none).
        columns: Columns.
        tokens: Tokens.

    Raises:
        KernelInputError: An operation that is not in the table.
    """
    from agentforge_kernels.triton.config_table import TABLE
    from agentforge_kernels.triton.user_configs import user_table

    bucket = bucket_of(rows, columns, tokens)
    if operation in _in_use:
        config, asked = _in_use[operation]
        asked.append((operation, family, bucket))
        return config
    own = user_table().get((operation, family, bucket))
    if own is not None:
        return own
    for entry in TABLE:
        if entry.holds(operation, family, bucket):
            return entry.config
    raise KernelInputError("operation", f"{operation} on {family}", ", ".join(CONFIG_TYPES))
