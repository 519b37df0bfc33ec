"""The baking loss: masked to thought and answer, blind to padding, answers weighted exactly."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from agentforge.data.batching import IGNORE, micro_batches
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.model.behaviour import Behaviour
from agentforge.model.loss import HaltingObjective, training_loss
from agentforge.phases.quietstar.data import encode_thoughts
from agentforge.reasoning.builtin import examples
from tests.unit.thinking_models import small_model

TOKENIZER = world_tokenizer()
CORPUS = encode_thoughts("doubt", examples("doubt", "train", 12, 1, 0.0, 1.0), TOKENIZER, 96)
OFF = HaltingObjective(0.4, 0.0, enabled=False)


def test_loss_covers_thought_answer_and_end_and_nothing_of_the_prompt() -> None:
    for i in range(len(CORPUS)):
        item = CORPUS.item(i).tolist()
        start = item.index(TOKENIZER.thinking_ids[0])
        end = item.index(TOKENIZER.thinking_ids[1])
        assert CORPUS.answer_start is not None
        assert int(CORPUS.first_target[i]) == start
        assert int(CORPUS.answer_start[i]) == end + 1
        assert item[-1] == TOKENIZER.eos_id
    (batch,) = micro_batches({"doubt": CORPUS}, [("doubt", 0)], 4096, TOKENIZER.pad_id)
    wanted = batch.targets[0] != IGNORE
    assert (
        batch.targets[0][wanted].tolist() == CORPUS.item(0).tolist()[int(wanted.nonzero()[0]) + 1 :]
    )
    answer = batch.targets[0][batch.answer[0]]
    assert TOKENIZER.decode(answer.tolist()).strip() in {f"{n}." for n in range(10)}


def test_padding_changes_neither_loss_nor_gradient() -> None:
    model = small_model(window=16, context=96, vocab=TOKENIZER.vocab_size)
    rows = [("doubt", i) for i in range(4)]
    batches = micro_batches({"doubt": CORPUS}, rows, 4096, TOKENIZER.pad_id)
    total = sum(b.target_count for b in batches)
    valid = sum(b.valid_count for b in batches)

    def loss(pad: int) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        value = 0.0
        for b in batches:
            ids = F.pad(b.ids, (0, pad), value=TOKENIZER.pad_id)
            targets = F.pad(b.targets, (0, pad), value=IGNORE)
            mask = F.pad(b.valid, (0, pad), value=False)
            parts = training_loss(model, ids, targets, mask, Behaviour(), OFF, total, valid)
            parts.total.backward()  # type: ignore[no-untyped-call]
            value += float(parts.total.detach())
        return value, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, padded = loss(0), loss(7)
    assert plain[0] == pytest.approx(padded[0], rel=1e-6)
    for a, b in zip(plain[1], padded[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 3.0, 0.5])
def test_the_weight_of_answers_is_exact(weight: float) -> None:
    model = small_model(window=16, context=96, vocab=TOKENIZER.vocab_size)
    (batch,) = micro_batches({"doubt": CORPUS}, [("doubt", 3)], 4096, TOKENIZER.pad_id)
    weights = torch.where(batch.answer, weight, torch.ones(()))
    with torch.no_grad():
        found = training_loss(
            model,
            batch.ids,
            batch.targets,
            batch.valid,
            Behaviour(),
            OFF,
            batch.loss_weight(weight),
            batch.valid_count,
            weights=weights,
        )
        answer = model.answers(batch.ids, Behaviour())[-1]
        wanted = batch.targets != IGNORE
        ce = F.cross_entropy(
            model.embedding.logits(answer[wanted]), batch.targets[wanted], reduction="none"
        )
    w = weights[wanted]
    assert float(found.total) == pytest.approx(float((w * ce).sum() / w.sum()), rel=1e-5)
    assert float(found.last_sum) == pytest.approx(float(ce.sum()), rel=1e-5)


def test_what_does_not_fit_is_left_out_and_counted() -> None:
    found = examples("mece", "train", 30, 1, 0.0, 1.0)
    lengths = [len(encode_thoughts("x", [e], TOKENIZER, 96).tokens) for e in found]
    limit = sorted(lengths)[15]
    corpus = encode_thoughts("x", found, TOKENIZER, limit)
    assert len(corpus) == sum(n <= limit for n in lengths)
    assert corpus.cut == sum(n > limit for n in lengths) > 0
