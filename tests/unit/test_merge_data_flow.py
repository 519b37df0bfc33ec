"""The data-flow path: identity, a path by hand, scales, bounds, mutation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from agentforge.data.corpus import encode
from agentforge.data.world import SKILLS, generate
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.evals.items import measure
from agentforge.merge.data_flow import Flow, FlowLM, first_flow, mutate_flow
from agentforge.model.attention import window_mask
from agentforge.model.behaviour import Behaviour
from tests.unit.tiny_models import VOCAB, tiny_model

MODELS = [tiny_model(seed) for seed in range(3)]
BLOCKS = 2
IDS = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))


def test_the_first_path_is_the_first_models_own_forward():
    model = FlowLM(MODELS, first_flow(3, BLOCKS, repeats=2)).eval()
    for behaviour in (Behaviour(), Behaviour(0.2, 0.3), Behaviour(2.0, 0.0)):
        wanted, found = MODELS[0](IDS, behaviour), model(IDS, behaviour)
        assert torch.equal(found.answer, wanted.answer)
        assert torch.equal(found.steps, wanted.steps)


def by_hand(layers: list[tuple[int, int, float]]) -> torch.Tensor:
    first = MODELS[0]
    h = first.embedding(IDS)
    mask = window_mask(IDS.shape[1], first.config.window, IDS.device)
    for model, block, scale in layers:
        h = MODELS[model].prelude[block](scale * h, first.rope(IDS.shape[1]), mask, 0.7, None, "x")
    return h


def test_a_path_through_three_models_with_scales():
    flow = first_flow(3, BLOCKS, repeats=2)
    on = {3, 1 + 6, 4 + 6}  # model 1 block 1, model 0 block 1, model 2 block 0
    scales = [list(row) for row in flow.scales]
    scales[0][3], scales[4][1], scales[2][4] = 0.9, 1.3, 0.5
    flow = replace(
        flow,
        indicator=tuple(s in on for s in range(12)),
        scales=tuple(tuple(row) for row in scales),
    )
    assert flow.layers == (3, 1, 4)
    assert flow.steps == ((1, 1, 0.9), (0, 1, 1.3), (2, 0, 0.5))
    with torch.no_grad():
        found = FlowLM(MODELS, flow).eval().encode(IDS, 0.7)
        assert torch.equal(found, by_hand([(1, 1, 0.9), (0, 1, 1.3), (2, 0, 0.5)]))


def test_a_path_is_causal():
    flow = replace(first_flow(3, BLOCKS), indicator=(True, False, True, True, False, True))
    model = FlowLM(MODELS, flow).eval()
    changed = IDS.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % VOCAB
    a, b = model(IDS, Behaviour()).answer, model(changed, Behaviour()).answer
    torch.testing.assert_close(a[:, :7], b[:, :7], rtol=0, atol=1e-6)
    assert float((a[:, 7:] - b[:, 7:]).abs().max()) > 1e-3


def test_mutants_are_paths_and_one_layer_at_least_stays():
    rng = np.random.default_rng(0)
    flow = replace(first_flow(3, 1), indicator=(True, False, False))
    seen = set()
    for _ in range(200):
        child = mutate_flow(flow, rng)
        assert len(child.layers) >= 1
        assert child.scales != flow.scales
        seen.add(child.indicator)
    assert seen == {(True, False, False), (True, True, False), (True, False, True)}


def test_json_and_what_is_no_path():
    flow = mutate_flow(first_flow(3, BLOCKS, 2), np.random.default_rng(1))
    assert Flow.from_json(flow.to_json()) == flow
    with pytest.raises(ValueError, match="one layer chosen"):
        replace(flow, indicator=(False,) * 12)
    with pytest.raises(ValueError, match="indicator of 5 slots"):
        replace(flow, indicator=(True,) * 5)
    with pytest.raises(ValueError, match="7 rows of 6 numbers"):
        replace(flow, scales=((1.0,) * 6,) * 6)
    for bad in (-0.1, 2.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"scale {bad} is not within 0.0 to 2.0"):
            replace(flow, scales=((bad,) * 6, *flow.scales[1:]))
    for text in ("{}", "[]"):
        with pytest.raises(ValueError, match="not a data flow"):
            Flow.from_json(text)


def test_scales_stay_within_their_bounds():
    rng = np.random.default_rng(0)
    flow = first_flow(1, 1)
    low = replace(flow, scales=((0.0,), (1.0,)))
    high = replace(flow, scales=((2.0,), (1.0,)))
    for _ in range(50):
        assert 0.0 <= mutate_flow(low, rng).scales[0][0] < 0.5
        assert 1.5 < mutate_flow(high, rng).scales[0][0] <= 2.0


def test_a_path_through_other_models_is_refused():
    with pytest.raises(ValueError, match=r"3 models of 2 layers; these have \[2, 2\]"):
        FlowLM(MODELS[:2], first_flow(3, BLOCKS))
    with pytest.raises(ValueError, match="3 models of 1 layers"):
        FlowLM(MODELS, first_flow(3, 1))


def test_a_path_is_measured_as_a_model_is():
    tokenizer = world_tokenizer()
    corpora = encode(SKILLS[0], SKILLS[0], generate(SKILLS[0], "search", 12, seed=0), tokenizer, 32)
    models = [tiny_model(seed, vocab=tokenizer.vocab_size) for seed in range(2)]
    path = FlowLM(models, first_flow(2, BLOCKS))
    wanted = measure(models[0], corpora, Behaviour(), tokenizer.pad_id, 4)
    found = measure(path, corpora, Behaviour(), tokenizer.pad_id, 4)
    assert np.array_equal(found.loss_sum, wanted.loss_sum)
    assert np.array_equal(found.correct, wanted.correct)
    assert found.mean_steps == wanted.mean_steps
    path.flow = replace(path.flow, indicator=(True, False, False, True))
    other = measure(path, corpora, Behaviour(), tokenizer.pad_id, 4)
    assert not np.array_equal(other.loss_sum, wanted.loss_sum)
