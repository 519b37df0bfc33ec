"""Models that cannot be merged are refused with numbers; what goes wrong later costs nothing."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agentforge.config.load import load_config
from agentforge.data.batching import micro_batches
from agentforge.data.corpus import encode
from agentforge.data.world import SKILLS, generate
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.errors import ConfigError, ExitCode, PreflightError, TrainingError
from agentforge.events import Alert, Event
from agentforge.merge.apply import merge, plain_mean
from agentforge.merge.combo import COMBOS
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.model.loss import HaltingObjective, training_loss
from agentforge.phases.evomerge.barrier import scan_barriers
from agentforge.phases.evomerge.breed import first_recipe
from agentforge.phases.evomerge.evaluator import LocalEvaluator, WorkerEvaluator
from agentforge.phases.evomerge.fitness import reference, terms
from agentforge.phases.evomerge.measuring import Job, Settings, block_count
from agentforge.phases.evomerge.members import Candidate, weights_sha256
from agentforge.phases.evomerge.parents import Family, Parent, load_family
from agentforge.phases.evomerge.search import Search, make_members, place_for_weights
from agentforge.phases.evomerge.worker import Start
from agentforge.run.context import RunContext
from agentforge.run.control import Control
from agentforge.run.layout import create_run_dir
from agentforge.run.manifest import new_manifest, save_manifest
from agentforge.sizing import FITNESS_BANDS
from tests.phases.evomerge_family import (
    around,
    random_weights,
    sets,
    write,
    write_family,
)
from tests.phases.smoke_runs import console, events, finish, hashes, new_run

torch.set_num_threads(1)


def context_of(folder: Path, *changes: str) -> tuple[RunContext, list[Event]]:
    """A context whose events are kept."""
    config = load_config(preset="smoke", env={}, sets=list(changes)).config
    layout = create_run_dir(folder, "smoke", config.seed)
    manifest = new_manifest(layout, config, {})
    save_manifest(layout, manifest)
    seen: list[Event] = []
    control = Control(layout, config, seen.append, manifest=manifest)
    return RunContext(layout, manifest, seen.append, control, False), seen


def load(folder: Path, changes: list[str]) -> Family:
    (folder / "run").mkdir(exist_ok=True)
    context, _ = context_of(folder / "run", *changes)
    shapes = {n: t.shape for n, t in random_weights().items()}
    return load_family(context, world_tokenizer(), shapes)


def refusal(folder: Path, changes: list[str]) -> str:
    with pytest.raises(PreflightError) as caught:
        load(folder, changes)
    assert caught.value.exit_code == ExitCode.PREFLIGHT
    assert caught.value.remedy
    return str(caught.value)


def test_a_good_family_is_read_as_it_was_written(tmp_path: Path) -> None:
    family = load(tmp_path, write_family(tmp_path))
    assert [p.name for p in family.models] == ["one", "two", "three"]
    assert family.models[0].behaviour == Behaviour(0.6, 0.5)
    wanted = around(random_weights(), 2)
    assert all(torch.equal(family.models[1].weights[n], t) for n, t in wanted.items())


@pytest.mark.parametrize("count", [2, 4])
def test_two_or_four_models_are_a_wrong_setting(tmp_path: Path, count: int) -> None:
    write_family(tmp_path)
    names = ("one", "two", "three", "one")[:count]
    with pytest.raises(ConfigError, match=f"names {count} files; exactly three"):
        context_of(tmp_path, *sets(tmp_path, names))


def test_a_foreign_base_is_named_with_both_hashes(tmp_path: Path) -> None:
    changes = write_family(tmp_path)
    other = write(tmp_path / "other.safetensors", random_weights(9), "base")
    base_line = f"evomerge.base={other.path}"
    text = refusal(tmp_path, [*changes[:2], base_line])
    assert text.count("it branched from the base") == 3
    assert other.sha256[:12] in text
    assert "require_common_base" in text
    load(tmp_path, [*changes[:2], base_line, "evomerge.require_common_base=false"])


def test_a_file_that_is_missing_cut_or_no_model(tmp_path: Path) -> None:
    changes = write_family(tmp_path)
    path = tmp_path / "two.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "no whole safetensors file" in refusal(tmp_path, changes)
    path.write_bytes(b"")
    assert "no whole safetensors file" in refusal(tmp_path, changes)
    path.unlink()
    assert "two.safetensors is missing" in refusal(tmp_path, changes)


def test_one_file_twice(tmp_path: Path) -> None:
    write_family(tmp_path)
    text = refusal(tmp_path, sets(tmp_path, ("one", "two", "one")))
    assert "names one file twice" in text


def test_every_problem_of_every_model_is_told_at_once(tmp_path: Path) -> None:
    changes = write_family(tmp_path)
    base = load(tmp_path, changes).base
    weights = around(base.weights, 1)
    nan = weights | {"answer.weight": weights["answer.weight"].clone()}
    nan["answer.weight"][0, 0] = float("nan")
    write(tmp_path / "one.safetensors", nan, "one", base.sha256)
    write(tmp_path / "two.safetensors", weights, "two", base.sha256, tokenizer="gpt2-xyz")
    less = {n: t for n, t in weights.items() if n != "answer.weight"}
    write(tmp_path / "three.safetensors", less, "three", base.sha256, behaviour="?")
    text = refusal(tmp_path, changes)
    assert "one: answer.weight: 1 of" in text
    assert "two: its tokenizer is gpt2-xyz" in text
    assert "three: 1 tensors are missing" in text
    assert "three: the file does not say how the model is run" in text


def test_models_of_other_shapes(tmp_path: Path) -> None:
    changes = write_family(tmp_path)
    base = load(tmp_path, changes).base
    wide = around(base.weights, 1) | {"answer.weight": torch.zeros(3, 5)}
    write(tmp_path / "one.safetensors", wide, "one", base.sha256)
    text = refusal(tmp_path, changes)
    assert "one: 1 tensors have other shapes" in text
    assert "answer.weight is (3, 5), not (32, 32)" in text


def test_phase_2_without_phase_1(tmp_path: Path) -> None:
    text = refusal(tmp_path, ['phases=["evomerge"]'])
    assert "this run has no base, reasoning, memory, speed" in text
    assert "evomerge.models" in text


def test_a_refused_run_ends_with_its_exit_code_and_can_go_on(tmp_path: Path) -> None:
    """The whole engine: exit 3, no traceback; with the file restored the same run goes on."""
    changes = write_family(tmp_path / "files")
    path = tmp_path / "files" / "two.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    layout = new_run(tmp_path, *changes, "evomerge.control_steps=0", until="evomerge")
    assert finish(layout) == ExitCode.PREFLIGHT
    text = console(layout)
    assert "two.safetensors is no whole safetensors file" in text
    assert "Traceback" not in text
    path.write_bytes(whole)
    assert finish(layout) == ExitCode.OK, console(layout)
    assert "evomerge.champion" in hashes(layout)
    assert len(events(layout, "run_started")) == 2


def settings() -> Settings:
    tokenizer = world_tokenizer()
    corpora = {s: encode(s, s, generate(s, "search", 12, seed=0), tokenizer, 96) for s in SKILLS}
    return Settings(
        {split: corpora for split in ("search", "rescore", "report")}, True, tokenizer.pad_id, 64
    )


def search_of(context: RunContext, parents: list[dict], base: dict) -> Search:
    """A workbench around given weights, measuring in this process."""
    model = CognateLM(context.config.model, world_tokenizer().vocab_size)
    family = Family(
        Parent("base", base, Behaviour(), ""),
        tuple(Parent(n, w, Behaviour(), "") for n, w in zip("abc", parents, strict=True)),
    )
    evaluator = LocalEvaluator(model, settings())
    count = block_count(model)
    good = evaluator.measure([Job(base, Behaviour(), "search")] * 3, lambda: None)
    against = reference([terms(a.results, True, count, 1) for a in good], FITNESS_BANDS[0])
    return Search(
        context=context,
        family=family,
        base=base,
        parents={weights_sha256(p): p for p in parents},
        reference=against,
        race_reference=against,
        evaluator=evaluator,
        blocks=3,
        block_count=count,
        exact=True,
        room=8,
    )


def test_degenerate_children_become_the_linear_mean_and_are_counted(tmp_path: Path) -> None:
    base = random_weights()
    huge = {n: t if n != "answer.weight" else t + 3e38 for n, t in base.items()}
    parents = [huge | {"latent_norm.weight": base["latent_norm.weight"] + i} for i in range(3)]
    context, seen = context_of(tmp_path)
    search = search_of(context, parents, base)
    recipe = first_recipe(context.config.evomerge, COMBOS[0], Behaviour(), 3, 1)
    bad = Candidate(
        first_recipe(
            context.config.evomerge.model_copy(update={"scale": 3.0}), COMBOS[0], Behaviour(), 3, 1
        ),
        search.parent_hashes,
        "combo",
    )
    good = Candidate(recipe, search.parent_hashes, "combo")
    made = make_members(search, {}, [bad, good], 0, 0, None, lambda: None)
    assert "NaN or Inf" in made[0].fallback
    assert made[0].fitness == 0.0
    alerts = [e for e in seen if isinstance(e, Alert) and e.code == "degenerate_merge"]
    assert any("Child 0" in a.title for a in alerts)
    search.add(made)
    again = search.weights(made[0].sha256)
    assert weights_sha256(again) == made[0].sha256


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    base = random_weights()
    parents = [around(base, i) for i in range(3)]
    context, _ = context_of(tmp_path)
    search = search_of(context, parents, base)
    recipe = first_recipe(context.config.evomerge, COMBOS[3], Behaviour(), 3, 1)
    one = Candidate(recipe, search.parent_hashes, "combo")
    (first,) = make_members(search, {}, [one], 0, 0, None, lambda: None)
    calls: list[int] = []
    measure = search.evaluator.measure
    search.evaluator.measure = lambda jobs, between: measure(  # type: ignore[method-assign]
        (calls.append(1) or j for j in jobs), between
    )
    again = make_members(search, {first.key: first}, [one, one], 3, 5, None, lambda: None)
    assert calls == []
    assert [(m.number, m.generation, m.fitness) for m in again] == [
        (5, 3, first.fitness),
        (6, 3, first.fitness),
    ]


def test_a_race_drops_what_is_behind_on_the_first_items(tmp_path: Path) -> None:
    base = random_weights()
    parents = [around(base, i) for i in range(3)]
    context, _ = context_of(tmp_path)
    search = search_of(context, parents, base)
    recipe = first_recipe(context.config.evomerge, COMBOS[3], Behaviour(), 3, 1)
    one = Candidate(recipe, search.parent_hashes, "combo")
    (out,) = make_members(search, {}, [one], 1, 0, 1e9, lambda: None)
    (whole,) = make_members(search, {}, [one], 1, 0, 0.0, lambda: None)
    assert (out.raced, out.items) == (True, 3 * context.config.evomerge.race_items)
    assert (whole.raced, whole.items) == (False, 36)
    assert out.fitness == pytest.approx(whole.first_fitness)


def overfit(seed: int) -> dict[str, torch.Tensor]:
    """A small model that has learnt the 36 items of `settings` by heart."""
    tokenizer = world_tokenizer()
    examples = [e for skill in SKILLS for e in generate(skill, "search", 12, seed=0)]
    corpus = encode("all", "all", examples, tokenizer, 96)
    items = [("all", i) for i in range(len(corpus))]
    batches = micro_batches({"all": corpus}, items, 4096, tokenizer.pad_id)
    targets, valid = sum(b.target_count for b in batches), sum(b.valid_count for b in batches)
    config = load_config(preset="smoke", env={}).config.model
    torch.manual_seed(seed)
    model = CognateLM(config, tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(90):
        optimizer.zero_grad()
        for b in batches:
            parts = training_loss(
                model,
                b.ids,
                b.targets,
                b.valid,
                Behaviour(),
                HaltingObjective(prior=0.4, beta=0.0),
                targets,
                valid,
            )
            parts.total.backward()
        optimizer.step()
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def test_models_of_two_random_starts_are_refused_and_their_mean_knows_nothing(
    tmp_path: Path,
) -> None:
    one, other = overfit(1), overfit(2)
    context, _ = context_of(tmp_path)
    search = search_of(context, [one, around(one, 3, 1e-4), other], one)
    family, evaluator = search.family, search.evaluator
    jobs = [Job(p.weights, p.behaviour, "search") for p in family.models]
    answers = evaluator.measure(jobs, lambda: None)
    ends = {p.name: a.results for p, a in zip(family.models, answers, strict=True)}
    with pytest.raises(PreflightError) as caught:
        scan_barriers(context, family, ends, evaluator, lambda: None)
    text = str(caught.value)
    assert "a and c" in text
    assert "b and c" in text
    assert "a and b" not in text
    assert "nats per token above their line" in text
    forced, _ = context_of(tmp_path, "evomerge.require_common_base=false")
    barriers = scan_barriers(forced, family, ends, evaluator, lambda: None)
    heights = {b.pair: b.height for b in barriers}
    assert heights["a", "b"] < 0.05
    assert heights["a", "c"] > 1.0
    middle = plain_mean([one, other])
    scores = []
    for weights in (one, other, middle):
        (answer,) = evaluator.measure([Job(weights, Behaviour(), "search")], lambda: None)
        scores.append(search.terms(answer.results).accuracy)
    assert min(scores[:2]) > 0.6
    assert scores[2] < 0.05


def start_of(context: RunContext) -> Start:
    return Start(os.getpid(), context.config.model, world_tokenizer().vocab_size, settings())


def test_a_lost_worker_costs_nothing_and_the_last_one_ends_the_run(tmp_path: Path) -> None:
    base = random_weights()
    context, seen = context_of(tmp_path)
    evaluator = WorkerEvaluator(start_of(context), 2, seen.append)
    try:
        jobs = [Job(around(base, i), Behaviour(), "search") for i in range(4)]
        wanted = evaluator.measure(jobs, lambda: None)
        os.kill(evaluator.pids[0], signal.SIGKILL)
        found = evaluator.measure(jobs, lambda: None)
        for a, b in zip(wanted, found, strict=True):
            for name in a.results:
                assert (a.results[name].loss_sum == b.results[name].loss_sum).all()
        alerts = [e for e in seen if isinstance(e, Alert)]
        assert [a.code for a in alerts] == ["worker"]
        assert "1 left" in alerts[0].detail
        os.kill(evaluator.pids[0], signal.SIGKILL)
        with pytest.raises(TrainingError, match="all processes that measure"):
            evaluator.measure(jobs, lambda: None)
    finally:
        evaluator.close()


def test_leaving_in_the_middle_does_not_mix_up_answers(tmp_path: Path) -> None:
    base = random_weights()
    context, seen = context_of(tmp_path)
    evaluator = WorkerEvaluator(start_of(context), 1, seen.append)
    try:
        one, two = (Job(around(base, i), Behaviour(), "search") for i in (1, 2))
        (wanted,) = evaluator.measure([two], lambda: None)
        calls = iter(range(100))

        def leave() -> None:
            if next(calls) == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluator.measure([one, one], leave)
        (found,) = evaluator.measure([two], lambda: None)
        for name in wanted.results:
            assert (found.results[name].loss_sum == wanted.results[name].loss_sum).all()
        (pid,) = evaluator.pids
    finally:
        evaluator.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_population_lives_where_there_is_room() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    gib = 2**30
    assert place_for_weights(cuda, gib, 8, {"cuda": 24 * gib, "cpu": 0}) == (cuda, 8)
    assert place_for_weights(cuda, gib, 8, {"cuda": 23 * gib, "cpu": 100 * gib}) == (cpu, 8)
    assert place_for_weights(cpu, gib, 8, {"cpu": 16 * gib}) == (cpu, 4)
    assert place_for_weights(cpu, gib, 8, {"cpu": 4 * gib}) == (cpu, 0)


def test_weights_hash_tells_names_shapes_and_values() -> None:
    one = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2)}
    digest = weights_sha256(one)
    assert weights_sha256(dict(reversed(one.items()))) == digest
    assert weights_sha256(one | {"a": one["a"].T.contiguous().T}) == digest
    for other in (
        one | {"a": torch.arange(6.0).view(3, 2)},
        one | {"b": torch.tensor([0.0, 1.0])},
        {"a": one["a"], "c": one["b"]},
        one | {"b": torch.zeros(2, dtype=torch.float64)},
    ):
        assert weights_sha256(other) != digest


def test_a_long_descent_is_merged_once_an_ancestor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = random_weights()
    parents = [around(base, i + 1) for i in range(3)]
    context, _ = context_of(tmp_path)
    search = search_of(context, parents, base)
    recipe = first_recipe(context.config.evomerge, COMBOS[0], Behaviour(), 3, 1)
    known = {s: search.parents[s] for s in search.parent_hashes}
    hashes = list(search.parent_hashes)
    whole: dict[str, torch.Tensor] = {}
    (first,) = make_members(
        search, {}, [Candidate(recipe, search.parent_hashes, "combo")], 1, 0, 1e9, lambda: None
    )
    for number in range(30):
        sources = tuple(hashes[-3:])
        whole = merge(base, [known[s] for s in sources], recipe)
        sha256 = weights_sha256(whole)
        candidate = Candidate(recipe, sources, "losers")
        search.add([replace(first, number=number + 2, sha256=sha256, candidate=candidate)])
        known[sha256] = whole
        hashes.append(sha256)
    search.kept = {}
    merged = []

    def counted(*arguments: object) -> dict[str, torch.Tensor]:
        merged.append(1)
        return merge(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("agentforge.phases.evomerge.search.merge", counted)
    found = search.weights(hashes[-1])
    assert len(merged) == 30
    assert all(torch.equal(found[n], t) for n, t in whole.items())
