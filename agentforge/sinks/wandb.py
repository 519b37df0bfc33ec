"""Weights & Biases as a sink: one W&B run a model, offline without account or network.

The package is imported with the first event that needs it. `emit` raises when W&B does; the tee of
sinks turns that into one alert and the training goes on.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from agentforge.config.schema import SPECIALTIES
from agentforge.events import (
    ArtifactSaved,
    CurriculumStage,
    EvalDone,
    Event,
    GateChecked,
    GenerationDone,
    PhaseStarted,
    Progress,
    ResourceSample,
    RunEnded,
    RunStarted,
    StageEnded,
    Stamped,
    StepDone,
    TableDone,
)
from agentforge.run.atomic import write_atomic
from agentforge.sinks.wandb_charts import bitnet_chart, follow, layer_charts, quietstar_charts
from agentforge.sinks.wandb_metrics import (
    STEP_METRICS,
    Value,
    artifact_name,
    file_artifact,
    metrics_of,
    run_name,
    undeclared,
)

CHART_POINTS = 1000
"""Points of the loss chart; a longer curve is thinned evenly. The artefact holds all."""

_NAMED_TABLES = {
    "diversity/model_comparison": "diversity/model_comparison",
    "charts/act_distribution": "charts/act_distribution",
    "charts/ltm_heatmap": "charts/ltm_heatmap",
    "evolution/history": "evolution/history",
    "combos/effectiveness": "combos/effectiveness",
    "combos/usage": "charts/combo_usage",
    "baking/strategy_accuracy_table": "baking/strategy_accuracy_table",
    "quietstar/coherence": "charts/coherence_distribution",
    "compression/breakdown": "compression/breakdown",
}
"""Tables of a report with a documented name of their own."""
_BARS = {
    "charts/act_distribution": "Halting steps",
    "charts/coherence_distribution": "Coherence of thoughts",
}
"""Those that are drawn as bars, first column against last."""


@dataclass(slots=True)
class _ModelRun:
    """The W&B run of one model and what is collected for it until its training ends."""

    handle: Any
    model: str
    steps: list[tuple[int, float, float, float]] = field(default_factory=list)
    """Step, loss, learning rate, gradient norm."""
    generations: list[GenerationDone] = field(default_factory=list)
    drawn: int = 0
    """Entries of `steps` the last chart showed."""
    stage_since: float | None = None
    followed: dict[str, list[float]] = field(default_factory=dict)
    """Figures of Phase 3 that its charts show, in the order they came."""


class WandbSink:
    """Sends the events of a run to Weights & Biases under the declared names.

    Args:
        run_dir: Run directory; W&B writes to its ``wandb`` folder, artefact paths are relative
            to it.
        config: The run's configuration as JSON, logged with every W&B run.
        mode: ``offline`` never touches the network (``wandb sync`` sends the files later).
        project: W&B project.
        module: The wandb package; None imports it.

    Attributes:
        emitted: All names logged so far.
        undeclared: Those that `wandb_metrics` does not declare. They are logged nevertheless, so
            that a long run loses nothing; a test keeps the set empty.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, JsonValue],
        *,
        mode: Literal["offline", "online"],
        project: str,
        module: Any | None = None,
    ) -> None:
        self.emitted: set[str] = set()
        self.undeclared: set[str] = set()
        self._run_dir = run_dir
        self._config = dict(config)
        self._mode = mode
        self._project = project
        self._module = module
        self._run_id = run_dir.name
        self._phase = ""
        self._runs: dict[str, _ModelRun] = {}
        self._exit_code = 0

    def emit(self, stamped: Stamped) -> None:
        """Log one event; events that W&B has no use for are ignored.

        Raises:
            Exception: Whatever wandb raises: not installed, no account, disk full.
        """
        event = stamped.event
        match event:
            case RunStarted():
                self._run_id = event.run_id
            case PhaseStarted():
                self._phase = event.phase
            case StepDone():
                run = self._run(event.phase, event.model)
                run.steps.append((event.step, event.loss, event.lr, event.grad_norm))
                values = metrics_of(event)
                follow(run.followed, event.phase, values)
                self._log(run, values)
            case GenerationDone():
                run = self._run(event.phase, "")
                run.generations.append(event)
                self._log(run, metrics_of(event))
            case EvalDone():
                run = self._run(event.phase, event.model)
                values = metrics_of(event)
                follow(run.followed, event.phase, values)
                self._log(run, values)
            case CurriculumStage():
                run = self._run(event.phase, event.model)
                self._log(run, self._close_epoch(run, stamped.t) | metrics_of(event))
                run.stage_since = stamped.t
            case StageEnded():
                self._end_stage(event, stamped.t)
            case Progress() | GateChecked() | ResourceSample():
                self._log_common(event)
            case TableDone():
                self._log_table(event)
            case ArtifactSaved():
                self._log_checkpoint(event)
            case RunEnded():
                self._exit_code = event.exit_code
            case _:
                pass

    def close(self) -> None:
        """Finish all W&B runs.

        Raises:
            Exception: Whatever wandb raises.
        """
        runs, self._runs = list(self._runs.values()), {}
        for run in runs:
            run.handle.finish(exit_code=self._exit_code)

    def _wandb(self) -> Any:
        if self._module is None:
            # Without this wandb reports its own errors and usage to its makers, even offline.
            os.environ["WANDB_ERROR_REPORTING"] = "false"
            self._module = importlib.import_module("wandb")
        return self._module

    def _run(self, phase: str, model: str) -> _ModelRun:
        name = run_name(phase, model)
        if name not in self._runs:
            wandb = self._wandb()
            online = self._mode == "online"
            handle = wandb.init(
                project=self._project,
                name=name,
                id=re.sub(r"[^\w.-]", "-", f"{self._run_id}-{name}")[-128:],
                group=self._run_id,
                tags=_tags(name, phase, model),
                config=self._config | {"model_id": name},
                dir=str(self._run_dir),
                mode=self._mode,
                reinit="create_new",
                resume="allow" if online else None,
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    x_disable_stats=True,
                    # Without a connection: seconds, not the 90 s default or for ever.
                    init_timeout=15.0,
                    login_timeout=1.0,
                    finish_timeout=60.0,
                ),
            )
            axis = STEP_METRICS.get(name, "train/step")
            handle.define_metric(axis)
            handle.define_metric("*", step_metric=axis)
            self._runs[name] = _ModelRun(handle=handle, model=model)
            if model in SPECIALTIES:
                self._log_json(self._runs[name], phase, "config", self._config)
        return self._runs[name]

    def _log(self, run: _ModelRun, values: Mapping[str, Value | Any]) -> None:
        if not values:
            return
        self.emitted.update(values)
        self.undeclared |= undeclared(values)
        step = {"train/step": run.steps[-1][0]} if run.steps else {}
        run.handle.log({**step, **values})

    def _log_common(self, event: Event) -> None:
        """Figures of no single model: the phase's own run, once a phase has begun."""
        values = metrics_of(event)
        if values and self._phase:
            self._log(self._run(self._phase, ""), values)

    def _close_epoch(self, run: _ModelRun, now: float) -> dict[str, Value]:
        since, run.stage_since = run.stage_since, None
        return {} if since is None else {"time/epoch_duration_minutes": (now - since) / 60}

    def _end_stage(self, event: StageEnded, now: float) -> None:
        name = run_name(event.phase, event.model)
        run = self._runs.get(name)
        if run is not None and event.stage == "evolution":
            self._log(run, self._evolution_charts(run.generations))
            return
        if run is not None and event.phase == "quietstar":
            self._log(run, quietstar_charts(self._wandb(), run.followed, event.stage))
        if run is not None and event.phase == "bitnet":
            self._log(run, bitnet_chart(self._wandb(), run.followed, event.stage))
        if run is None or len(run.steps) == run.drawn:
            return  # an evaluation, or a training that logged no step
        run.drawn = len(run.steps)
        self._log(run, self._close_epoch(run, now))
        wandb = self._wandb()
        every = -(-len(run.steps) // CHART_POINTS)
        points = [[step, loss] for step, loss, _, _ in run.steps[::-1][::every][::-1]]
        table = wandb.Table(columns=["step", "loss"], data=points)
        chart = wandb.plot.line(table, "step", "loss", title=f"{name}: training loss")
        self._log(run, {"charts/loss_curve": chart})
        columns = zip(*run.steps, strict=True)
        names = ("step", "loss", "learning_rate", "gradient_norm")
        curves = {
            key: [value if math.isfinite(value) else None for value in column]
            for key, column in zip(names, columns, strict=True)
        }
        self._log_json(run, event.phase, "curves", curves)

    def _evolution_charts(self, generations: list[GenerationDone]) -> dict[str, Any]:
        """Fitness and diversity over the generations this engine has seen."""
        wandb = self._wandb()
        numbers = [g.generation for g in generations]
        fitness = wandb.plot.line_series(
            xs=numbers,
            ys=[[g.best_fitness for g in generations], [g.avg_fitness for g in generations]],
            keys=["best", "mean"],
            title="Fitness",
            xname="generation",
        )
        rows = [[g.generation, g.diversity] for g in generations]
        table = wandb.Table(columns=["generation", "diversity"], data=rows)
        diversity = wandb.plot.line(table, "generation", "diversity", title="Diversity")
        return {"charts/fitness_evolution": fitness, "charts/diversity_evolution": diversity}

    def _log_table(self, event: TableDone) -> None:
        wandb = self._wandb()
        name = _NAMED_TABLES.get(event.name, f"tables/{event.name}")
        rows = [list(row) for row in event.rows]
        value = wandb.Table(columns=list(event.columns), data=rows)
        if name in _BARS:
            value = wandb.plot.bar(value, event.columns[0], event.columns[-1], title=_BARS[name])
        self._log(self._run(event.phase, ""), {name: value, **layer_charts(wandb, event)})

    def _log_checkpoint(self, event: ArtifactSaved) -> None:
        """A model's weights; other files of the run stay where they are."""
        path = Path(event.path)
        model = path.stem
        documented = file_artifact(event.name)
        if documented is not None:
            run = self._run(event.phase, "")
            self._log_file(run, documented, "model", self._run_dir / path)
            return
        if path.suffix != ".safetensors" or model not in (*SPECIALTIES, "base"):
            return
        name = artifact_name(event.phase, model, "checkpoint")
        self._log_file(self._run(event.phase, model), name, "checkpoint", self._run_dir / path)

    def _log_json(self, run: _ModelRun, phase: str, kind: str, content: Any) -> None:
        name = artifact_name(phase, run.model, kind)
        path = self._run_dir / "wandb" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(content, allow_nan=False))
        self._log_file(run, name, kind, path)

    def _log_file(self, run: _ModelRun, name: str, kind: str, path: Path) -> None:
        artifact = self._wandb().Artifact(name, type=kind)
        # "immutable" spares a copy of every model in the user's cache folder.
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
        run.handle.log_artifact(artifact)


def _tags(run: str, phase: str, model: str) -> list[str]:
    """Words by which runs are found: the phase by number and name, and the model."""
    number, _, name = run.partition("-")
    if number == "phase1":
        return [number, "cognate", "muon-grokfast", model or "base"]
    return [number, phase.partition(".")[0] or name, model or "population"]
