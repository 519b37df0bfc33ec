"""The training loss: PonderNet by an explicit loop, and the memory-saving forms equal to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.model.loss import IGNORE, HaltingObjective, LossParts, training_loss
from agentforge.model.record import ForwardRecord
from tests.unit.tiny_models import random_ids, tiny_model

torch.set_num_threads(1)

OBJECTIVE = HaltingObjective(prior=0.3, beta=0.05)


def batch(rows: int = 5, length: int = 11, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, targets, valid: rows of different length, some positions without a loss."""
    ids, targets = random_ids(rows, length, seed), random_ids(rows, length, seed + 1)
    lengths = torch.arange(rows) % (length - 3) + 4
    valid = torch.arange(length) < lengths[:, None]
    targets = targets.masked_fill(~valid, IGNORE)
    targets[:, :2] = IGNORE
    return ids, targets, valid


def loss_of(
    model: CognateLM,
    data: tuple[Tensor, Tensor, Tensor],
    behaviour: Behaviour | None = None,
    objective: HaltingObjective = OBJECTIVE,
    counts: tuple[int, int] | None = None,
    vocab_chunk: int = 0,
    record: ForwardRecord | None = None,
) -> LossParts:
    ids, targets, valid = data
    n, m = counts or (int((targets != IGNORE).sum()), int(valid.sum()))
    return training_loss(
        model, ids, targets, valid, behaviour or Behaviour(), objective, n, m, vocab_chunk, record
    )


def gradients(model: CognateLM, *losses: LossParts) -> dict[str, Tensor]:
    model.zero_grad()
    for loss in losses:
        loss.total.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_near(a: dict[str, Tensor], b: dict[str, Tensor], relative: float = 1e-6) -> None:
    """The difference of two gradients relative to the norm of the first."""
    assert a.keys() == b.keys()
    size = math.sqrt(sum(float(g.square().sum()) for g in a.values()))
    gap = math.sqrt(sum(float((a[n] - b[n]).square().sum()) for n in a))
    assert gap <= relative * size


@pytest.mark.parametrize(("latent_steps", "stride"), [(1, 1), (2, 1), (1, 3)])
def test_pondernet_loss_against_an_explicit_loop(latent_steps: int, stride: int) -> None:
    model = tiny_model(1, recursion_steps=4, latent_steps=latent_steps)
    ids, targets, valid = batch()
    objective = HaltingObjective(prior=0.3, beta=0.05, early_stride=stride)
    found = loss_of(model, (ids, targets, valid), objective=objective)
    task, last, kl, steps, early = 0.0, 0.0, 0.0, [], 0
    prior = [0.3, 0.3 * 0.7, 0.3 * 0.7**2, 0.7**3]
    with torch.no_grad():
        answers = model.answers(ids, Behaviour())
        for b in range(ids.shape[0]):
            for t in range(ids.shape[1]):
                if not valid[b, t]:
                    continue
                left, p = 1.0, []
                for answer in answers[:-1]:
                    lam = float(torch.sigmoid(model.halting(answer[b, t])))
                    p.append(left * lam)
                    left *= 1 - lam
                p.append(left)
                kl += sum(a * math.log(a / q) for a, q in zip(p, prior, strict=True))
                steps.append(sum(n * a for n, a in enumerate(p, start=1)))
                target = int(targets[b, t])
                if target == IGNORE:
                    continue
                logits = [model.embedding.logits(a[b, t]) for a in answers]
                ce = [-float(F.log_softmax(x, -1)[target]) for x in logits]
                if (target + t) % stride == 0:
                    task += sum(x * y for x, y in zip(p, ce, strict=True))
                    early += 1
                else:
                    task += ce[-1]
                last += ce[-1]
    n, m = int((targets != IGNORE).sum()), int(valid.sum())
    assert 0 < early <= n
    assert (early == n) is (stride == 1)
    assert float(found.total.detach()) == pytest.approx(task / n + 0.05 * kl / m, rel=1e-5)
    assert float(found.task_sum) == pytest.approx(task, rel=1e-5)
    assert float(found.last_sum) == pytest.approx(last, rel=1e-5)
    assert found.expected_steps.tolist() == pytest.approx(steps, rel=1e-5)


@pytest.mark.parametrize("objective", [OBJECTIVE, HaltingObjective(0.3, 0.05, enabled=False)])
def test_one_step_is_plain_cross_entropy(objective: HaltingObjective) -> None:
    model = tiny_model(2)
    data = batch()
    found = loss_of(model, data, Behaviour(recursion_steps=1), objective)
    logits = model.embedding.logits(model.answers(data[0], Behaviour(recursion_steps=1))[0])
    plain = F.cross_entropy(logits.flatten(0, 1), data[1].flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(found.total, plain, rtol=1e-6, atol=0)
    assert bool((found.expected_steps == 1).all())
    assert len(found.expected_steps) == int(data[2].sum())


def test_halting_switched_off_trains_the_last_step_and_no_head() -> None:
    model, data = tiny_model(2), batch()
    found = loss_of(model, data, objective=HaltingObjective(0.3, 0.05, enabled=False))
    logits = model.embedding.logits(model.answers(data[0], Behaviour())[-1])
    plain = F.cross_entropy(logits.flatten(0, 1), data[1].flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(found.total, plain, rtol=1e-6, atol=0)
    assert not any(n.startswith("halting") for n in gradients(model, found))
    assert any(n.startswith("halting") for n in gradients(model, loss_of(model, data)))


@pytest.mark.parametrize("cuts", [(2, 3), (1, 1, 1, 1, 1), (4, 1)])
@pytest.mark.parametrize("stride", [1, 4])
def test_accumulation_gives_the_large_batchs_gradient(cuts: tuple[int, ...], stride: int) -> None:
    model, data = tiny_model(3), batch()
    counts = (int((data[1] != IGNORE).sum()), int(data[2].sum()))
    objective = HaltingObjective(0.3, 0.05, early_stride=stride)
    whole = loss_of(model, data, objective=objective)
    large = gradients(model, whole)
    parts = list(zip(*(t.split(cuts) for t in data), strict=True))
    losses = [loss_of(model, p, objective=objective, counts=counts) for p in parts]
    sum_of_parts = sum(float(x.total.detach()) for x in losses)
    assert sum_of_parts == pytest.approx(float(whole.total.detach()), rel=1e-6)
    assert_near(large, gradients(model, *losses))


@pytest.mark.parametrize("chunk", [1, 7, 32, 10_000])
def test_cross_entropy_in_chunks_is_the_same(chunk: int) -> None:
    model, data = tiny_model(4), batch()
    whole, parts = loss_of(model, data), loss_of(model, data, vocab_chunk=chunk)
    torch.testing.assert_close(parts.total, whole.total, rtol=1e-6, atol=0)
    assert_near(gradients(model, whole), gradients(model, parts))


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_gradient_checkpointing_is_bit_equal(budget: float) -> None:
    model, data = tiny_model(5, n_core=2, latent_steps=2), batch()
    plain_record, record = ForwardRecord(valid=data[2]), ForwardRecord(valid=data[2])
    plain = loss_of(model, data, Behaviour(write_budget=budget), record=plain_record)
    expected = gradients(model, plain)
    model.gradient_checkpointing = True
    again = loss_of(model, data, Behaviour(write_budget=budget), record=record)
    assert torch.equal(again.total, plain.total)
    assert_equal(gradients(model, again), expected)
    for name in ("logit_max", "writes", "surprise", "gate"):
        first, second = getattr(plain_record, name), getattr(record, name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first), name


def test_checkpointing_keeps_fewer_activations() -> None:
    model, data = tiny_model(5), batch()
    kept = []
    for on in (False, True):
        model.gradient_checkpointing = on
        size = 0

        def pack(t: Tensor) -> Tensor:
            nonlocal size
            size += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss_of(model, data)
        kept.append(size)
    assert kept[1] < kept[0] / 2


def test_bf16_autocast_is_finite_and_close() -> None:
    model, data = tiny_model(6), batch(8, 17)
    exact = loss_of(model, data)
    expected = gradients(model, exact)
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss_of(model, data, vocab_chunk=16)
    found = gradients(model, rough)
    assert rough.total.dtype == torch.float32
    assert float(rough.total.detach()) == pytest.approx(float(exact.total.detach()), rel=0.02)
    assert found.keys() == expected.keys()
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in found.values())
    a = torch.cat([g.flatten() for g in expected.values()])
    b = torch.cat([found[n].flatten() for n in expected])
    assert float(F.cosine_similarity(a, b, dim=0)) > 0.98


def test_what_stands_in_the_padding_changes_nothing() -> None:
    model = tiny_model(7)
    ids, targets, valid = batch()
    other = torch.where(valid, ids, random_ids(*ids.shape, seed=99))
    assert bool((other != ids).any())
    records = [ForwardRecord(valid=valid) for _ in range(2)]
    first, second = (
        loss_of(model, (x, targets, valid), record=r)
        for x, r in zip((ids, other), records, strict=True)
    )
    torch.testing.assert_close(second.total, first.total, rtol=1e-6, atol=0)
    torch.testing.assert_close(second.expected_steps, first.expected_steps)
    assert_near(gradients(model, first), gradients(model, second))
    for name in ("logit_max", "writes", "surprise", "gate"):
        for key, value in getattr(records[0], name).items():
            torch.testing.assert_close(getattr(records[1], name)[key], value)


def test_longer_padding_changes_nothing() -> None:
    model = tiny_model(7)
    ids, targets, valid = batch()
    rows = ids.shape[0]
    longer = (
        torch.cat([ids, random_ids(rows, 9)], 1),
        torch.cat([targets, torch.full((rows, 9), IGNORE)], 1),
        torch.cat([valid, torch.zeros(rows, 9, dtype=torch.bool)], 1),
    )
    first, second = loss_of(model, (ids, targets, valid)), loss_of(model, longer)
    torch.testing.assert_close(second.total, first.total, rtol=1e-6, atol=0)
    assert_near(gradients(model, first), gradients(model, second), 5e-6)


@pytest.mark.parametrize("vocab", [64, 1000])
def test_a_new_model_knows_nothing(vocab: int) -> None:
    """Fresh weights: close to ln V on random targets, for every recursion step."""
    torch.manual_seed(0)
    model = CognateLM(tiny_model().config, vocab)
    ids, targets = random_ids(32, 24, 1, vocab), random_ids(32, 24, 2, vocab)
    valid = torch.ones_like(ids, dtype=torch.bool)
    for steps in (1, 2, 3):
        found = loss_of(model, (ids, targets, valid), Behaviour(recursion_steps=steps))
        assert float(found.last_sum) / targets.numel() == pytest.approx(math.log(vocab), rel=0.03)
