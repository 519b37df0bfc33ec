from __future__ import annotations

import pytest
import torch
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import pack
from agentforge_kernels.native_backend import MOST_COLUMNS, NativeBackend
from agentforge_kernels.sparse import to_columns
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.native_cases import (
    LEVEL_NAMES,
    LEVELS,
    activations_of,
    expected,
    extension,
    level_in_use,
    random_trits,
    unaligned,
)

all_levels = pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)

SHAPES = [
    (1, 1),
    (63, 3),
    (64, 16),
    (65, 33),
    (100, 64),
    (129, 65),
    (255, 127),
    (256, 128),
    (257, 129),
    (700, 1500),
]


def random_q(tokens: int, columns: int, zeros: float, seed: int = 0) -> Tensor:
    """Random int8 with a share of zeros."""
    generator = torch.Generator().manual_seed(seed + tokens * 8191 + columns)
    q = torch.randint(-128, 128, (tokens, columns), generator=generator, dtype=torch.int8)
    return q.masked_fill(torch.rand(tokens, columns, generator=generator) < zeros, 0)


def check(
    q: Tensor, trits: Tensor, scale: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Compare every level and one and two threads with the reference; returns the output."""
    rows, columns = trits.shape
    scale = torch.tensor([0.5]) if scale is None else scale
    codes = to_columns(pack(trits, scale)).codes
    blocks, layout = NativeBackend(1).lay_out_columns(codes, rows)
    activations = activations_of(q)
    wanted = expected(activations, trits, scale, residual)
    for level in LEVELS:
        with level_in_use(level):
            for threads in (1, 2):
                output = NativeBackend(threads).ternary_linear_activation_sparse(
                    activations, blocks, layout, scale, residual, rows, columns
                )
                assert torch.equal(output, wanted), (extension.isa_name(level), threads, len(q))
    return wanted


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_share_of_zeros_equals_the_reference(rows: int, columns: int) -> None:
    trits = random_trits(rows, columns)
    generator = torch.Generator().manual_seed(7)
    for case, zeros in enumerate((0, 0.3, 0.5, 0.9, 0.99, 1)):
        tokens = 1 + case % 3
        scale = torch.rand(rows if case % 2 else 1, generator=generator) + 0.1
        residual = torch.randn(tokens, rows, generator=generator) if case % 3 else None
        check(random_q(tokens, columns, zeros), trits, scale, residual)


def test_more_tokens_than_are_listed_at_once() -> None:
    trits = random_trits(600, 150)
    for tokens in (15, 16, 17, 40):
        q = random_q(tokens, 150, 0.6)
        q[tokens // 2] = 0  # an empty list between others
        check(q, trits, torch.rand(600), torch.randn(tokens, 600))


def test_the_extension_names_the_first_bad_token() -> None:
    rows, columns, tokens = 300, 64, 40
    blocks, _ = NativeBackend(1).lay_out_columns(
        to_columns(pack(random_trits(rows, columns), 1.0)).codes, rows
    )
    q, scale, total = activations_of(random_q(tokens, columns, 0.5))
    output, one = torch.empty(tokens, rows), torch.ones(1)

    def first_bad() -> int:
        bad = extension.activation_sparse_linear(
            q.data_ptr(), q.shape[1], scale.data_ptr(), total.data_ptr(), tokens,
            blocks.data_ptr(), one.data_ptr(), False, 0, output.data_ptr(), rows, columns, 1,
        )  # fmt: skip
        assert isinstance(bad, int)
        return bad

    assert first_bad() == -1
    scale[30] = float("nan")
    assert first_bad() == 30
    scale[17] = float("nan")
    assert first_bad() == 17


def test_every_length_of_the_list_of_columns() -> None:
    trits = random_trits(300, 160)
    lengths = [*range(10), 31, 32, 33, 63, 64, 65, 127, 128, 129, 160] * 2
    q = torch.zeros(len(lengths), 160, dtype=torch.int8)
    generator = torch.Generator().manual_seed(0)
    for token, nonzero in zip(q, lengths, strict=True):
        token[torch.randperm(160, generator=generator)[:nonzero]] = -128
    check(q, trits)
    for token, nonzero in zip(q, lengths, strict=True):
        if nonzero in (0, 1, 5, 32):
            check(token[None], trits)


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 127, 1025, 16384, 20000])
def test_extreme_sums_are_exact(columns: int) -> None:
    trits = torch.ones(3, columns, dtype=torch.int8)
    trits[1] = -1
    trits[2] = 0
    for value in (127, -127, -128, 1):
        output = check(torch.full((1, columns), value, dtype=torch.int8), trits)
        assert not output[:, 2].any()


def test_one_row_of_a_line_at_a_time() -> None:
    # 256 rows share a line of 64 bytes: each alone, so that a wrong place in it is seen.
    trits = torch.eye(256, dtype=torch.int8).repeat(1, 3)
    check(torch.arange(768).remainder(251).sub(125).to(torch.int8)[None], trits)


def test_more_columns_than_scaled_rows_can_sum() -> None:
    # Rows 48 to 63 of 64 count 64 times on the way: safe up to 131,071 columns of code 2.
    columns = 131072 + 300
    trits = torch.ones(50, columns, dtype=torch.int8)
    trits[1::2] = -1
    for value in (-128, 127):
        check(torch.full((1, columns), value, dtype=torch.int8), trits)


@all_levels
def test_values_in_the_padding_of_activations_are_not_read(level: int) -> None:
    trits = random_trits(100, 65)
    activations = activations_of(random_q(2, 65, 0.5))
    activations.q[:, 65:] = 77
    backend = NativeBackend(1)
    blocks, layout = backend.lay_out_columns(to_columns(pack(trits, 1.0)).codes, 100)
    with level_in_use(level):
        output = backend.ternary_linear_activation_sparse(
            activations, blocks, layout, torch.ones(1), None, 100, 65
        )
    assert torch.equal(output, expected(activations, trits, torch.ones(1)))


@all_levels
def test_unaligned_tensors_give_the_same_result(level: int) -> None:
    rows, columns = 300, 200
    trits = random_trits(rows, columns)
    scale = torch.rand(rows)
    backend = NativeBackend(2)
    blocks, layout = backend.lay_out_columns(unaligned(to_columns(pack(trits, scale)).codes), rows)
    with level_in_use(level):
        for tokens in (1, 3):
            activations = activations_of(random_q(tokens, columns, 0.5))
            residual = torch.randn(tokens, rows)
            output = backend.ternary_linear_activation_sparse(
                activations._replace(
                    q=unaligned(activations.q),
                    scale=unaligned(activations.scale),
                    sum=unaligned(activations.sum),
                ),
                unaligned(blocks),
                layout,
                unaligned(scale),
                unaligned(residual),
                rows,
                columns,
            )
            assert torch.equal(output, expected(activations, trits, scale, residual))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 600),
    columns=st.integers(1, 400),
    tokens=st.integers(1, 20),
    zeros=st.floats(0, 1),
    extreme=st.booleans(),
    per_row=st.booleans(),
    with_residual=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(
    rows: int,
    columns: int,
    tokens: int,
    zeros: float,
    extreme: bool,
    per_row: bool,
    with_residual: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(rows if per_row else 1, generator=generator)
    residual = torch.randn(tokens, rows, generator=generator) if with_residual else None
    q = random_q(tokens, columns, zeros, seed)
    if extreme:
        q = q.sign() * 127 - (q < 0).to(torch.int8)  # 127, 0 and -128
    check(q, random_trits(rows, columns, seed), scale, residual)


@all_levels
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("zeros", [0.5, 1])
def test_a_token_with_scale_nan_is_nan_and_the_others_are_not(
    level: int, tokens: int, zeros: float
) -> None:
    trits = random_trits(300, 200)
    backend = NativeBackend(1)
    blocks, layout = backend.lay_out_columns(to_columns(pack(trits, 1.0)).codes, 300)
    activations = activations_of(random_q(tokens, 200, zeros))
    activations.scale[tokens // 2] = float("nan")
    with level_in_use(level):
        y = backend.ternary_linear_activation_sparse(
            activations, blocks, layout, torch.ones(1), None, 300, 200
        )
    bad = torch.zeros(tokens, dtype=torch.bool)
    bad[tokens // 2] = True
    assert torch.equal(y.isnan().all(dim=1), bad)
    assert torch.equal(y.isnan().any(dim=1), bad)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (100, 7), (128, 9), (256, 64), (300, 5)])
def test_lines_hold_every_weight_where_the_layout_says(rows: int, columns: int) -> None:
    backend = NativeBackend(1)
    trits = random_trits(rows, columns)
    codes = to_columns(pack(trits, 1.0)).codes
    blocks, layout = backend.lay_out_columns(codes, rows)
    assert layout == "column_blocks"
    lines = blocks.view(-1, columns, 4, 4, 4)  # block, column, chunk c, part, byte m
    fields = torch.stack([(lines >> (2 * field)) & 3 for field in range(4)], dim=4)
    # row = 64 part + 16 field + 4 c + m
    weights = fields.permute(0, 3, 4, 2, 5, 1).reshape(-1, columns).to(torch.int8) - 1
    assert torch.equal(weights[:rows], trits)
    assert not weights[rows:].any()
    assert torch.equal(backend.stored_columns(blocks, rows, columns), codes)


def test_arguments_are_refused_by_name() -> None:
    backend = NativeBackend(1)
    codes = to_columns(pack(random_trits(70, 64), 1.0)).codes
    blocks, layout = backend.lay_out_columns(codes, 70)
    good = activations_of(random_q(2, 64, 0.5))
    one = torch.ones(1)
    multiply = backend.ternary_linear_activation_sparse
    multiply(good, blocks, layout, one, None, 70, 64)
    with pytest.raises(KernelInputError, match="layout: columns"):
        multiply(good, codes, "columns", one, None, 70, 64)
    with pytest.raises(KernelInputError, match="codes: .* values"):
        multiply(good, blocks[:-1], layout, one, None, 70, 64)
    with pytest.raises(KernelInputError, match="codes: .* values"):
        multiply(good, blocks, layout, one, None, 300, 64)
    with pytest.raises(KernelInputError, match=r"activations\.q"):
        multiply(good, blocks, layout, one, None, 70, 200)
    with pytest.raises(KernelInputError, match="weight_scale"):
        multiply(good, blocks, layout, torch.ones(2), None, 70, 64)
    with pytest.raises(KernelInputError, match="residual"):
        multiply(good, blocks, layout, one, torch.zeros(2, 69), 70, 64)
    with pytest.raises(KernelInputError, match="rows: 0"):
        multiply(good, blocks[:0], layout, one, None, 0, 64)
    with pytest.raises(KernelInputError, match="codes: device meta"):
        multiply(good, blocks.to("meta"), layout, one, None, 70, 64)
    with pytest.raises(KernelInputError, match="codes: shape"):
        backend.lay_out_columns(codes.flatten(), 70)
    with pytest.raises(KernelInputError, match="codes: .* values"):
        backend.lay_out_columns(codes, 129)
    with pytest.raises(KernelInputError, match="rows: 0"):
        backend.lay_out_columns(codes[:, :0], 0)
    with pytest.raises(KernelInputError, match="columns"):
        backend.lay_out_columns(codes[:1].expand(MOST_COLUMNS + 1, 32), 70)


def test_no_tokens_give_an_empty_result() -> None:
    assert check(random_q(0, 64, 0.5), random_trits(5, 64)).shape == (0, 5)
