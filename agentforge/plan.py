"""What a run would do: ``--dry-run``. Counts the real model without allocating it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue

from agentforge.config.load import Loaded
from agentforge.config.schema import PhaseName, RunConfig
from agentforge.errors import DataError, PreflightError
from agentforge.hardware import measure_machine
from agentforge.preflight import VOCAB_ROWS, Check, check_run, disk_bytes_needed, planned_phases
from agentforge.resources import accumulation_steps, resolve_training
from agentforge.sizing import category, checkpoint_bytes, longest_sequence, size_mb
from agentforge.tables import size_text, text_table


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One model that the run trains."""

    model: str
    steps: int
    extra_steps: int
    """At most so many more while the fitness is short."""
    mix: str


@dataclass(frozen=True, slots=True)
class DataPlan:
    """One dataset that the run would train on, or not."""

    dataset: str
    category: str
    status: str
    records: int | None
    note: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything ``--dry-run`` tells.

    Attributes:
        preset: Name of the preset.
        phases: Phases in order.
        seed: Seed of everything random.
        parameters: Role -> parameters, ``total`` first.
        packed_bytes: Size after Phase 4, computed from the shapes.
        size_category: Row of the adaptive numbers.
        trainings: The models of Phase 1 in order, then the control of Phase 2.
        merges: Models Phase 2 measures in its search at most; 0: no Phase 2.
        batch_tokens: Tokens of one optimiser step at most.
        accumulation: Forward and backward passes of one step; 0 when that cannot be told.
        resources: Resolved values with reasons, one line each.
        checkpoint_bytes: Size of one checkpoint at most.
        disk_bytes: What the run writes, computed.
        data_source: ``world`` or ``records``.
        data: The datasets; empty for the built-in world.
        thresholds: Gate thresholds of the configuration.
        not_in_run: Gates the preset does not show.
        checks: Pre-flight.
    """

    preset: str
    phases: tuple[str, ...]
    seed: int
    parameters: dict[str, int]
    packed_bytes: int
    size_category: str
    trainings: tuple[TrainingPlan, ...]
    merges: int
    batch_tokens: int
    accumulation: int
    resources: tuple[str, ...]
    checkpoint_bytes: int
    disk_bytes: int
    data_source: str
    data: tuple[DataPlan, ...]
    thresholds: dict[str, float]
    not_in_run: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        """True when every check is ok."""
        return all(check.ok for check in self.checks)


def build_plan(loaded: Loaded, directory: Path) -> Plan:
    """Work out what a run would do and need; nothing is written.

    Args:
        loaded: The configuration.
        directory: The folder of runs.
    """
    from agentforge.model.count import count_parameters

    config = loaded.config
    rows = _vocab_rows(config)
    count = count_parameters(config.model, rows)
    phases = planned_phases(config)
    length = longest_sequence(config)
    batch_tokens = config.cognate.batch_size * length
    checks = check_run(config, directory, n_params=count.total, vocab_size=rows)
    lines: tuple[str, ...] = ()
    accumulation = 0
    try:
        resources = resolve_training(
            config.resources,
            config.model,
            n_params=count.total,
            vocab_size=rows,
            batch_size=config.cognate.batch_size,
            sequence_length=length,
            machine=measure_machine(config.resources.device),
            grokfast=config.cognate.optim.grokfast_lambda > 0,
        )
    except PreflightError as error:
        if all(check.ok for check in checks):
            checks = (*checks, Check("resources", False, error.message, error.remedy))
    else:
        lines = tuple(resources.lines())
        accumulation = accumulation_steps(batch_tokens, resources.micro_batch_tokens.value)
    data, data_check = _data(config)
    if data_check is not None:
        checks = (*(c for c in checks if c.name != "data"), data_check)
    roles = asdict(count)
    packed = roles.pop("packed_bytes")
    gates = config.gates.model_dump(exclude={"not_in_run"})
    return Plan(
        preset=config.preset,
        phases=phases,
        seed=config.seed,
        parameters=roles,
        packed_bytes=packed,
        size_category=category(count.total).name,
        trainings=_trainings(config, phases),
        merges=_merges(config) if "evomerge" in phases else 0,
        batch_tokens=batch_tokens,
        accumulation=accumulation,
        resources=lines,
        checkpoint_bytes=checkpoint_bytes(count.total),
        disk_bytes=disk_bytes_needed(config, phases, count.total),
        data_source=config.data.source,
        data=data,
        thresholds={name: float(value) for name, value in gates.items()},
        not_in_run=config.gates.not_in_run,
        checks=checks,
    )


def plan_json(plan: Plan) -> dict[str, JsonValue]:
    """The plan as JSON, with ``ready``."""
    return {**asdict(plan), "ready": plan.ready}


def plan_text(plan: Plan) -> str:
    """The plan for people."""
    total = plan.parameters["total"]
    parts = [
        f"preset {plan.preset}, seed {plan.seed}, phases: {', '.join(plan.phases)}",
        f"model: {total:,} parameters ({plan.size_category}), {size_mb(total):.1f} MiB in FP32, "
        f"{size_text(plan.packed_bytes)} packed",
        "  " + ", ".join(f"{k} {v:,}" for k, v in plan.parameters.items() if k != "total"),
        "",
        text_table(
            ("training", "steps", "at most more", "mix"),
            [(t.model, t.steps, t.extra_steps, t.mix) for t in plan.trainings],
        ),
        *([f"merge search: {plan.merges:,} models measured at most"] if plan.merges else []),
        "",
        f"one step: {plan.batch_tokens:,} tokens at most, in {plan.accumulation or '?'} pass(es)",
        *(f"  {line}" for line in plan.resources),
        f"disk: {size_text(plan.disk_bytes)} at the fullest moment, "
        f"{size_text(plan.checkpoint_bytes)} a checkpoint at most",
    ]
    if plan.data:
        rows = [(d.dataset, d.category, d.status, d.records, d.note) for d in plan.data]
        parts += ["", text_table(("dataset", "category", "found", "records", "note"), rows)]
    else:
        parts += [f"data: {plan.data_source}"]
    parts += [
        "",
        "gates: " + ", ".join(f"{name} {value:g}" for name, value in plan.thresholds.items()),
        f"not in this run: {', '.join(plan.not_in_run) or 'none'}",
        "",
        text_table(("check", "ok", "found"), [(c.name, c.ok, c.detail) for c in plan.checks]),
    ]
    parts += [f"-> {check.name}: {check.remedy}" for check in plan.checks if not check.ok]
    return "\n".join(parts)


def _merges(config: RunConfig) -> int:
    """Members the search makes when nothing ends it early."""
    evomerge = config.evomerge
    children = {"elites": evomerge.population - 2, "six_and_two": evomerge.population}
    return evomerge.population + evomerge.generations * children.get(evomerge.scheme, 2)


def _trainings(config: RunConfig, phases: Sequence[PhaseName]) -> tuple[TrainingPlan, ...]:
    later = (*_control(config, phases), *_thinking(config, phases), *_ternary(config, phases))
    if "cognate" not in phases:
        return later
    base = config.cognate.base
    extra = base.extension_steps * base.max_extensions
    found = [TrainingPlan("base", base.steps, extra, _mix(base.mix))]
    for name, one in config.cognate.specialists.items():
        found.append(TrainingPlan(name, one.steps, 0, _mix(one.mix)))
    for ablation in config.cognate.ablations:
        found.append(TrainingPlan(f"ablation {ablation}", base.steps, 0, _mix(base.mix)))
    return (*found, *later)


def _control(config: RunConfig, phases: Sequence[PhaseName]) -> tuple[TrainingPlan, ...]:
    """Phase 2's multi-task control: as many steps as the specialists together."""
    steps = config.evomerge.control_steps
    if steps < 0:
        steps = sum(s.steps for s in config.cognate.specialists.values())
    if "evomerge" not in phases or not steps:
        return ()
    return (TrainingPlan("control multi_task", steps, 0, "the specialists' mixes by their steps"),)


def _thinking(config: RunConfig, phases: Sequence[PhaseName]) -> tuple[TrainingPlan, ...]:
    """Phase 3: baking, reinforcement, thoughts within text."""
    if "quietstar" not in phases:
        return ()
    wanted = config.quietstar
    extra = wanted.baking.extension_steps * wanted.baking.max_extensions
    share = 1.0 - wanted.baking.replay
    mix = f"thoughts {share:g} skills {wanted.baking.replay:g}"
    found = [TrainingPlan("baked", wanted.baking.steps, extra, mix)]
    if wanted.reinforce.steps:
        text = f"{wanted.reinforce.prompts} questions a step"
        found.append(TrainingPlan("reasoner", wanted.reinforce.steps, 0, text))
    if wanted.token_level.steps:
        found.append(TrainingPlan("token_level", wanted.token_level.steps, 0, "texts"))
    return tuple(found)


def _ternary(config: RunConfig, phases: Sequence[PhaseName]) -> tuple[TrainingPlan, ...]:
    """Phase 4: the fine-tuning, longer by every stage that is trained on."""
    if "bitnet" not in phases:
        return ()
    tune, stages = config.bitnet.finetune, config.bitnet.quantise
    extra = int(stages.staged_share * tune.steps) * stages.retries
    mix = f"thoughts {tune.thoughts:g} skills {1 - tune.thoughts:g}"
    return (TrainingPlan("ternary", tune.steps, extra, mix),)


def _mix(mix: dict[str, float]) -> str:
    return " ".join(f"{name} {share:g}" for name, share in mix.items())


def _data(config: RunConfig) -> tuple[tuple[DataPlan, ...], Check | None]:
    """The datasets, read whole where they are local; None when only a folder check is possible."""
    if config.data.source == "world":
        return (), None
    from agentforge.data.inventory import check_data

    try:
        rows = [row for row in check_data(config.data) if row.chosen]
    except DataError:
        return (), None  # the pre-flight check tells of it
    plans = tuple(
        DataPlan(row.name, row.category, row.status, row.records, row.problem or row.skipped)
        for row in rows
    )
    broken = [row.name for row in rows if row.status == "broken"]
    missing = [row.name for row in rows if row.status == "missing"]
    found = len(rows) - len(broken) - len(missing)
    ok = not broken and found > 0 and not (missing and config.data.require_all)
    detail = f"{found} of {len(rows)} datasets found"
    if missing:
        detail += f"; missing: {', '.join(missing)}"
    if broken:
        detail += f"; broken: {', '.join(broken)}"
    remedy = "agentforge-tui data check says what is wrong; data fetch downloads what is missing"
    return plans, Check("data", ok, detail, remedy)


def _vocab_rows(config: RunConfig) -> int:
    """Exact rows of the built-in world's vocabulary; GPT-2's need no look at its files."""
    if config.tokenizer.kind == "gpt2":
        return VOCAB_ROWS["gpt2"]
    from agentforge.data.world_tokenizer import world_tokenizer

    return world_tokenizer().vocab_size
