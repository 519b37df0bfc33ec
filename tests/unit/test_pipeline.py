"""The pipeline around a phase: a GPU that fails, values that a resumed run keeps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentforge import pipeline
from agentforge.config.load import load_config
from agentforge.events import Alert, Event
from agentforge.phases.resources import as_before, controls_beside
from agentforge.run.manifest import Resolved


def context(**resolved: Any) -> Any:
    events: list[Event] = []
    noted = {f"resources.{k}": Resolved(value=v, reason="") for k, v in resolved.items()}
    return SimpleNamespace(
        emit=events.append,
        events=events,
        config=load_config(preset="demo").config,
        manifest=SimpleNamespace(resolved=noted),
    )


def resources(device: str) -> Any:
    return SimpleNamespace(device=SimpleNamespace(value=device))


def test_a_failing_gpu_is_left_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def phase(_: Any, given: Any) -> str:
        used.append(given.device.value)
        if given.device.value == "cuda":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return "report"

    monkeypatch.setitem(pipeline.PHASE_FUNCTIONS, "cognate", phase)  # type: ignore[arg-type]
    monkeypatch.setattr(pipeline, "settle_resources", lambda _, device: resources(device))
    run = context()
    result: Any = pipeline._on_cpu_after_cuda_error(run, "cognate", resources("cuda"))
    assert result == "report"
    assert used == ["cuda", "cpu"]
    (alert,) = run.events
    assert isinstance(alert, Alert)
    assert "illegal memory access" in alert.detail


@pytest.mark.parametrize(
    ("device", "message"), [("cpu", "CUDA error: no"), ("cuda", "shapes do not match")]
)
def test_other_errors_are_not_hidden(
    device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def phase(*_: Any) -> str:
        raise RuntimeError(message)

    monkeypatch.setitem(pipeline.PHASE_FUNCTIONS, "cognate", phase)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=message):
        pipeline._on_cpu_after_cuda_error(context(), "cognate", resources(device))


def test_a_resumed_run_keeps_what_was_resolved() -> None:
    kept = as_before(
        context(
            device="cpu",
            precision="fp32",
            gradient_checkpointing=True,
            micro_batch_tokens=192,
            vocab_chunk=0,
            threads=3,
        )
    )
    assert (kept.micro_batch_tokens, kept.threads) == (192, 3)
    assert (kept.gradient_checkpointing, kept.precision) == ("on", "fp32")


def test_what_was_asked_for_wins_over_what_was_resolved() -> None:
    run = context(micro_batch_tokens=192, threads=3)
    run.config = load_config(preset="demo", sets=["resources.threads=1"]).config
    assert as_before(run).threads == 1


def test_controls_beside_only_where_there_are_controls() -> None:
    config = load_config(preset="demo", sets=["cognate.side_process='on'"]).config
    assert controls_beside(config, "cuda")
    none = load_config(preset="demo", sets=["cognate.ablations=[]"]).config
    assert not controls_beside(none, "cpu")
    off = load_config(preset="demo", sets=["cognate.side_process='off'"]).config
    assert not controls_beside(off, "cpu")
