"""Distillation: the formula against autograd, and a student that is its teacher learns nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from agentforge.config.schema import MemoryConfig, ModelConfig
from agentforge.model.behaviour import Behaviour
from agentforge.model.cross_entropy import weighted_cross_entropy
from agentforge.model.distillation import distillation_loss, soft_cross_entropy
from agentforge.model.language_model import CognateLM

SHAPES = ModelConfig(
    d_model=32,
    n_heads=2,
    n_prelude=1,
    ffn_width=48,
    embedding_rank=8,
    context=16,
    window=8,
    memory=MemoryConfig(layers=(0,), width=16, chunk=4, gate_rank=4),
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("chunk", [0, 1, 4])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_soft_cross_entropy_is_the_formula(share: float, chunk: int) -> None:
    features, table = draw(9, 6).requires_grad_(), draw(20, 6, seed=1).requires_grad_()
    wise, wise_table = draw(9, 8), draw(20, 8)
    labels = torch.randint(0, 20, (9,), generator=torch.Generator().manual_seed(0))
    weights = draw(9).abs()
    total, ce, kl = soft_cross_entropy(
        features, table, wise, wise_table, labels, weights, share, chunk
    )
    (2 * total).backward()
    found = features.grad, table.grad
    features.grad = table.grad = None
    log_q = F.log_softmax(features @ table.T, -1)
    p = F.softmax(wise @ wise_table.T, -1)
    plain = F.nll_loss(log_q, labels, reduction="none")
    wanted = (weights * (share * plain - (1 - share) * (p * log_q).sum(-1))).sum()
    (2 * wanted).backward()
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(ce, plain)
    torch.testing.assert_close(kl, (p * (p.log() - log_q)).sum(-1))
    torch.testing.assert_close(found[0], features.grad)
    torch.testing.assert_close(found[1], table.grad)


def test_labels_alone_are_the_ordinary_loss() -> None:
    features, table = draw(9, 6), draw(20, 6, seed=1)
    labels, weights = torch.arange(9), draw(9).abs()
    total, ce, _ = soft_cross_entropy(features, table, features, table, labels, weights, 1.0, 4)
    wanted, each = weighted_cross_entropy(features, table, labels, weights, 0)
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(ce, each)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(0, 20, (3, 12), generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-1, 1)
    targets[:, -1] = -100
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[2, 8:] = False
    targets[2, 7:] = -100
    return ids, targets, valid


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    torch.manual_seed(0)
    teacher = CognateLM(SHAPES, 20)
    student = copy.deepcopy(teacher)
    ids, targets, valid = batch()
    parts = distillation_loss(
        student, teacher, ids, targets, valid, Behaviour(), 30, 32,
        label_share=0.0, halting_weight=0.5, early_stride=2,
    )  # fmt: skip
    assert float(parts.kl_sum) == pytest.approx(0.0, abs=1e-4)
    parts.total.backward()
    assert all(float(p.grad.abs().max()) < 1e-5 for p in student.parameters() if p.grad is not None)


def test_a_few_steps_bring_a_student_to_its_teacher_halting_included() -> None:
    torch.manual_seed(0)
    teacher = CognateLM(SHAPES, 20)
    teacher.embedding.table.data *= 30  # a fresh model says nothing
    teacher.halting.logit.bias.data.fill_(1.0)
    student = CognateLM(SHAPES, 20)
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    ids, targets, valid = batch()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    found = []
    for _ in range(60):
        optimizer.zero_grad()
        parts = distillation_loss(
            student, teacher, ids, targets, valid, Behaviour(), 30, 32,
            label_share=0.1, halting_weight=1.0,
        )  # fmt: skip
        parts.total.backward()
        optimizer.step()
        found.append(float(parts.kl_sum))
    assert found[-1] < 0.5 * found[0]
    with torch.no_grad():
        wanted = teacher.halting(teacher.answers(ids, Behaviour())[0])[valid].sigmoid().mean()
        reached = student.halting(student.answers(ids, Behaviour())[0])[valid].sigmoid().mean()
    assert float((wanted - reached).abs()) < 0.1
    assert all(torch.equal(t, before[n]) for n, t in teacher.state_dict().items())
