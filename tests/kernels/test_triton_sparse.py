"""Sparse and int8 Triton kernels in the interpreter: every bit as the reference says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from agentforge_kernels.backend import Activations
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import PackedTernary, pack, padded
from agentforge_kernels.reference_backend import ReferenceBackend
from agentforge_kernels.sparse import tile_grid, to_block_sparse, to_columns
from agentforge_kernels.triton import activation_sparse, block_sparse, int8
from agentforge_kernels.triton.configs import (
    ActivationSparseConfig,
    BlockSparseConfig,
    BlockSparseGemmConfig,
    Config,
    Int8GemmConfig,
    lookup,
)
from agentforge_kernels.triton.devices import FAMILIES, Family, int8_matrix_units
from agentforge_kernels.triton.packed_bytes import (
    codes_of_plane,
    transpose_bytes,
    trits_of_plane,
)
from agentforge_kernels.triton.sparse_configs import SPARSE_TABLE
from agentforge_kernels.verify.cases import KernelCase
from agentforge_kernels.verify.interpreter import interpreted, run_interpreted
from agentforge_kernels.verify.sparse_cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

REFERENCE = ReferenceBackend()


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_activations(
    tokens: int, columns: int, generator: torch.Generator, zeros: float = 0.0, extreme: bool = False
) -> Activations:
    q = torch.randint(-127, 128, (tokens, columns), generator=generator, dtype=torch.int8)
    if extreme:
        q = torch.where(q < 0, -127, 127).to(torch.int8)
    q[torch.rand(tokens, columns, generator=generator) < zeros] = 0
    q = F.pad(q, (0, padded(columns) - columns))
    scale = torch.rand(tokens, generator=generator) + 0.01
    return Activations(q, scale, q.sum(1, dtype=torch.int32))


def draw_ternary(
    rows: int, columns: int, generator: torch.Generator, zero_tiles: float, scale_per_row: bool
) -> PackedTernary:
    trits = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
    kept = torch.rand(tile_grid(rows, columns), generator=generator) >= zero_tiles
    trits *= kept.repeat_interleave(64, 0).repeat_interleave(16, 1)[:rows, :columns]
    return pack(trits, torch.rand(rows if scale_per_row else 1, generator=generator) + 0.01)


def compare_block_sparse(
    activations: Activations, packed: PackedTernary, residual: Tensor | None, family: Family
) -> None:
    sparse = to_block_sparse(packed)
    parts = (sparse.tiles, sparse.index, sparse.start, sparse.scale)
    size = (packed.rows, packed.columns)
    with interpreted():
        seen = block_sparse.block_sparse_linear(activations, *parts, residual, *size, family)
    expected = REFERENCE.ternary_linear_block_sparse(activations, *parts, residual, *size)
    torch.testing.assert_close(seen, expected, rtol=0, atol=0, equal_nan=True)


def compare_activation_sparse(
    activations: Activations, packed: PackedTernary, residual: Tensor | None, family: Family
) -> None:
    form = to_columns(packed)
    size = (packed.rows, packed.columns)
    with interpreted():
        seen = activation_sparse.activation_sparse_linear(
            activations, form.codes, form.scale, residual, *size, family
        )
    expected = REFERENCE.ternary_linear_activation_sparse(
        activations, form.codes, "columns", form.scale, residual, *size
    )
    torch.testing.assert_close(seen, expected, rtol=0, atol=0, equal_nan=True)


def compare_int8(
    activations: Activations,
    weight: Tensor,
    row_scale: Tensor,
    residual: Tensor | None,
    family: Family,
) -> None:
    rows, columns = weight.shape
    with interpreted():
        seen = int8.int8_linear(
            activations, int8.lay_out_int8(weight), row_scale, residual, rows, columns, family
        )
    expected = REFERENCE.int8_linear(
        activations, weight, "int8", row_scale, residual, rows, columns
    )
    torch.testing.assert_close(seen, expected, rtol=0, atol=0, equal_nan=True)


NVIDIA_CASES = [case for case in CASES if any(name.startswith("sm_") for name in case.targets)]
OTHER_CASES = [case for case in CASES if case not in NVIDIA_CASES]


@pytest.mark.parametrize("seed", [0, 1], ids=["drawn", "extreme"])
@pytest.mark.parametrize("case", NVIDIA_CASES, ids=lambda case: case.name)
def test_shipped_configurations(case: KernelCase, seed: int) -> None:
    run_interpreted(case, seed)


@pytest.mark.parametrize("case", OTHER_CASES, ids=lambda case: case.name)
def test_configurations_of_other_vendors(case: KernelCase) -> None:
    run_interpreted(case, 0)


# Small enough for the interpreter, which takes 20 to 100 ms a program of a matvec.
sizes = st.tuples(st.integers(1, 20), st.integers(1, 300))


@settings(max_examples=6, deadline=None)
@given(
    sizes,
    st.integers(1, 3),
    st.sampled_from(FAMILIES),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_block_sparse_matvec_of_any_shape(
    size: tuple[int, int], tokens: int, family: Family, zeros: float, plain: bool, seed: int
) -> None:
    generator = generator_of(seed)
    packed = draw_ternary(*size, generator, zeros, scale_per_row=not plain)
    activations = draw_activations(tokens, size[1], generator)
    residual = None if plain else torch.randn(tokens, size[0], generator=generator)
    compare_block_sparse(activations, packed, residual, family)


@settings(max_examples=10, deadline=None)
@given(
    st.tuples(st.integers(1, 200), st.integers(1, 400)),
    st.integers(block_sparse.MOST_GEMV_TOKENS + 1, 70),
    st.sampled_from([family for family in FAMILIES if int8_matrix_units(family)]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 2**31),
)
def test_block_sparse_matrix_units_of_any_shape(
    size: tuple[int, int], tokens: int, family: Family, zeros: float, seed: int
) -> None:
    generator = generator_of(seed)
    packed = draw_ternary(*size, generator, zeros, scale_per_row=True)
    activations = draw_activations(tokens, size[1], generator)
    residual = torch.randn(tokens, size[0], generator=generator)
    compare_block_sparse(activations, packed, residual, family)


@settings(max_examples=6, deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 700)),
    st.integers(1, 2),
    st.sampled_from(FAMILIES),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.integers(0, 2**31),
)
def test_activation_sparse_of_any_shape(
    size: tuple[int, int], tokens: int, family: Family, zeros: float, seed: int
) -> None:
    generator = generator_of(seed)
    packed = draw_ternary(*size, generator, 0.0, scale_per_row=True)
    activations = draw_activations(tokens, size[1], generator, zeros)
    residual = torch.randn(tokens, size[0], generator=generator)
    compare_activation_sparse(activations, packed, residual, family)


@settings(max_examples=12, deadline=None)
@given(sizes, st.integers(1, 20), st.sampled_from(FAMILIES), st.booleans(), st.integers(0, 2**31))
def test_int8_of_any_shape(
    size: tuple[int, int], tokens: int, family: Family, plain: bool, seed: int
) -> None:
    generator = generator_of(seed)
    weight = torch.randint(-128, 128, size, generator=generator, dtype=torch.int8)
    activations = draw_activations(tokens, size[1], generator)
    row_scale = torch.rand(1 if plain else size[0], generator=generator)
    residual = None if plain else torch.randn(tokens, size[0], generator=generator)
    compare_int8(activations, weight, row_scale, residual, family)


def test_largest_sums() -> None:
    """Where float32 or 16-bit sums would be wrong: beyond 2^24, and far beyond 2^15."""
    generator = generator_of(0)
    columns = 4096
    ones = torch.ones(16, columns, dtype=torch.int8)
    activations = draw_activations(1, columns, generator)
    activations = Activations(
        torch.full_like(activations.q, 127),
        activations.scale,
        torch.full_like(activations.sum, 127 * columns),
    )
    compare_block_sparse(activations, pack(ones, 1.0), None, "turing")
    compare_activation_sparse(activations, pack(-ones, 1.0), None, "turing")
    largest = torch.full((16, columns), -128, dtype=torch.int8)
    compare_int8(activations, largest, torch.ones(16), None, "turing")
    many = Activations(*(part.expand(9, *part.shape[1:]).contiguous() for part in activations))
    assert 128 * 127 * columns > 2**24
    compare_int8(many, largest, torch.ones(16), None, "ampere")
    compare_block_sparse(many, pack(-ones, 1.0), None, "ampere")


def test_many_tokens_without_matrix_units() -> None:
    """On Turing they are groups of eight, the last one not full."""
    generator = generator_of(1)
    packed = draw_ternary(20, 40, generator, 0.3, scale_per_row=True)
    activations = draw_activations(11, 40, generator)
    compare_block_sparse(activations, packed, None, "turing")
    weight = torch.randint(-128, 128, (20, 40), generator=generator, dtype=torch.int8)
    compare_int8(activations, weight, torch.ones(1), None, "turing")


@pytest.mark.parametrize("family", ["turing", "ampere"])
def test_no_tiles_at_all(family: Family) -> None:
    generator = generator_of(2)
    for tokens in (1, 9):
        activations = draw_activations(tokens, 100, generator)
        nothing = pack(torch.zeros(70, 100, dtype=torch.int8), 1.0)
        assert to_block_sparse(nothing).count == 0
        compare_block_sparse(activations, nothing, None, family)
        residual = torch.randn(tokens, 70, generator=generator)
        compare_block_sparse(activations, nothing, residual, family)


def test_one_activation_in_the_last_column() -> None:
    generator = generator_of(3)
    packed = draw_ternary(130, 513, generator, 0.0, scale_per_row=False)
    activations = draw_activations(1, 513, generator, zeros=1.0)
    activations.q[0, 512] = -127
    activations.sum[0] = -127
    compare_activation_sparse(activations, packed, None, "turing")


def test_tokens_in_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffers of a call are bounded; tokens beyond come in later launches."""
    monkeypatch.setattr(activation_sparse, "MOST_PARTIAL_ELEMENTS", 2 * 128)
    generator = generator_of(4)
    packed = draw_ternary(20, 100, generator, 0.0, scale_per_row=True)
    activations = draw_activations(3, 100, generator, zeros=0.7)
    residual = torch.randn(3, 20, generator=generator)
    compare_activation_sparse(activations, packed, residual, "turing")


def test_no_tokens() -> None:
    generator = generator_of(5)
    none = draw_activations(0, 100, generator)
    packed = draw_ternary(20, 100, generator, 0.0, scale_per_row=True)
    compare_block_sparse(none, packed, None, "turing")
    compare_activation_sparse(none, packed, None, "turing")
    compare_int8(none, torch.ones(20, 100, dtype=torch.int8), torch.ones(1), None, "turing")


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_bad_tokens_give_nan_and_leave_the_others_alone() -> None:
    generator = generator_of(6)
    packed = draw_ternary(20, 100, generator, 0.2, scale_per_row=True)
    activations = draw_activations(2, 100, generator)
    activations.scale[0] = float("nan")
    for compare in (compare_block_sparse, compare_activation_sparse):
        compare(activations, packed, None, "turing")
    weight = torch.ones(20, 100, dtype=torch.int8)
    compare_int8(activations, weight, torch.ones(1), None, "turing")


def unaligned(tensor: Tensor, offset: int) -> Tensor:
    """A contiguous copy that begins ``offset`` bytes into its memory."""
    size = tensor.numel() * tensor.element_size()
    memory = torch.zeros(size + offset, dtype=torch.uint8)[offset:]
    memory[:] = tensor.reshape(-1).view(torch.uint8)
    return memory.view(tensor.dtype).view(tensor.shape)


@pytest.mark.parametrize("offset", [1, 4])
def test_tensors_that_begin_anywhere(offset: int) -> None:
    generator = generator_of(7)
    q, scale, total = draw_activations(1, 100, generator)
    activations = Activations(unaligned(q, offset), scale, total)
    assert activations.q.data_ptr() % 16 == offset
    packed = draw_ternary(20, 100, generator, 0.2, scale_per_row=True)
    sparse, form = to_block_sparse(packed), to_columns(packed)
    weight = torch.randint(-128, 128, (20, 112), generator=generator, dtype=torch.int8)
    tiles, codes = unaligned(sparse.tiles, offset), unaligned(form.codes, offset)
    with interpreted():
        by_tiles = block_sparse.block_sparse_linear(
            activations, tiles, sparse.index, sparse.start, sparse.scale, None, 20, 100, "turing"
        )
        by_columns = activation_sparse.activation_sparse_linear(
            activations, codes, form.scale, None, 20, 100, "turing"
        )
        head = int8.int8_linear(
            activations, unaligned(weight, offset), torch.ones(1), None, 20, 112, "turing"
        )
    expected = REFERENCE.ternary_linear(
        activations, packed.codes, "rows", packed.scale, None, 20, 100
    )
    assert torch.equal(by_tiles, expected)
    assert torch.equal(by_columns, expected)
    whole = REFERENCE.int8_linear(activations, weight, "int8", torch.ones(1), None, 20, 112)
    assert torch.equal(head, whole)


def test_a_head_that_was_not_laid_out_is_refused() -> None:
    activations = draw_activations(1, 100, generator_of(8))
    weight = torch.ones(20, 100, dtype=torch.int8)
    with pytest.raises(KernelInputError, match=r"weight: 100 stored columns.*112"):
        int8.int8_linear(activations, weight, torch.ones(1), None, 20, 100, "turing")


def test_laying_out_pads_and_changes_nothing_else() -> None:
    weight = torch.ones(3, 100, dtype=torch.int8)
    laid_out = int8.lay_out_int8(weight)
    assert laid_out.shape == (3, 112)
    assert torch.equal(laid_out[:, :100], weight)
    assert not laid_out[:, 100:].any()
    even = torch.ones(3, 112, dtype=torch.int8)
    assert int8.lay_out_int8(even) is even


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_configuration_for_every_size(family: Family) -> None:
    operations = {entry.operation for entry in SPARSE_TABLE}
    assert len(operations) == 5
    for operation in operations:
        if operation.endswith("gemm") and not int8_matrix_units(family):
            continue
        for rows in (1, 64, 4096, 128_000):
            for columns in (1, 512, 16_384):
                for tokens in (1, 2, 4, 8, 512):
                    assert isinstance(lookup(operation, family, rows, columns, tokens), Config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockSparseConfig(4, 128, 8, 1), "block_rows: 128; allowed: 16, 32 or 64"),
        (lambda: BlockSparseConfig(4, 16, 8, 3), "tokens: 3; allowed: a power of two"),
        (lambda: BlockSparseGemmConfig(4, 8, 8, 1), "block_tokens: 8; allowed: 16 or more"),
        (lambda: BlockSparseGemmConfig(4, 16, 4, 1), "block_tiles: 4; allowed: 8 or more"),
        (lambda: ActivationSparseConfig(1, 16, 32, 8), "chunk: 16; allowed: 4 .* block_fours"),
        (lambda: Int8GemmConfig(4, 16, 16, 16, 2), "block_columns: 16; allowed: 32 or more"),
    ],
)
def test_configurations_no_kernel_could_run_are_refused(
    make: Callable[[], Config], message: str
) -> None:
    with pytest.raises(KernelInputError, match=message):
        make()


@triton.jit
def unpack_all(packed, trits, codes, words, transposed, INSTRUCTION: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, 64)
    byte = tl.load(packed + i)
    tl.store(trits + i, trits_of_plane(byte, 0, INSTRUCTION))
    tl.store(trits + 64 + i, trits_of_plane(byte, 1, INSTRUCTION))
    tl.store(trits + 128 + i, trits_of_plane(byte, 2, INSTRUCTION))
    tl.store(trits + 192 + i, trits_of_plane(byte, 3, INSTRUCTION))
    tl.store(codes + i, codes_of_plane(byte, 0, INSTRUCTION))
    tl.store(codes + 64 + i, codes_of_plane(byte, 1, INSTRUCTION))
    tl.store(codes + 128 + i, codes_of_plane(byte, 2, INSTRUCTION))
    tl.store(codes + 192 + i, codes_of_plane(byte, 3, INSTRUCTION))
    j = tl.arange(0, 16)
    a, b, c, d = transpose_bytes(
        tl.load(words + j),
        tl.load(words + 16 + j),
        tl.load(words + 32 + j),
        tl.load(words + 48 + j),
        INSTRUCTION,
    )
    tl.store(transposed + j, a)
    tl.store(transposed + 16 + j, b)
    tl.store(transposed + 32 + j, c)
    tl.store(transposed + 48 + j, d)


@pytest.mark.parametrize("instruction", ["dp4a", "cdna", "portable"])
def test_packed_bytes_by_assembly_and_without(instruction: str) -> None:
    generator = generator_of(9)
    fields = torch.randint(0, 3, (4, 64), generator=generator, dtype=torch.uint8)
    packed = fields[0] | (fields[1] << 2) | (fields[2] << 4) | (fields[3] << 6)
    words = torch.randint(-(2**31), 2**31, (4, 16), generator=generator).int()
    trits = torch.full((4, 64), 99, dtype=torch.int8)
    codes = torch.full((4, 64), 99, dtype=torch.int8)
    transposed = torch.zeros(4, 16, dtype=torch.int32)
    with interpreted():
        unpack_all[(1,)](packed, trits, codes, words, transposed, INSTRUCTION=instruction)
    assert torch.equal(trits, fields.to(torch.int8) - 1)
    assert torch.equal(codes, fields.to(torch.int8))
    expected = words.view(torch.int8).view(4, 16, 4).permute(2, 1, 0)
    assert torch.equal(transposed.view(torch.int8).view(4, 16, 4), expected)
