"""Coherence as a filter: incoherent thoughts teach nothing, and nobody is paid for coherence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agentforge.config.load import load_config
from agentforge.data.prepare import prepare
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.quietstar.data import prepare_reasoning
from agentforge.phases.quietstar.policy import (
    PolicyStep,
    question_pool,
    start_policy,
    take_policy_step,
)
from agentforge.run.tensor_file import load_model
from tests.phases.bitnet_models import write_form_learner


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learner") / "form.safetensors"
    write_form_learner(path)
    return path


def one_step(learner: Path, least: float) -> tuple[PolicyStep, float]:
    """A step without replay and KL weight; also the gradient's norm."""
    sets = [
        f"quietstar.reinforce.least_coherence={least}",
        "quietstar.reinforce.replay=0",
        "quietstar.reinforce.kl=0",
        "quietstar.reinforce.prompts=16",
        "quietstar.max_new_tokens=30",
    ]
    config = load_config(preset="smoke", env={}, sets=sets).config
    data = prepare(config)
    reasoning = prepare_reasoning(config, data)
    model = CognateLM(config.model, data.tokenizer.vocab_size)
    model.load_state_dict(load_model(learner).tensors)
    torch.manual_seed(0)
    policy = start_policy(config, model, reasoning)
    pool = question_pool(config, reasoning)
    result = take_policy_step(policy, config, Behaviour(), reasoning, pool, 8, 4096)
    return result, result.grad_norm


def test_samples_below_the_limit_teach_nothing(learner: Path) -> None:
    everything, norm = one_step(learner, 0.0)
    some, _ = one_step(learner, 0.3)
    nothing, silent = one_step(learner, 1.0)
    assert everything.filtered == 0.0
    assert 0.0 < some.filtered < 1.0
    assert nothing.filtered == 1.0
    assert norm > 0.0
    assert silent == 0.0
    # The same samples, the same reward: coherence is paid for nowhere.
    assert everything.reward == some.reward == nothing.reward
