"""Token-by-token decoding with caches equals the full forward; greedy generation."""

from __future__ import annotations

import itertools

import pytest
import torch

from agentforge.model.behaviour import ALL_STEPS, Behaviour
from agentforge.model.decode import Decoder, generate_greedy
from agentforge.model.language_model import CognateLM
from tests.unit.tiny_models import VOCAB, random_ids, tiny_model

torch.set_num_threads(1)


def check(model: CognateLM, behaviour: Behaviour, ids: torch.Tensor) -> torch.Tensor:
    """Compare both forms; returns the steps taken, (B, T)."""
    full = model(ids, behaviour)
    decoder = Decoder(model, behaviour, ids.shape[0])
    logits = torch.stack([decoder.step(ids[:, t]) for t in range(ids.shape[1])], dim=1)
    expected = model.embedding.logits(full.answer)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(torch.stack(decoder.steps, 1), full.steps)
    assert decoder.position == ids.shape[1]
    return full.steps


@pytest.mark.parametrize(
    ("core", "latent", "budget", "batch"),
    list(itertools.product((1, 2), (1, 2), (0.0, 0.7), (1, 3))),
)
def test_decoding_equals_the_full_forward(
    core: int, latent: int, budget: float, batch: int
) -> None:
    model = tiny_model(11, n_core=core, latent_steps=latent, recursion_steps=4)
    steps = check(model, Behaviour(0.5, budget), random_ids(batch, 23))
    assert steps.unique().numel() > 1
    if batch > 1:
        assert bool((steps[0] != steps[1]).any()), "rows must halt at different steps"


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.9, 1.0, ALL_STEPS])
@pytest.mark.parametrize("window", [2, 7, 40])
def test_decoding_at_other_thresholds_and_windows(threshold: float, window: int) -> None:
    model = tiny_model(12, window=window, recursion_steps=5)
    check(model, Behaviour(threshold), random_ids(2, 19, seed=3))


@pytest.mark.parametrize("chunk", [1, 3, 16, 50])
def test_decoding_keeps_the_chunks_of_training(chunk: int) -> None:
    config = tiny_model().config.memory.model_copy(update={"chunk": chunk, "layers": (0, 1)})
    model = tiny_model(13, memory=config)
    check(model, Behaviour(0.5), random_ids(2, 21))


def test_decoding_with_other_recursion_steps_than_the_models() -> None:
    model = tiny_model(14)
    for steps in (1, 2, 6):
        check(model, Behaviour(ALL_STEPS, recursion_steps=steps), random_ids(2, 9))


def test_decoding_without_any_memory_layer_and_with_one_token() -> None:
    model = tiny_model(15, memory=tiny_model().config.memory.model_copy(update={"layers": ()}))
    check(model, Behaviour(0.5), random_ids(3, 1))
    check(model, Behaviour(0.5), random_ids(2, 12))


def test_the_cache_holds_no_more_than_the_window() -> None:
    model = tiny_model()
    decoder = Decoder(model, Behaviour(), 2)
    for t in range(12):
        decoder.step(random_ids(2, 12)[:, t])
        for cache in [*decoder.prelude, *itertools.chain.from_iterable(decoder.core)]:
            assert cache.key is not None
            assert cache.key.shape == (2, 3, min(t + 1, 5), 8)


END = 0


def reference(
    model: CognateLM, prompt: list[int], behaviour: Behaviour, most: int, forbidden: tuple[int, ...]
) -> list[int]:
    """Greedy continuation by full forwards."""
    ids = list(prompt)
    while len(ids) - len(prompt) < most and len(ids) <= model.config.context:
        logits = model.embedding.logits(model(torch.tensor([ids]), behaviour).answer)[0, -1]
        logits[list(forbidden)] = float("-inf")
        token = int(logits.argmax())
        if token == END:
            break
        ids.append(token)
    return ids[len(prompt) :]


PROMPTS = [[4], [1, 2, 3, 4, 5, 6, 7, 8, 9], [20, 3], [9, 9, 9, 9], [21, 5, 1, 2, 2, 17]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("forbidden", [(), (2, 7, 22)])
def test_generation_in_one_batch_equals_one_by_one_and_the_full_forward(
    seed: int, forbidden: tuple[int, ...]
) -> None:
    model, behaviour = tiny_model(20 + seed, recursion_steps=4), Behaviour(0.5)
    batch = generate_greedy(model, PROMPTS, behaviour, 10, END, forbidden)
    for prompt, found in zip(PROMPTS, batch, strict=True):
        assert generate_greedy(model, [prompt], behaviour, 10, END, forbidden) == [found]
        assert found == reference(model, prompt, behaviour, 10, forbidden)
        assert not set(found) & {*forbidden, END}
        assert len(found) <= 10


def always(model: CognateLM, tokens: list[int]) -> None:
    """Make the model prefer these tokens, in this order, whatever it reads."""
    feature = torch.zeros(model.config.embedding_rank)
    feature[0] = 1.0
    with torch.no_grad():
        model.embedding.table[:, 0] = -5.0
        for rank, token in enumerate(tokens):
            model.embedding.table[token, 0] = 10.0 - rank
    model.embedding.features = lambda x: feature.expand(*x.shape[:-1], -1)  # type: ignore[method-assign]


def test_stop_token_forbidden_tokens_and_limits() -> None:
    model = tiny_model()
    always(model, [END, 5, 8])
    assert generate_greedy(model, [[1], [2, 3]], Behaviour(), 6, END) == [[], []]
    assert generate_greedy(model, [[1], [2, 3]], Behaviour(), 3, 9) == [[END] * 3] * 2
    assert generate_greedy(model, [[1]], Behaviour(), 4, 9, (END,)) == [[5] * 4]
    assert generate_greedy(model, [[1]], Behaviour(), 4, 9, (END, 5)) == [[8] * 4]
    assert generate_greedy(model, [[1]], Behaviour(), 0, 9) == [[]]


def test_generation_stops_at_the_context() -> None:
    model = tiny_model()
    always(model, [5])
    limit = model.config.context
    prompts = [[1] * (limit - 2), [1] * limit, [1] * (limit + 3), [1]]
    found = generate_greedy(model, prompts, Behaviour(), 50, END)
    # The token predicted at the last position is still written; nothing can be read after it.
    assert [len(f) for f in found] == [3, 0, 0, limit]
    assert set(sum(found, [])) == {5}


def test_weights_and_training_mode_are_left_alone() -> None:
    model = tiny_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    generate_greedy(model, [[1, 2], [VOCAB - 1]], Behaviour(), 5, END)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
