"""The 25M model in literal numbers, and the roles every later phase relies on."""

from __future__ import annotations

import math

import pytest
import torch

from agentforge.config.load import load_config
from agentforge.config.schema import ModelConfig
from agentforge.model.behaviour import Behaviour
from agentforge.model.count import ParameterCount, count_model, count_parameters
from agentforge.model.language_model import CognateLM
from agentforge.model.linear import Projection
from agentforge.optim.groups import split_parameters
from tests.unit.tiny_models import tiny_config, tiny_model

torch.set_num_threads(1)

GPT2_WITH_THINKING = 50_257 + 12


def preset(name: str) -> ModelConfig:
    return load_config(preset=name, env={}).config.model


def test_the_25m_model_in_numbers() -> None:
    count = count_parameters(preset("full"), GPT2_WITH_THINKING)
    assert count == ParameterCount(
        total=25_141_476,
        embedding=4_825_824,  # 50,269 x 96
        embedding_maps=98_304,  # 96 x 512, there and back
        attention=8_388_608,  # 8 blocks x 4 x 512 x 512
        ffn=11_010_048,  # 8 blocks x 3 x 512 x 896
        memory=524_288,  # 4 x 512 x 256
        answer=262_144,  # 512 x 512
        gates=20_739,  # 2 x 512 x 16 + 512, filter 3 x 768, rates 3 x 512 + 3
        halting=1_025,
        norms=10_496,  # 16 x 512, memory 256, head, latent, and two injections of 512 each
        packed_bytes=14_959_292,  # 20,185,088 codes / 4 + 61 scales x 4 + 4,956,388 x 2
    )
    assert count.ternary == 20_185_088
    assert count.fp16 == 4_956_388
    assert 24e6 < count.total < 26e6
    assert 0.15 <= count.embedding / count.total <= 0.20
    assert 0.15 <= (count.embedding + count.embedding_maps) / count.total <= 0.20
    assert count.fp16 / count.total <= 0.21
    assert count.fp32_bytes / count.packed_bytes >= 6.0


def test_the_6_gb_preset_is_the_same_model() -> None:
    assert preset("gtx1660") == preset("full")


@pytest.mark.parametrize("name", ["smoke", "demo", "laptop", "full"])
def test_counting_without_allocating_equals_counting_the_model(name: str) -> None:
    config = preset(name)
    counted = count_parameters(config, 300)
    if name != "full":
        model = CognateLM(config, 300)
        assert counted == count_model(model)
        assert counted.total == sum(p.numel() for p in model.parameters())
    assert counted.ternary + counted.fp16 == counted.total


def test_demo_is_as_small_as_it_says() -> None:
    assert 0.5e6 < count_parameters(preset("demo"), 300).total < 1.5e6


@pytest.mark.parametrize("name", ["smoke", "demo", "laptop", "full"])
def test_hidden_matrices_are_the_projections_and_two_dimensional(name: str) -> None:
    with torch.device("meta"):
        model = CognateLM(preset(name), 300)
    hidden = model.hidden_matrices()
    parameters = dict(model.named_parameters())
    assert all(p is parameters[n] and p.ndim == 2 for n, p in hidden.items())
    inside = {id(m.weight) for m in model.modules() if isinstance(m, Projection)}
    assert {id(p) for p in hidden.values()} == inside
    kept = set(parameters) - set(hidden)
    words = ("embedding", "norm", "halting", "gate", "rates", "filter", "inject")
    assert all(any(w in n for w in words) for n in kept), kept
    for block in [*(f"prelude.{i}" for i in range(model.config.n_prelude)), "core.0"]:
        for part in ("attention.q", "attention.k", "attention.v", "attention.out"):
            assert f"{block}.{part}.weight" in hidden
        for part in ("ffn.gate", "ffn.up", "ffn.down"):
            assert f"{block}.{part}.weight" in hidden
    layer = model.config.memory.layers[0]
    assert {n for n in hidden if ".memory." in n} == {
        f"prelude.{layer}.memory.{p}.weight" for p in ("k", "q", "v", "out")
    }
    ternary = sum(p.numel() for p in hidden.values())
    assert ternary == count_model(model).ternary


def test_every_parameter_has_exactly_one_role() -> None:
    model = tiny_model()
    named = dict(model.named_parameters())
    roles = split_parameters(named, model.hidden_matrices())
    groups = (roles.hidden, roles.decayed, roles.plain)
    assert sum(len(g) for g in groups) == len(named)
    assert set().union(*groups) == set(named)
    assert set(roles.hidden) == set(model.hidden_matrices())
    assert not any("embedding" in n for n in roles.hidden)


def test_packed_size_from_the_shapes() -> None:
    """Codes of two bits, every row padded to 128 inputs, an fp32 scale a matrix, the rest fp16."""
    model = tiny_model()
    hidden = model.hidden_matrices()
    size = sum(p.shape[0] * math.ceil(p.shape[1] / 128) * 128 // 4 + 4 for p in hidden.values())
    size += 2 * sum(p.numel() for n, p in model.named_parameters() if n not in hidden)
    assert count_model(model).packed_bytes == size


def test_models_of_one_configuration_have_equal_shapes_whatever_their_seed() -> None:
    first, second = tiny_model(1), tiny_model(2)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (first, second)]
    assert shapes[0] == shapes[1]
    assert "rope_cos" not in shapes[0], "tables are computed, not stored"
    assert not torch.equal(first.embedding.table, second.embedding.table)


@pytest.mark.parametrize(
    "changes",
    [
        {"ffn_activation": "silu"},
        {"n_core": 3, "latent_steps": 2},
        {"memory": tiny_config().memory.model_copy(update={"layers": ()})},
        {"memory": tiny_config().memory.model_copy(update={"layers": (0, 1)})},
    ],
)
def test_odd_configurations_count_too(changes: dict[str, object]) -> None:
    model = tiny_model(**changes)
    count = count_model(model)
    assert count.total == sum(p.numel() for p in model.parameters())
    assert (count.memory > 0) is bool(model.config.memory.layers)
    model.answers(torch.zeros(1, 3, dtype=torch.int64), Behaviour())[-1].sum().backward()
