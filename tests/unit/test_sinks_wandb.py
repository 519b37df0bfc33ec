"""The W&B sink: names emitted against names declared, runs, artefacts, and no network offline."""

import json
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentforge import events as ev
from agentforge.sinks.wandb import CHART_POINTS, WandbSink
from agentforge.sinks.wandb_metrics import (
    PHASE1_METRICS,
    REQUIRED,
    artifact_name,
    is_declared,
    metrics_of,
    run_name,
)
from tests.unit.fake_wandb import FakeRun, FakeWandb

ACT = ("avg_halting_steps", "max_halting_steps", "min_halting_steps", "halting_variance")
LTM = ("memory_usage", "write_operations", "read_operations", "avg_surprise_score")
FINAL = (
    "train_loss",
    "val_loss",
    "perplexity",
    "gsm8k_accuracy",
    "arc_accuracy",
    "piqa_accuracy",
    "total_training_time_hours",
    "model_size_mb",
    "total_params",
)
VAL = ("loss", "perplexity", "gsm8k_accuracy", "arc_easy_accuracy", "piqa_accuracy")
ON_A_GPU = {
    "system/gpu_memory_used_gb",
    "system/gpu_memory_cached_gb",
    "system/gpu_utilization",
}


def training(model: str, *, steps: int = 4, gpu: bool = False) -> Iterator[ev.Event]:
    """What one model's training and evaluation emit."""
    extra = {f"act/{name}": 1.5 for name in ACT} | {f"ltm/{name}": 0.5 for name in LTM}
    extra |= {
        "train/epoch": 0.5,
        "optimizer/grokfast_lambda": 0.05,
        "optimizer/slow_gradients_filtered": 9.0,
        "loss/step_0": 2.0,
        "optim/qk_clip_count": 1.0,
        "gate/entropy": 0.3,
    }
    if gpu:
        extra["system/gpu_memory_cached_gb"] = 1.0
    yield ev.StageStarted(phase="cognate", stage="train", model=model, steps=steps)
    for step in range(1, steps + 1):
        if step in (1, 3):
            yield ev.CurriculumStage(
                phase="cognate", model=model, stage=step, step=step, mix={"a": 0.25, "b": 0.75}
            )
        yield ev.StepDone(
            phase="cognate",
            model=model,
            step=step,
            steps=steps,
            loss=3.0 / step,
            lr=0.02,
            grad_norm=1.0,
            tokens=100,
            tokens_per_s=1000.0,
            extra=extra,
        )
    yield ev.StageEnded(phase="cognate", stage="train", model=model, steps=steps, wall_s=1.0)
    names = [f"val/{n}" for n in VAL] + [f"final/{n}" for n in FINAL]
    names += [f"diversity/{n}" for n in ("avg_halting_steps", "ltm_usage", "inference_time_ms")]
    names += ["val/exact_match/sums", "baseline/bigram_loss"]
    for name in names:
        yield ev.EvalDone(phase="cognate", model=model, name=name, value=0.5, n=10, split="report")
    yield ev.StageEnded(phase="cognate", stage="evaluate", model=model, steps=0, wall_s=1.0)


def whole_run(*, gpu: bool = False) -> Iterator[ev.Event]:
    yield ev.RunStarted(
        run_id="2025-demo", preset="demo", phases=("cognate",), seed=1, resumed=False
    )
    yield ev.ResourceSample(  # before the phase: has no place yet
        rss_bytes=1, ram_used_bytes=1, ram_total_bytes=2, disk_free_bytes=3, cpu_percent=4.0
    )
    yield ev.PhaseStarted(phase="cognate")
    for model in ("base", "reasoning", "memory", "speed", "memory_off"):
        yield from training(model, gpu=gpu)
        yield ev.ArtifactSaved(
            phase="cognate",
            name=model,
            path=f"models/{model}.safetensors",
            bytes=3,
            sha256="0",
        )
    yield ev.Progress(phase="cognate", done=1, total=2, unit="steps", eta_s=-1.0)
    yield ev.Progress(phase="cognate", done=1, total=2, unit="steps", eta_s=1800.0)
    yield ev.ResourceSample(
        rss_bytes=1,
        ram_used_bytes=1,
        ram_total_bytes=2,
        disk_free_bytes=3,
        cpu_percent=4.0,
        vram_used_bytes=2_000_000_000 if gpu else None,
        gpu_percent=50.0 if gpu else None,
    )
    yield ev.TableDone(
        phase="cognate",
        name="diversity/model_comparison",
        columns=("model", "steps"),
        rows=(("reasoning", 2.9), ("memory", None)),
    )
    yield ev.TableDone(
        phase="cognate",
        name="charts/act_distribution",
        columns=("steps", "share"),
        rows=(("1", 0.5), ("2", 0.5)),
    )
    yield ev.TableDone(
        phase="cognate", name="charts/ltm_heatmap", columns=("position", "write"), rows=((0, 0.1),)
    )
    yield ev.TableDone(phase="cognate", name="ablations", columns=("x",), rows=((1,),))
    for value in (0.8, None):
        yield ev.GateChecked(
            name="cognate.diversity" if value else "cognate.gsm8k",
            value=value,
            op=">",
            threshold=0.3,
            n=10,
            source="report",
            status="met" if value else "missed",
        )
    yield ev.LogLine(level="info", source="x", text="y")
    yield ev.Heartbeat(pid=1)
    yield ev.PhaseEnded(phase="cognate", gates_met=1, gates_missed=1, wall_s=1.0)
    yield ev.RunEnded(state="finished", reason="done", exit_code=4)


def feed(sink: WandbSink, stream: Iterator[ev.Event]) -> None:
    for i, event in enumerate(stream):
        sink.emit(ev.Stamped(seq=i, t=1000.0 + 60.0 * i, event=event))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    for model in ("base", "reasoning", "memory", "speed", "memory_off"):
        (tmp_path / "models" / f"{model}.safetensors").write_bytes(b"abc")
    return tmp_path


def sink_with(run_dir: Path, fake: FakeWandb) -> WandbSink:
    return WandbSink(run_dir, {"seed": 1}, mode="offline", project="p", module=fake)


def test_emitted_names_equal_the_declared_ones(run_dir: Path) -> None:
    for gpu in (False, True):
        sink = sink_with(run_dir, FakeWandb())
        feed(sink, whole_run(gpu=gpu))
        named = {m.name for m in PHASE1_METRICS if not m.name.endswith("/*")}
        expected = named if gpu else named - ON_A_GPU
        assert sink.undeclared == set()
        assert {n for n in sink.emitted if n in named} == expected
        assert all(is_declared(name) for name in sink.emitted)
        assert sink.emitted >= REQUIRED


def test_the_declared_table_covers_the_documented_names() -> None:
    documented = {
        *(f"train/{n}" for n in "step epoch loss perplexity learning_rate gradient_norm".split()),
        *(f"optimizer/{n}" for n in "muon_lr grokfast_lambda slow_gradients_filtered".split()),
        *(f"act/{n}" for n in ACT),
        *(f"ltm/{n}" for n in LTM),
        *ON_A_GPU,
        "system/tokens_per_second",
        *(f"val/{n}" for n in VAL),
        *("curriculum/stage", "curriculum/dataset_mix"),
        *("time/epoch_duration_minutes", "time/estimated_completion_hours"),
        *(f"final/{n}" for n in FINAL),
        *(f"diversity/{n}" for n in "avg_halting_steps ltm_usage inference_time_ms".split()),
        "diversity/model_comparison",
        *(f"charts/{n}" for n in "loss_curve act_distribution ltm_heatmap".split()),
    }
    names = [m.name for m in PHASE1_METRICS]
    assert {n for n in names if not n.endswith("/*")} == documented
    assert len(names) == len(set(names))
    assert all(m.meaning and m.source for m in PHASE1_METRICS)


def test_an_undeclared_name_is_found_out_but_not_lost(run_dir: Path) -> None:
    fake = FakeWandb()
    sink = sink_with(run_dir, fake)
    bad = ev.EvalDone(
        phase="cognate", model="speed", name="made_up", value=1.0, n=1, split="report"
    )
    sink.emit(ev.Stamped(seq=0, t=0.0, event=bad))
    assert sink.undeclared == {"made_up"}
    assert fake.runs["phase1-cognate-model3"].last("made_up") == 1.0
    assert not is_declared("valley/loss")
    assert not is_declared("train/other")


def test_one_run_a_model_with_its_own_figures(run_dir: Path) -> None:
    fake = FakeWandb()
    sink = sink_with(run_dir, fake)
    feed(sink, whole_run())
    assert set(fake.runs) == {
        "phase1-cognate",
        "phase1-cognate-model1",
        "phase1-cognate-model2",
        "phase1-cognate-model3",
        "phase1-cognate-memory_off",
    }
    model = fake.runs["phase1-cognate-model2"]
    assert model.settings["mode"] == "offline"
    assert model.settings["reinit"] == "create_new"
    assert model.settings["id"] == "2025-demo-phase1-cognate-model2"
    assert model.settings["config"] == {"seed": 1, "model_id": "phase1-cognate-model2"}
    assert model.last("train/perplexity") == pytest.approx(math.exp(0.75))
    assert model.last("final/perplexity") == 0.5
    assert model.last("curriculum/dataset_mix") == {"a": 0.25, "b": 0.75}
    # Stage 1 opened one event before its steps 1 and 2, i.e. three minutes before stage 3.
    minutes = [
        row["time/epoch_duration_minutes"]
        for row in model.logged
        if "time/epoch_duration_minutes" in row
    ]
    assert minutes == pytest.approx([3.0, 3.0])
    summary = fake.runs["phase1-cognate"]
    assert summary.last("gates/cognate.diversity") == 0.8
    assert summary.last("time/estimated_completion_hours") == 0.5
    assert summary.last("diversity/model_comparison").data == [["reasoning", 2.9], ["memory", None]]
    assert "tables/ablations" in sink.emitted
    assert all("train/step" in row for row in model.logged if "val/loss" in row)
    sink.close()
    assert {run.exit_code for run in fake.runs.values()} == {4}
    sink.close()  # twice is harmless


def test_artefacts(run_dir: Path) -> None:
    fake = FakeWandb()
    sink = sink_with(run_dir, fake)
    feed(sink, whole_run())
    for i in (1, 2, 3):
        run = fake.runs[f"phase1-cognate-model{i}"]
        found = {a.name: a for a in run.artifacts}
        assert set(found) == {f"phase1-model{i}-{k}" for k in ("config", "curves", "checkpoint")}
        curves = json.loads(Path(found[f"phase1-model{i}-curves"].files[0]).read_text())
        assert curves["loss"] == pytest.approx([3.0, 1.5, 1.0, 0.75])
        assert curves["step"] == [1, 2, 3, 4]
        config = json.loads(Path(found[f"phase1-model{i}-config"].files[0]).read_text())
        assert config == {"seed": 1}
    with pytest.raises(ValueError, match="not one of"):
        artifact_name("cognate", "speed", "other")


def test_loss_chart_is_thinned_and_survives_nan(run_dir: Path) -> None:
    fake = FakeWandb()
    sink = sink_with(run_dir, fake)
    steps = 2 * CHART_POINTS + 1
    for step in range(1, steps + 1):
        event = ev.StepDone(
            phase="cognate",
            model="speed",
            step=step,
            steps=steps,
            loss=math.nan if step == 7 else 1e4,
            lr=0.1,
            grad_norm=math.inf,
            tokens=1,
            tokens_per_s=1.0,
        )
        sink.emit(ev.Stamped(seq=step, t=0.0, event=event))
    end = ev.StageEnded(phase="cognate", stage="train", model="speed", steps=steps, wall_s=1.0)
    sink.emit(ev.Stamped(seq=steps, t=0.0, event=end))
    run = fake.runs["phase1-cognate-model3"]
    assert run.last("train/perplexity") == math.inf
    table, _, _ = run.last("charts/loss_curve")
    assert len(table.data) <= CHART_POINTS
    assert table.data[-1][0] == steps, "the last step is always on the chart"
    curves = json.loads(Path(run.artifacts[-1].files[0]).read_text())
    assert curves["loss"][6] is None
    assert len(curves["loss"]) == steps


def test_a_failing_wandb_raises_out_of_emit(run_dir: Path) -> None:
    class Broken(FakeWandb):
        def init(self, **settings: Any) -> FakeRun:
            raise OSError("no space left")

    sink = sink_with(run_dir, Broken())
    sink.emit(ev.Stamped(seq=0, t=0.0, event=ev.PhaseStarted(phase="cognate")))
    with pytest.raises(OSError, match="no space"):
        feed(sink, training("base"))
    sink.close()


def test_names_of_runs() -> None:
    assert run_name("cognate", "reasoning") == "phase1-cognate-model1"
    assert run_name("cognate", "base") == run_name("cognate", "") == "phase1-cognate"
    assert run_name("cognate", "window_recall") == "phase1-cognate-window_recall"
    assert artifact_name("cognate", "base", "curves") == "phase1-base-curves"
    assert metrics_of(ev.Heartbeat(pid=1)) == {}


class Listener:
    """Counts connections to a loopback port: stands for every server W&B could want to reach."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.connections = 0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self.socket.close()


OFFLINE_RUN = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_sinks_wandb import feed, training, whole_run
from agentforge.sinks.wandb import WandbSink

sink = WandbSink(Path({run_dir!r}), {{"seed": 1}}, mode="offline", project="p")
assert "wandb" not in sys.modules, "imported before it is needed"
feed(sink, whole_run())
sink.close()
assert not sink.undeclared
"""


def test_real_wandb_offline_writes_files_and_calls_nobody(run_dir: Path, tmp_path: Path) -> None:
    listener = Listener()
    address = f"http://127.0.0.1:{listener.port}"
    home = tmp_path / "home"
    home.mkdir()
    root = Path(__file__).resolve().parents[2]
    environment = {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "WANDB_BASE_URL": address,
        "HTTP_PROXY": address,
        "HTTPS_PROXY": address,
        "http_proxy": address,
        "https_proxy": address,
    }
    script = OFFLINE_RUN.format(path=[str(root), str(Path(__file__).parent)], run_dir=str(run_dir))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    listener.close()
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert listener.connections == 0
    files = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 5
    assert all(path.stat().st_size > 0 for path in files)
    content = b"".join(path.read_bytes() for path in files)
    for name in (b"ltm/memory_usage", b"diversity/ltm_usage", b"phase1-model2-curves"):
        assert name in content
    copies = [p for p in home.rglob("*") if p.is_file() and p.read_bytes() == b"abc"]
    assert copies == [], "model weights must not be copied out of the run directory"
