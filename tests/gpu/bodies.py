"""What the kernels must do on a GPU, as functions of a place: a device, or the interpreter.

``test_on_device`` runs them where there is a GPU, at the sizes of models; ``test_bodies`` runs the
same functions on CPU tensors in Triton's interpreter, tiny, so that they are known to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from agentforge_kernels import ops
from agentforge_kernels.backend import Activations
from agentforge_kernels.format import pack
from agentforge_kernels.int8 import quantize_int8
from agentforge_kernels.reference_backend import ReferenceBackend
from agentforge_kernels.sparse import to_block_sparse, to_columns
from agentforge_kernels.triton import configs
from agentforge_kernels.triton.backend import TritonBackend
from agentforge_kernels.triton.config_table import TABLE
from agentforge_kernels.triton.configs import Config, GemvConfig
from agentforge_kernels.triton.devices import Family
from agentforge_kernels.triton.problems import Problem, make_problem, tokens_of
from torch import Tensor

REFERENCE = ReferenceBackend()
Call = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the kernels run.

    Attributes:
        device: Of the tensors.
        family: Whose kernels and configurations.
        tiny: Sizes for the interpreter.
        capture: Makes a graph of a call; what it returns replays it. Without a device, the call.
        public: Within it the package's operations on this device's tensors use these kernels.
    """

    device: torch.device
    family: Family
    tiny: bool
    capture: Callable[[Call], Call]
    public: Callable[[], AbstractContextManager[object]]

    @property
    def backend(self) -> TritonBackend:
        return TritonBackend(self.family)

    def problem(self, operation: str, rows: int, columns: int, tokens: int, **more: Any) -> Problem:
        return make_problem(
            operation,
            rows,
            columns,
            tokens,
            self.device,
            self.family,
            **more,
        )


def used_operations(family: Family) -> list[str]:
    """Operations that have a kernel on a family."""
    return [name for name in configs.CONFIG_TYPES if tokens_of(name, family)[1] != 0]


def shipped(operation: str, family: Family) -> list[Config]:
    """Configurations of the checked-in table, without repetition."""
    return list(
        dict.fromkeys(
            entry.config
            for entry in TABLE
            if entry.operation == operation and family in entry.families
        )
    )


def same(seen: tuple[Tensor, ...] | Tensor, expected: tuple[Tensor, ...] | Tensor) -> None:
    """Equal bit for bit, NaN to NaN."""
    seen, expected = (
        (value,) if isinstance(value, Tensor) else tuple(value) for value in (seen, expected)
    )
    assert len(seen) == len(expected)
    for one, other in zip(seen, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=0.0, atol=0.0, equal_nan=True)


def sizes(place: Place, operation: str) -> Iterator[tuple[int, int, int]]:
    """Rows, columns and tokens: even ones, ragged ones, the smallest, a layer of a model."""
    fewest, most = tokens_of(operation, place.family)
    if place.tiny:
        yield 19, 130, fewest
        return
    many = 100 if most is None else most
    for rows, columns in ((512, 512), (333, 777), (1, 1), (2560, 1792)):
        for tokens in sorted({fewest, (fewest + many) // 2, many}):
            yield rows, columns, tokens


def check_operation(place: Place, operation: str) -> None:
    """Every shipped configuration equals the reference, with and without a residual."""
    found = shipped(operation, place.family)
    assert found
    for position, config in enumerate(found[:2] if place.tiny else found):
        for number, size in enumerate(sizes(place, operation)):
            residual = operation != "quantize" and (position + number) % 2 == 0
            problem = place.problem(operation, *size, residual=residual, seed=number)
            with configs.use(operation, config) as asked:
                seen = problem.run()
            assert asked, f"{operation} was not what ran for {size}"
            same(seen, problem.expect())


def check_norm(place: Place) -> None:
    """RMSNorm before quantising: within one step of q, and the fused kernel like the two."""
    columns = 130 if place.tiny else 1792
    problem = place.problem("quantize", 1, columns, 2, norm=True)
    (q, scale, total), (expected_q, expected_scale, _) = problem.run(), problem.expect()
    assert (q.cpu().int() - expected_q.int()).abs().max() <= 1
    torch.testing.assert_close(scale.cpu(), expected_scale, rtol=1e-5, atol=0.0)
    assert torch.equal(total, q.sum(dim=1, dtype=torch.int32))

    rows = 19 if place.tiny else 512
    fused = place.problem("fused", rows, columns, 1, norm=True, residual=True)
    # A step of q in a column changes an accumulator by one; scales below are at most 5 / 127.
    torch.testing.assert_close(fused.run()[0].cpu(), fused.expect()[0], rtol=1e-5, atol=0.2)


def check_split(place: Place) -> None:
    """A row's columns shared by programs: sums meet in any order and are the same."""
    rows, columns = (19, 600) if place.tiny else (100, 8192)
    problem = place.problem("gemv", rows, columns, 1, residual=True)
    with configs.use("gemv", GemvConfig(4, 4, 128, split=4)):
        first = problem.run()
        same(first, problem.expect())
        same(problem.run(), first)


def check_zeros(place: Place) -> None:
    """No zero at all, nothing but zeros: no tile, no activation."""
    rows, columns = (19, 130) if place.tiny else (333, 777)
    for operation in ("block_sparse", "block_sparse_gemm", "activation_sparse"):
        if operation not in used_operations(place.family):
            continue
        tokens = tokens_of(operation, place.family)[0]
        for zero_share in (0.0, 1.0):
            problem = place.problem(
                operation, rows, columns, tokens, zero_share=zero_share, residual=True
            )
            same(problem.run(), problem.expect())


def check_largest_sums(place: Place) -> None:
    """All activations 127, all weights 1 or -128: beyond what float32 or 16 bits would hold."""
    columns = 1024 if place.tiny else 16384
    rows = 2 if place.tiny else 64
    trits = torch.ones(rows, columns, dtype=torch.int8)
    packed = pack(trits, 1.0)
    sparse, form = to_block_sparse(packed), to_columns(packed)
    weight = torch.full((rows, columns), -128, dtype=torch.int8)
    one = torch.ones(1)
    for tokens in (1, 2, 16):
        here = Activations(
            torch.full((tokens, columns), 127, dtype=torch.int8),
            torch.ones(tokens),
            torch.full((tokens,), 127 * columns, dtype=torch.int32),
        )
        there = Activations(*(part.to(place.device) for part in here))
        scale = one.to(place.device)
        expected = torch.full((tokens, rows), 127.0 * columns)
        backend, size = place.backend, (rows, columns)
        if not (place.tiny and tokens == 2):
            tiles = [
                tensor.to(place.device) for tensor in (sparse.tiles, sparse.index, sparse.start)
            ]
            same(backend.ternary_linear_block_sparse(there, *tiles, scale, None, *size), expected)
        codes = packed.codes.to(place.device)
        same(backend.ternary_linear(there, codes, "rows", scale, None, *size), expected)
        laid_out = backend.lay_out_int8(weight.to(place.device))
        same(backend.int8_linear(there, *laid_out, scale, None, *size), expected * -128.0)
        if tokens == 1:
            lines = form.codes.to(place.device)
            same(
                backend.ternary_linear_activation_sparse(
                    there, lines, "columns", scale, None, *size
                ),
                expected,
            )


def check_bad_tokens(place: Place) -> None:
    """NaN or infinity in a token: scale and outputs NaN, the other tokens untouched."""
    columns, rows = 130, 19
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
    good = place.backend.quantize_activations(x.to(place.device))
    x[0, 5], x[2, 129] = float("nan"), float("inf")
    bad = place.backend.quantize_activations(x.to(place.device))
    assert bad.scale.isnan().tolist() == [True, False, True]
    assert torch.equal(bad.q[1], good.q[1])
    packed = pack(torch.ones(rows, columns, dtype=torch.int8), 1.0)
    output = place.backend.ternary_linear(
        bad,
        packed.codes.to(place.device),
        "rows",
        packed.scale.to(place.device),
        None,
        rows,
        columns,
    )
    assert output.isnan().all(dim=1).tolist() == [True, False, True]
    assert not output[1].isnan().any()


def check_graph(place: Place) -> None:
    """A call captured in a graph, replayed on new numbers in the same memory: nothing waits."""
    rows, columns = (19, 130) if place.tiny else (1024, 2048)
    generator = torch.Generator().manual_seed(2)
    packed = pack(torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8), 1.0)
    form = to_columns(packed)
    x = torch.randn(1, columns, generator=generator)
    static = x.to(place.device)
    codes, lines, scale = (
        tensor.to(place.device) for tensor in (packed.codes, form.codes, packed.scale)
    )
    backend, size = place.backend, (rows, columns)

    def dense() -> Tensor:
        activations = backend.quantize_activations(static)
        return backend.ternary_linear(activations, codes, "rows", scale, None, *size)

    def by_columns() -> Tensor:
        activations = backend.quantize_activations(static)
        return backend.ternary_linear_activation_sparse(
            activations, lines, "columns", scale, None, *size
        )

    replays = [place.capture(dense), place.capture(by_columns)]
    for zeros in (0.0, 0.9, 1.0):
        x = torch.randn(1, columns, generator=generator)
        x[torch.rand(1, columns, generator=generator) < zeros] = 0.0
        static.copy_(x)
        expected = REFERENCE.ternary_linear(
            REFERENCE.quantize_activations(x), packed.codes, "rows", packed.scale, None, *size
        )
        for replay in replays:
            same(replay(), expected)


def check_public_operations(place: Place) -> None:
    """The package's own functions, from floating tokens to outputs, three-dimensional inputs."""
    rows, columns = (19, 130) if place.tiny else (512, 1792)
    generator = torch.Generator().manual_seed(3)
    trits = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
    packed = pack(trits, torch.rand(rows, generator=generator) + 0.1)
    head = quantize_int8(torch.randn(rows, columns, generator=generator))
    x = torch.randn(1, 2, columns, generator=generator)
    quantised = REFERENCE.quantize_activations(x[0])
    size = (rows, columns)
    dense = REFERENCE.ternary_linear(quantised, packed.codes, "rows", packed.scale, None, *size)
    by_head = REFERENCE.int8_linear(quantised, head.weight, "int8", head.scale, None, *size)

    on_device = pack(trits.to(place.device), packed.scale.to(place.device))
    head_there = type(head)(head.weight.to(place.device), head.scale.to(place.device))
    x = x.to(place.device)
    with place.public():
        same(ops.ternary_linear(x, on_device)[0], dense)
        same(ops.ternary_linear_block_sparse(x, to_block_sparse(on_device))[0], dense)
        same(ops.ternary_linear_activation_sparse(x, to_columns(on_device))[0], dense)
        same(ops.int8_linear(x, head_there)[0], by_head)
        same(ops.quantize_activations(x[0]), quantised)


@contextmanager
def nothing() -> Iterator[None]:
    """No context."""
    yield


BODIES: dict[str, Callable[[Place], None]] = {
    "norm": check_norm,
    "split": check_split,
    "zeros": check_zeros,
    "largest_sums": check_largest_sums,
    "bad_tokens": check_bad_tokens,
    "graph": check_graph,
    "public_operations": check_public_operations,
}
"""Beside ``check_operation``, which is run for every operation."""
