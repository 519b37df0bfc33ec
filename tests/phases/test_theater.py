"""The negative control: a model baked on shuffled thoughts thinks in perfect form and must fail."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from agentforge.config.load import load_config
from agentforge.data.batching import micro_batches
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.model.loss import HaltingObjective, training_loss
from agentforge.optim.hybrid import HybridOptimizer
from agentforge.phases.quietstar.data import encode_thoughts
from agentforge.reasoning.builtin import examples, tasks
from agentforge.thinking.battery import Battery, run_battery
from agentforge.thinking.questions import ask, question_of_task
from agentforge.thinking.thought import ThoughtReader

STRATEGIES = ("doubt", "mece")
STEPS, BATCH = 90, 48


@pytest.fixture(scope="module")
def shuffled() -> tuple[CognateLM, Behaviour, ThoughtReader]:
    """Baked on thoughts of other problems, with the answers of its own."""
    config = load_config(preset="smoke", env={}).config
    shapes = config.model.model_copy(update={"d_model": 64, "ffn_width": 128, "n_heads": 4})
    tokenizer = world_tokenizer()
    corpora = {}
    for name in STRATEGIES:
        found = examples(name, "train", 600, 1, 0.0, 1.0)
        thoughts = [e.reasoning for e in found]
        random.Random(0).shuffle(thoughts)
        mixed = [
            e.model_copy(update={"reasoning": t}) for e, t in zip(found, thoughts, strict=True)
        ]
        corpora[name] = encode_thoughts(name, mixed, tokenizer, 96)
    torch.manual_seed(0)
    model = CognateLM(shapes, tokenizer.vocab_size)
    behaviour = Behaviour(0.5, 1.0)
    optim = config.cognate.optim.model_copy(update={"warmup_steps": 5})
    optimizer = HybridOptimizer(
        dict(model.named_parameters()), model.hidden_matrices(), optim, STEPS
    )
    luck = random.Random(1)
    for step in range(STEPS):
        items = [(luck.choice(STRATEGIES), luck.randrange(600)) for _ in range(BATCH)]
        batches = micro_batches(corpora, items, 8192, tokenizer.pad_id)
        targets, valid = (
            sum(b.target_count for b in batches),
            sum(b.valid_count for b in batches),
        )
        optimizer.zero_grad()
        for b in batches:
            loss = training_loss(
                model, b.ids, b.targets, b.valid, behaviour, HaltingObjective(0.4, 0.02),
                targets, valid,
            )  # fmt: skip
            loss.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step(step)
    return model.eval(), behaviour, ThoughtReader(tokenizer)


def battery(model: CognateLM, behaviour: Behaviour, reader: ThoughtReader) -> Battery:
    questions = [question_of_task(t) for s in STRATEGIES for t in tasks(s, "search", 60, 0)]
    return run_battery(
        model, behaviour, reader, questions, temperature=1.0, seed=1, max_new_tokens=40
    )


def test_shuffled_thoughts_keep_the_form_and_fail_the_battery(
    shuffled: tuple[CognateLM, Behaviour, ThoughtReader],
) -> None:
    model, behaviour, reader = shuffled
    questions = [question_of_task(t) for s in STRATEGIES for t in tasks(s, "search", 60, 0)]
    judged = ask(model, behaviour, reader, questions, temperature=1.0, seed=1, max_new_tokens=40)
    # It fails because its thoughts do nothing, not because it cannot think in form.
    assert judged.share(judged.converged) > 0.7
    found = battery(model, behaviour, reader)
    failed = {t.name for t in found.tests if not t.passed}
    assert not found.passed
    assert {"correlation", "likelihood_gain", "js_divergence"} <= failed
    assert "ablation" in failed or "swapped" in failed
    assert found.value("length") >= 5.0
    assert found.accuracy["own"] < 0.3


def test_a_model_that_writes_nothing_fails_every_test_that_needs_thoughts() -> None:
    config = load_config(preset="smoke", env={}).config
    tokenizer = world_tokenizer()
    torch.manual_seed(0)
    model = CognateLM(config.model, tokenizer.vocab_size)
    found = battery(model, Behaviour(0.5, 1.0), ThoughtReader(tokenizer))
    failed = {t.name for t in found.tests if not t.passed}
    assert {"divergence", "correlation", "length", "follows_corruption"} <= failed
    assert not found.passed


def test_removing_a_thought_changes_the_answers_distribution(
    shuffled: tuple[CognateLM, Behaviour, ThoughtReader],
) -> None:
    from agentforge.thinking.given import answers_given

    model, behaviour, reader = shuffled
    tokenizer = reader.tokenizer
    prompt = tokenizer.encode("Q: and doubt: add 3 5 9.\nA:")
    opened = [*prompt, reader.start, reader.by_name["doubt"]]
    thought = tokenizer.encode(" 3 5 8 sure 8 9")
    answer = [*tokenizer.encode(" 7."), tokenizer.eos_id]
    whole, empty = (
        answers_given(
            model,
            behaviour,
            [[*opened, *t, reader.end]],
            [answer],
            temperature=1.0,
            pad_id=tokenizer.pad_id,
        )
        for t in (thought, [])
    )
    assert whole.log_p[0] != empty.log_p[0]
    assert abs(whole.first - empty.first).sum() > 1e-3
    assert whole.first.sum() == pytest.approx(1.0, abs=1e-5)


def test_scores_of_given_answers_do_not_depend_on_padding_or_batch() -> None:
    from agentforge.thinking.given import answers_given

    config = load_config(preset="smoke", env={}).config
    tokenizer = world_tokenizer()
    torch.manual_seed(3)
    model = CognateLM(config.model, tokenizer.vocab_size)
    prefixes = [[5, 6, 7], [8] * 20, [9, 10, 11, 12, 13]]
    answers = [[20, 21], [22, 23, 24], [25]]

    def of(rows: list[int], temperature: float = 0.7) -> list[float]:
        found = answers_given(
            model,
            Behaviour(0.5, 1.0),
            [prefixes[i] for i in rows],
            [answers[i] for i in rows],
            temperature=temperature,
            pad_id=tokenizer.pad_id,
        )
        return found.log_p.tolist()

    together = of([0, 1, 2])
    for i in range(3):
        assert of([i])[0] == pytest.approx(together[i], abs=1e-4)
        ids = torch.tensor([[*prefixes[i], *answers[i]]])
        with torch.no_grad():
            states = model.run(ids[:, :-1], Behaviour(0.5, 1.0)).answer[0]
        log_p = (model.embedding.logits(states).float() / 0.7).log_softmax(-1)
        at = torch.arange(len(prefixes[i]) - 1, ids.shape[1] - 1)
        expected = log_p[at].gather(1, ids[0, at + 1][:, None]).sum().detach()
        assert together[i] == pytest.approx(float(expected), abs=1e-4)


def test_questions_without_a_corruptible_thought_do_not_count_as_followed() -> None:
    config = load_config(preset="smoke", env={}).config
    tokenizer = world_tokenizer()
    torch.manual_seed(0)
    model = CognateLM(config.model, tokenizer.vocab_size)
    questions = [
        replace(question_of_task(t), answer="nothing.") for t in tasks("mece", "search", 20, 0)
    ]
    found = run_battery(
        model, Behaviour(), ThoughtReader(tokenizer), questions,
        temperature=1.0, seed=1, max_new_tokens=8,
    )  # fmt: skip
    test = next(t for t in found.tests if t.name == "follows_corruption")
    assert not test.passed
