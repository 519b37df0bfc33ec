"""The Titans memory: both forms against the paper's equations, and what must never happen to it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from agentforge.config.schema import MemoryConfig
from agentforge.model.memory import (
    ERROR_LIMIT,
    MemoryInputs,
    MemoryState,
    NeuralMemory,
    chunked_memory,
    recurrent_memory,
)
from agentforge.model.record import ForwardRecord

torch.set_num_threads(1)

FIELDS = tuple(f.name for f in dataclasses.fields(MemoryInputs))


def inputs(batch: int, length: int, width: int, seed: int = 0) -> MemoryInputs:
    """Unit keys and queries, rates over the whole of (0, 1), float64."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    key, query = normal(batch, length, width), normal(batch, length, width)
    return MemoryInputs(
        key=key / key.norm(dim=-1, keepdim=True),
        query=query / query.norm(dim=-1, keepdim=True),
        value=normal(batch, length, width),
        theta=torch.sigmoid(normal(batch, length)),
        log_eta=torch.nn.functional.logsigmoid(normal(batch, length)),
        log_keep=torch.nn.functional.logsigmoid(normal(batch, length) + 2),
    )


def fresh(batch: int, width: int) -> MemoryState:
    zero = torch.zeros(batch, width, width, dtype=torch.float64)
    return MemoryState(zero, zero, zero)


def recurrent(x: MemoryInputs, chunk: int) -> Tensor:
    return recurrent_memory(x, fresh(x.key.shape[0], x.key.shape[2]), chunk)


def rows(x: MemoryInputs, chosen: slice | list[int]) -> MemoryInputs:
    return MemoryInputs(**{f: getattr(x, f)[chosen] for f in FIELDS})


def paper_loop(x: MemoryInputs, chunk: int) -> Tensor:
    """The paper's equations for each sequence, the gradient taken by autograd."""
    outputs = []
    for b in range(x.key.shape[0]):
        width = x.key.shape[2]
        w = torch.zeros(width, width, dtype=torch.float64)
        s = torch.zeros(width, width, dtype=torch.float64)
        reads = []
        for t in range(x.key.shape[1]):
            if t % chunk == 0:
                anchor = w.clone()
            point = anchor.clone().requires_grad_()
            loss = 0.5 * (point @ x.key[b, t] - x.value[b, t]).square().sum()
            (gradient,) = torch.autograd.grad(loss, point)
            s = x.log_eta[b, t].exp() * s - x.theta[b, t] * gradient
            w = x.log_keep[b, t].exp() * w + s
            reads.append(w @ x.query[b, t])
        outputs.append(torch.stack(reads))
    return torch.stack(outputs)


@pytest.mark.parametrize(("batch", "length", "width"), [(1, 1, 3), (2, 7, 5), (3, 19, 4)])
@pytest.mark.parametrize("chunk", [1, 4])
def test_recurrent_form_is_the_papers_recurrence(
    batch: int, length: int, width: int, chunk: int
) -> None:
    x = inputs(batch, length, width, seed=length)
    torch.testing.assert_close(recurrent(x, chunk), paper_loop(x, chunk), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 5, 16])
@pytest.mark.parametrize("length", [1, 2, 5, 16, 17, 33])
def test_chunked_form_equals_recurrent_form(chunk: int, length: int) -> None:
    x = inputs(2, length, 6, seed=chunk)
    read, error = chunked_memory(x, chunk)
    torch.testing.assert_close(read, recurrent(x, chunk), rtol=0, atol=1e-11)
    assert error.shape == (2, length)
    first = x.value[:, : min(chunk, length)].square().sum(-1)
    torch.testing.assert_close(error[:, : first.shape[1]], first, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 5, 16])
def test_chunked_gradient_equals_autograd_through_the_recurrence(chunk: int) -> None:
    x = inputs(2, 17, 5, seed=9)
    weight = torch.randn(2, 17, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = []
    for form in (lambda y: recurrent(y, chunk), lambda y: chunked_memory(y, chunk)[0]):
        leaves = [getattr(x, f).clone().requires_grad_() for f in FIELDS]
        loss = (form(MemoryInputs(*leaves)) * weight).sum()
        found.append(torch.autograd.grad(loss, leaves))
    for name, a, b in zip(FIELDS, *found, strict=True):
        assert a.abs().max() > 0, name
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("chunk", [1, 5])
def test_rows_of_a_batch_do_not_share_a_memory(chunk: int) -> None:
    x = inputs(3, 11, 4)
    whole = chunked_memory(x, chunk)[0]
    for row in range(3):
        alone = chunked_memory(rows(x, [row]), chunk)[0]
        torch.testing.assert_close(whole[row : row + 1], alone, rtol=0, atol=1e-13)
    state = fresh(3, 4)
    recurrent_memory(x, state, chunk)
    alone_state = fresh(1, 4)
    recurrent_memory(rows(x, [2]), alone_state, chunk)
    torch.testing.assert_close(state.weight[2:], alone_state.weight, rtol=0, atol=1e-13)
    torch.testing.assert_close(state.momentum[2:], alone_state.momentum, rtol=0, atol=1e-13)
    assert state.position == 11


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_state_carries_on_in_the_middle_of_a_chunk(cut: int) -> None:
    x, chunk = inputs(2, 13, 4), 5
    state = fresh(2, 4)
    parts = []
    for piece in (slice(0, cut), slice(cut, 13)):
        part = MemoryInputs(**{f: getattr(x, f)[:, piece] for f in FIELDS})
        parts.append(recurrent_memory(part, state, chunk))
    torch.testing.assert_close(torch.cat(parts, 1), recurrent(x, chunk), rtol=0, atol=1e-13)


def module(chunk: int = 4) -> NeuralMemory:
    torch.manual_seed(3)
    memory = NeuralMemory(12, MemoryConfig(layers=(0,), width=8, chunk=chunk, gate_rank=2), 1e-6)
    with torch.no_grad():
        memory.rates.weight.normal_(std=0.5)
    return memory


def test_every_forward_starts_with_an_empty_memory() -> None:
    memory = module()
    x = torch.randn(3, 10, 12)
    first = memory(x, 1.0)
    memory(torch.randn(3, 10, 12), 1.0)
    assert torch.equal(memory(x, 1.0), first)
    order = [2, 0, 1]
    torch.testing.assert_close(memory(x[order], 1.0), first[order], rtol=0, atol=1e-6)


def test_the_memory_is_causal_and_reads_its_own_write() -> None:
    memory = module()
    x = torch.randn(1, 14, 12)
    for t in (0, 3, 4, 9, 13):
        changed = x.clone()
        changed[:, t] += 1.0
        difference = (memory(changed, 1.0) - memory(x, 1.0)).abs().amax(-1)[0]
        assert difference[:t].max() == 0 if t else True
        assert difference[t] > 1e-6


def test_budget_bounds_every_write_and_the_record_counts_real_tokens_only() -> None:
    memory = module()
    x = torch.randn(2, 9, 12)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 5:] = False
    record = ForwardRecord(valid=valid)
    memory(x, 0.25, record, "m")
    theta = record.theta["m"]
    assert theta.shape == (2, 9)
    assert 0 < float(theta.min()) < float(theta.max()) < 0.25
    assert float(record.writes["m"]) == pytest.approx(float(theta[valid].mean()), rel=1e-6)
    moved = x.clone()
    moved[1, 5:] += 3.0
    other = ForwardRecord(valid=valid)
    memory(moved, 0.25, other, "m")
    assert float(other.writes["m"]) == pytest.approx(float(record.writes["m"]), rel=1e-6)
    assert float(other.surprise["m"]) == pytest.approx(float(record.surprise["m"]), rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 16])
@pytest.mark.parametrize("different", [1, 3, 1000])
def test_long_sequences_do_not_blow_up(chunk: int, different: int) -> None:
    """2,000 tokens at theta 1 with long momentum: new keys, three in turn, one for ever."""
    length, width = 2000, 16
    g = torch.Generator().manual_seed(different)
    pool = torch.nn.functional.normalize(torch.randn(different, width, generator=g), dim=-1)
    key = pool[torch.arange(length) % different][None]
    value = torch.randn(different, width, generator=g)[torch.arange(length) % different][None]
    x = MemoryInputs(
        key=key,
        query=key,
        value=value,
        theta=torch.ones(1, length),
        log_eta=torch.full((1, length), 0.5).log(),
        log_keep=torch.full((1, length), 0.98).log(),
    )
    read, error = chunked_memory(x, chunk)
    assert torch.isfinite(read).all()
    assert torch.isfinite(error).all()
    # theta 1, momentum 1/2 and 2 % forgetting: |W| <= longest / (1 - .5) / .02.
    assert float(read.abs().max()) <= ERROR_LIMIT * width**0.5 / 0.5 / 0.02
    if chunk == 1:
        assert float(read.abs().max()) < 10 * float(value.norm(dim=-1).max())


def test_one_token_repeated_leaves_finite_reads_and_gradients() -> None:
    """Equal keys all correct the same error of the chunk's start; without a limit this is NaN."""
    memory = module(chunk=16)
    x = torch.randn(1, 1, 12).repeat(1, 1024, 1).requires_grad_()
    memory(x, 1.0).square().mean().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    for name, parameter in memory.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_the_limit_holds_equally_in_both_forms_and_spares_ordinary_errors() -> None:
    x = inputs(2, 21, 4)
    large = dataclasses.replace(x, value=x.value * 100)
    torch.testing.assert_close(
        chunked_memory(large, 5)[0], recurrent(large, 5), rtol=1e-10, atol=1e-9
    )
    limited, plain = chunked_memory(large, 5)[0], 100 * chunked_memory(x, 5)[0]
    assert float((limited - plain).abs().max()) > 10
    exactly = paper_loop(x, 5)  # knows of no limit
    torch.testing.assert_close(recurrent(x, 5), exactly, rtol=0, atol=1e-12)
