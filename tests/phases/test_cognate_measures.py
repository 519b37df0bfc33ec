"""What Phase 1 measures: items, diversity, task vectors, gates, stages, artefacts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from agentforge.config.schema import SPECIALTIES
from agentforge.data.corpus import Corpus
from agentforge.errors import CheckpointError, RunSuspended
from agentforge.evals.items import measure
from agentforge.events import ArtifactSaved
from agentforge.model.behaviour import ALL_STEPS, Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.cognate import gates as cognate_gates
from agentforge.phases.cognate.artifacts import forget, load_trained, save_trained
from agentforge.phases.cognate.diversity import Profile, disagreement, diversity, task_vectors
from agentforge.phases.cognate.measure import Measured, block_evaluations, measure_model
from agentforge.phases.cognate.phase import APART, _too_alike
from agentforge.phases.cognate.stages import ablation_stage, base_stage, specialist_stages
from agentforge.run.manifest import Resolved, load_manifest
from tests.phases.cognate_rig import Rig, config_of, equal, weights, world

torch.set_num_threads(1)


def model(seed: int = 0) -> CognateLM:
    """A smoke-sized model whose head halts tokens at different steps."""
    torch.manual_seed(seed)
    made = CognateLM(config_of().model, world().tokenizer.vocab_size).eval()
    with torch.no_grad():
        made.halting.logit.weight.normal_(std=2.0)
        made.embedding.down.weight.normal_(std=0.5)
    return made


# --- per-item measurement -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["recall", "story"])
@pytest.mark.parametrize("batch", [1, 7, 100])
def test_items_are_measured_as_one_by_one(kind: str, batch: int) -> None:
    one, data, behaviour = model(), world(), Behaviour(0.5, 0.7)
    corpus = data.held_out["search"][kind]
    found = measure(one, corpus, behaviour, data.tokenizer.pad_id, batch)
    theta_sum, tokens = 0.0, 0
    for i in range(len(corpus)):
        ids = torch.from_numpy(corpus.item(i).astype(np.int64))[None]
        first = int(corpus.first_target[i])
        result = one(ids[:, :-1], behaviour)
        logits = one.embedding.logits(result.answer)[0, first - 1 :]
        labels = ids[0, first:]
        loss = float(F.cross_entropy(logits, labels, reduction="sum").detach())
        assert found.loss_sum[i] == pytest.approx(loss, rel=1e-4)
        assert bool(found.correct[i]) is bool((logits.argmax(-1) == labels).all())
        assert found.targets[i] == len(labels)
        assert found.tokens[i] == ids.shape[1] - 1
        assert found.steps[i] == pytest.approx(float(result.steps.float().mean()), rel=1e-6)
        tokens += ids.shape[1] - 1
    assert found.step_counts.sum() == tokens
    assert found.step_counts[0] == 0
    assert (found.step_counts[1:] > 0).all(), "the head is constant: the test shows nothing"
    mean = float((found.step_counts * np.arange(len(found.step_counts))).sum() / tokens)
    assert found.mean_steps == pytest.approx(mean, rel=1e-6)
    assert np.array_equal(found.difficulty, corpus.difficulty)
    theta_sum = float(np.nansum(found.position_writes * _tokens_by_position(corpus, one)))
    assert found.writes == pytest.approx(theta_sum / tokens, rel=1e-6)
    assert 0 < found.writes < 0.7
    assert 0 < found.gate < 1


def _tokens_by_position(corpus: Corpus, one: CognateLM) -> np.ndarray:
    lengths = np.diff(corpus.offsets) - 1
    return (np.arange(one.config.context)[:, None] < lengths).sum(1)


def test_without_a_memory_nothing_is_written() -> None:
    one, data = model(), world()
    found = measure(
        one, data.held_out["search"]["total"], Behaviour(0.5, 0.0), data.tokenizer.pad_id, 16
    )
    assert np.isnan(found.writes)
    assert np.isnan(found.gate)
    assert np.isnan(found.position_writes).all()


def test_measuring_leaves_the_model_as_it_was() -> None:
    one, data = model().train(), world()
    before = {k: v.clone() for k, v in one.state_dict().items()}
    calls = []
    corpus = data.held_out["search"]["total"]
    measure(one, corpus, Behaviour(), data.tokenizer.pad_id, 5, lambda: calls.append(1))
    assert one.training
    assert equal(before, dict(one.state_dict()))
    assert len(calls) >= len(corpus) / 5


def test_a_models_profile_counts_blocks_and_budget() -> None:
    one, data = model(), world()
    found = measure_model("m", one, Behaviour(0.5, 0.5), data, "search", 50, timed=False)
    config = one.config
    steps = sum(float((r.steps * r.tokens).sum()) for r in found.results.values())
    tokens = sum(int(r.tokens.sum()) for r in found.results.values())
    assert found.profile.halting_steps == pytest.approx(steps / tokens)
    assert found.profile.block_evaluations == pytest.approx(
        config.n_prelude + config.n_core * config.latent_steps * steps / tokens
    )
    assert (
        block_evaluations(one, config.recursion_steps) == config.n_prelude + config.recursion_steps
    )
    assert 0 < found.profile.memory_usage < 1
    all_steps = Behaviour(ALL_STEPS, 1.0, recursion_steps=1)
    flat = measure_model("m", one, all_steps, data, "search", 50, only=["total"], timed=False)
    assert list(flat.results) == ["total"]
    assert flat.profile.halting_steps == 1.0
    assert np.isnan(flat.ms_per_token)
    loss, count = found.loss(["total", "recall"])
    parts = [found.results[n] for n in ("total", "recall")]
    assert count == sum(int(r.targets.sum()) for r in parts)
    assert loss == pytest.approx(sum(float(r.loss_sum.sum()) for r in parts) / count)
    assert found.accuracy(["total", "recall"]) == np.mean([r.accuracy for r in parts])


# --- diversity ------------------------------------------------------------------------------------


def test_the_diversity_formula_with_the_documents_numbers() -> None:
    """Halting 8.2, 9.5, 6.1: (9.5 - 6.1) / 7.9333 = .4286."""
    spread = diversity(
        {
            "reasoning": Profile(8.2, 0.2, 10.0),
            "memory": Profile(9.5, 0.5, 10.0),
            "speed": Profile(6.1, 0.2, 10.0),
        }
    )
    assert spread.halting_steps == pytest.approx(3.4 / (23.8 / 3))
    assert spread.memory_usage == pytest.approx(0.3 / 0.3)
    assert spread.block_evaluations == 0.0
    assert spread.score == pytest.approx((3.4 / (23.8 / 3) + 1.0 + 0.0) / 3)


def test_equal_models_have_no_diversity_and_zeros_divide_nothing() -> None:
    same = diversity({n: Profile(2.0, 0.0, 5.0) for n in SPECIALTIES})
    assert same.score == 0.0


def test_disagreement_is_that_of_the_closest_pair() -> None:
    correct = {
        "a": np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool),
        "b": np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool),
        "c": np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=bool),
    }
    assert disagreement(correct) == 1 / 8
    assert disagreement({n: correct[n] for n in "ac"}) == 1.0


def test_task_vectors_with_hand_numbers() -> None:
    base = {"x": torch.tensor([3.0, 0.0]), "y": torch.tensor([[4.0]])}
    models = {
        "a": {"x": torch.tensor([4.0, 0.0]), "y": torch.tensor([[4.0]])},
        "b": {"x": torch.tensor([3.0, 2.0]), "y": torch.tensor([[4.0]])},
        "c": {"x": torch.tensor([1.0, 0.0]), "y": torch.tensor([[4.0]])},
    }
    found = task_vectors(base, models)
    assert found.relative_norm == pytest.approx({"a": 0.2, "b": 0.4, "c": 0.4})
    assert found.cosine == pytest.approx({"a/b": 0.0, "a/c": -1.0, "b/c": 0.0})


# --- the low-diversity intervention ---------------------------------------------------------------


def measured(**steps: float) -> dict[str, Measured]:
    """Models that differ in their profile only."""
    return {
        name: Measured(name, Behaviour(), {}, Profile(value, value, value), float("nan"))
        for name, value in steps.items()
    }


ALIKE = {"base": 5.0, "reasoning": 2.0, "memory": 2.1, "speed": 1.9}
APART_ENOUGH = {"base": 2.0, "reasoning": 3.0, "memory": 2.0, "speed": 1.0}
IN_RUN = 'gates.not_in_run=["cognate.gsm8k"]'


@pytest.mark.parametrize(("policy", "again"), [("auto", True), ("ignore", False)])
def test_specialists_that_are_too_alike_are_trained_again_once(
    tmp_path: Path, policy: str, again: bool
) -> None:
    rig = Rig(tmp_path, IN_RUN, f"on_alert={policy}")
    assert _too_alike(rig.bench, measured(**ALIKE)) is again
    (alert,) = rig.alerts("low_diversity")
    assert "score 0.100, wanted above 0.3" in alert.detail, "the base does not count"
    assert rig.actions() == ["train_apart" if again else "continue"]
    rig.context.manifest.resolved[APART] = Resolved(value=True, reason="test")
    assert not _too_alike(rig.bench, measured(**ALIKE))
    assert len(rig.alerts()) == 1


def test_low_diversity_told_to_stop_suspends(tmp_path: Path) -> None:
    rig = Rig(tmp_path, IN_RUN, "on_alert=stop")
    with pytest.raises(RunSuspended):
        _too_alike(rig.bench, measured(**ALIKE))


def test_enough_diversity_or_a_gate_not_in_the_run_asks_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path, IN_RUN)
    assert not _too_alike(rig.bench, measured(**APART_ENOUGH))
    declared = Rig(tmp_path)
    assert not _too_alike(declared.bench, measured(**ALIKE))
    rig.bench.finishing = True
    assert not _too_alike(rig.bench, measured(**ALIKE))
    assert rig.alerts() == declared.alerts() == []


# --- gates of the phase ---------------------------------------------------------------------------


def test_gates_of_skills_fail_closed_and_lead_is_over_both_others() -> None:
    config = config_of(IN_RUN)
    data = world()
    results = {}
    for name, share in (("reasoning", 1.0), ("memory", 0.5), ("speed", 0.25)):
        items = measure(model(), data.held_out["search"]["total"], Behaviour(), 0, 50)
        right = np.arange(len(items.correct)) < share * len(items.correct)
        m = measured(**{name: 1.0})[name]
        results[name] = replace(m, results={"total": replace(items, correct=right)})
    found = {g.name: g for g in cognate_gates.own_skill_gates(config, results, ["total"])}
    own, lead = found["cognate.own_skill.reasoning"], found["cognate.own_skill_lead.reasoning"]
    assert (own.value, own.status, own.n) == (1.0, "met", config.data.world.search_items)
    assert (lead.value, lead.status) == (0.5, "met")
    for name in ("memory", "speed"):  # their own skills were not measured
        assert found[f"cognate.own_skill.{name}"].status == "missed"
        assert found[f"cognate.own_skill_lead.{name}"].status == "missed"
    assert cognate_gates.gsm8k_gate(config, None, 0).status == "not_in_run"
    assert cognate_gates.memory_gate(config, None, 0).status == "missed"
    assert cognate_gates.memory_gate(config, 0.25, 100).status == "met"
    assert cognate_gates.memory_gate(config, 0.2499, 100).status == "missed"
    assert cognate_gates.shape_gate(config, 3).status == "met"
    assert cognate_gates.shape_gate(config, 2).status == "missed"


def test_a_declared_group_takes_all_its_gates_out_and_no_other() -> None:
    config = config_of('gates.not_in_run=["cognate.own_skill"]')
    specialists = measured(reasoning=1.0, memory=1.0, speed=1.0)
    statuses = {g.name: g.status for g in cognate_gates.own_skill_gates(config, specialists, [])}
    for name in SPECIALTIES:
        assert statuses[f"cognate.own_skill.{name}"] == "not_in_run"
        assert statuses[f"cognate.own_skill_lead.{name}"] == "missed"


# --- stages ---------------------------------------------------------------------------------------


def test_specialists_differ_in_data_and_behaviour_never_in_shape() -> None:
    config = config_of()
    base, stages = base_stage(config), specialist_stages(config)
    assert [s.model for s in stages] == list(SPECIALTIES)
    assert {s.parent for s in stages} == {"base"}
    assert len({s.seed for s in (base, *stages)}) == 4
    priors = {s.model: s.objective.prior for s in (base, *stages)}
    assert priors["reasoning"] < priors["base"] == priors["memory"] < priors["speed"]
    for stage in stages:
        chosen = config.cognate.specialists[stage.model]  # type: ignore[index]
        assert stage.behaviour == Behaviour(chosen.halting_threshold, chosen.write_budget)
        assert stage.optim.muon_lr == config.cognate.optim.muon_lr * chosen.lr_share
        assert stage.optim.adamw_lr == config.cognate.optim.adamw_lr * chosen.lr_share
        assert max(stage.mix, key=lambda k: stage.mix[k]) == chosen.skill
        assert not stage.curriculum


def test_further_apart_means_larger_own_shares_and_more_extreme_priors() -> None:
    config = config_of()
    for before, after in zip(
        specialist_stages(config), specialist_stages(config, apart=True), strict=True
    ):
        skill = config.cognate.specialists[before.model].skill  # type: ignore[index]
        total = sum(before.mix.values())
        assert sum(after.mix.values()) == pytest.approx(1.0)
        assert after.mix[skill] > before.mix[skill] / total
        a, b = before.objective.prior, after.objective.prior
        assert (b < a) if a < 0.5 else (b > a)
        assert 0 < b < 1


def test_ablations_leave_one_thing_out_and_keep_the_rest() -> None:
    config = config_of()
    base = base_stage(config)
    found = {
        n: ablation_stage(config, n, 17)
        for n in ("memory_off", "one_step", "halting_off", "grokfast_off")
    }
    for name, stage in found.items():
        assert (stage.model, stage.parent, stage.steps, stage.seed) == (name, None, 17, base.seed)
        assert stage.mix == base.mix
        assert stage.max_extensions == 0
    assert found["memory_off"].behaviour == replace(base.behaviour, write_budget=0.0)
    assert found["one_step"].behaviour == replace(base.behaviour, recursion_steps=1)
    assert found["halting_off"].behaviour.halting_threshold > 1
    assert not found["halting_off"].objective.enabled
    assert found["grokfast_off"].optim == base.optim.model_copy(update={"grokfast_lambda": 0.0})
    assert found["grokfast_off"].behaviour == base.behaviour


# --- artefacts ------------------------------------------------------------------------------------


def test_a_finished_model_comes_back_with_what_it_came_from(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    training = rig.training(saved=False)
    assert load_trained(rig.context, training.stage) is None
    save_trained(rig.context, training, rig.bench.data.tokenizer, "")
    base = load_trained(rig.context, training.stage)
    assert base is not None
    assert equal(base.weights, dict(sorted(weights(training).items())))
    training.stage = specialist_stages(rig.config)[0]
    training.step = 8
    save_trained(rig.context, training, rig.bench.data.tokenizer, base.sha256)
    child = load_trained(rig.context, training.stage)
    assert child is not None
    assert child.metadata["base_sha256"] == base.sha256
    assert (child.steps, child.behaviour) == (8, training.stage.behaviour)
    assert child.metadata["tokenizer"] == rig.bench.data.tokenizer.fingerprint
    names = [e.name for e in rig.of(ArtifactSaved) if isinstance(e, ArtifactSaved)]
    assert names == ["cognate.base", "cognate.reasoning"]
    assert set(load_manifest(rig.layout).artifacts) == set(names)


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_a_damaged_model_is_never_used(tmp_path: Path, damage: str) -> None:
    rig = Rig(tmp_path)
    training = rig.training(saved=False)
    save_trained(rig.context, training, rig.bench.data.tokenizer, "")
    path = rig.layout.root / rig.context.manifest.artifacts["cognate.base"].path
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[:-7])
    else:
        data[-3] ^= 1
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match=damage):
        load_trained(rig.context, training.stage)


def test_forgotten_models_leave_manifest_and_disk(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    training = rig.training(saved=False)
    save_trained(rig.context, training, rig.bench.data.tokenizer, "")
    path = rig.layout.root / rig.context.manifest.artifacts["cognate.base"].path
    forget(rig.context, ["base", "never_there"])
    assert not path.exists()
    assert load_manifest(rig.layout).artifacts == {}
    assert load_trained(rig.context, training.stage) is None
