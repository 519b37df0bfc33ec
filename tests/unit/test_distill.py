"""Prompt baking by KL: torch's own, cross-entropy as a special case, nothing to learn from self."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from agentforge.config.load import load_config
from agentforge.data.prepare import prepare
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.quietstar.data import prepare_reasoning
from agentforge.phases.quietstar.policy import question_pool
from agentforge.phases.quietstar.prompt_bake import start, take_step
from agentforge.thinking.distill import baking_kl, written_logits
from agentforge.thinking.thought import ThoughtReader
from tests.unit.thinking_models import VOCAB, small_model


def test_kl_is_torchs_and_cross_entropy_is_its_special_case() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(30, 9, generator=generator)
    teacher = torch.randn(30, 9, generator=generator)
    expected = F.kl_div(
        F.log_softmax(student, -1), F.log_softmax(teacher, -1), log_target=True, reduction="none"
    )
    torch.testing.assert_close(baking_kl(student, teacher), expected.sum(-1).mean())
    labels = torch.randint(9, (30,), generator=generator)
    certain = torch.full((30, 9), -1e4).scatter(1, labels[:, None], 1e4)
    torch.testing.assert_close(baking_kl(student, certain), F.cross_entropy(student, labels))


def test_a_student_equal_to_its_teacher_without_a_prompt_gets_no_gradient() -> None:
    model = small_model()
    behaviour = Behaviour(2.0, 1.0)
    prompts, written = [[3, 4], [5, 6, 7]], [[8, 9, 10], [11]]
    with torch.no_grad():
        teacher = written_logits(model, behaviour, prompts, written, 0)
    student = written_logits(model, behaviour, prompts, written, 0)
    assert student.shape == (4, VOCAB)
    assert not teacher.requires_grad
    loss = baking_kl(student, teacher)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert all(float(p.grad.abs().max()) < 1e-5 for p in model.parameters() if p.grad is not None)


def test_rows_of_two_prompts_belong_together_and_padding_does_not_count() -> None:
    model = small_model()
    behaviour = Behaviour(2.0, 1.0)
    written = [[8, 9, 10], [11, 12]]
    with torch.no_grad():
        found = written_logits(model, behaviour, [[3], [5, 6, 7, 4]], written, 0)
        alone = [
            written_logits(model, behaviour, [p], [w], 0)
            for p, w in zip([[3], [5, 6, 7, 4]], written, strict=True)
        ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_steps_of_prompt_baking_bring_the_student_to_the_prompted_teacher() -> None:
    config = load_config(preset="smoke", env={}, sets=["quietstar.baking.kl_steps=12"]).config
    data = prepare(config)
    reasoning = prepare_reasoning(config, data)
    torch.manual_seed(0)
    model = CognateLM(config.model, data.tokenizer.vocab_size)
    training = start(config, model)
    before = {n: t.clone() for n, t in training.teacher.state_dict().items()}
    pool = [q for q in question_pool(config, reasoning) if "doubt" in q.allowed]
    reader = ThoughtReader(data.tokenizer)
    losses = [take_step(training, config, Behaviour(), reader, pool, "doubt").kl for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(t, before[n]) for n, t in training.teacher.state_dict().items())
