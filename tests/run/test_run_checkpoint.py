from __future__ import annotations

import json
import math
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agentforge.errors import CheckpointError, PreflightError
from agentforge.run import checkpoint as checkpoint_module
from agentforge.run.atomic import DiskFullError
from agentforge.run.checkpoint import (
    COMPLETE,
    CheckpointInfo,
    CheckpointStore,
    Search,
    require_shapes,
)
from agentforge.run.layout import RunLayout

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep_last=3)


def save(store: CheckpointStore, step: int, stage: str = "base") -> CheckpointInfo:
    model = {"w": torch.full((5, 3), float(step)), "b": torch.arange(7)}
    return store.save(
        phase="cognate",
        stage=stage,
        step=step,
        groups={"model": model, "optimizer": {"m": torch.ones(2) / 3}, "none": {}},
        state={"cursor": step, "loss": 0.1 + step},
    )


def newest(store: CheckpointStore) -> CheckpointInfo:
    found = store.newest_valid()
    assert found.info is not None
    return found.info


def test_everything_comes_back_exactly(store: CheckpointStore, tmp_path: Path) -> None:
    state = {"a": [1, 2.5, None], "pi": math.pi, "best": math.inf, "big": 2**127 - 1, "\u00e4": {}}
    model = {
        "f32": torch.randn(3, 1, 5),
        "bf16": torch.randn(7).to(torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "mask": torch.tensor([True, False]),
        "odd.name/with:signs": torch.tensor([1], dtype=torch.uint8),
        "special": torch.tensor([math.nan, math.inf, -0.0]),
    }
    info = store.save(
        phase="cognate", stage="Train Base!", step=100, groups={"model": model}, state=state
    )
    assert info.path.name == "000001-train-base-step-000100"
    assert sorted(os.listdir(info.path)) == [COMPLETE, "model.safetensors", "state.json"]
    loaded = store.load(newest(store))
    assert loaded.state == state
    assert set(loaded.groups["model"]) == set(model)
    for name, tensor in model.items():
        got = loaded.groups["model"][name]
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        assert torch.equal(got.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    event = info.event(RunLayout(tmp_path))
    assert (event.path, event.step) == ("checkpoints/000001-train-base-step-000100", 100)
    listed = sum(f.stat().st_size for f in info.path.iterdir() if f.name != COMPLETE)
    assert event.bytes == listed


def test_names_rise_and_the_last_and_the_best_stay(store: CheckpointStore) -> None:
    first = save(store, 10)
    store.mark_best(first)
    for step in (20, 30, 40, 50):
        save(store, step)
    assert [info.step for info in store.complete()] == [10, 30, 40, 50]
    assert newest(store).step == 50
    best = store.best()
    assert best is not None
    assert best.step == 10
    store.mark_best(newest(store))
    save(store, 5, stage="speed")  # a later stage counts its steps anew
    assert [info.step for info in store.complete()] == [40, 50, 5]
    assert newest(store).number == 6
    assert store.prune(1) == 1
    assert [info.step for info in store.complete()] == [50, 5]
    assert store.prune(0) == 0
    reopened = CheckpointStore(store._folder, keep_last=1)
    assert save(reopened, 6).number == 7


def damage_truncated(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def damage_longer(path: Path) -> None:
    with (path / "model.safetensors").open("ab") as file:
        file.write(b"\0")


def damage_bit(path: Path) -> None:
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def damage_missing(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()


def damage_state(path: Path) -> None:
    file = path / "state.json"
    file.write_text(file.read_text().replace("2", "3", 1))


def damage_unfinished(path: Path) -> None:
    (path / COMPLETE).unlink()


def damage_complete(path: Path) -> None:
    (path / COMPLETE).write_bytes((path / COMPLETE).read_bytes()[:40])


def damage_newer(path: Path) -> None:
    row = json.loads((path / COMPLETE).read_text())
    (path / COMPLETE).write_text(json.dumps(row | {"format": 99}))


def damage_escape(path: Path) -> None:
    row = json.loads((path / COMPLETE).read_text())
    row["files"]["../../../x"] = {"bytes": 1, "sha256": ""}
    (path / COMPLETE).write_text(json.dumps(row))


DAMAGES = [
    (damage_truncated, "truncated"),
    (damage_longer, "altered"),
    (damage_bit, "SHA-256"),
    (damage_missing, "optimizer.safetensors is missing"),
    (damage_state, "state.json is altered"),
    (damage_unfinished, "not finished"),
    (damage_complete, "cannot be read"),
    (damage_newer, "format 99"),
    (damage_escape, "cannot be read"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_checkpoint_is_skipped_and_named(
    store: CheckpointStore, damage: Callable[[Path], None], message: str
) -> None:
    save(store, 1)
    info = save(store, 2)
    damage(info.path)
    found = store.newest_valid()
    assert found.info is not None
    assert found.info.step == 1
    assert [s.path for s in found.skipped] == [info.path]
    assert message in found.skipped[0].problem
    with pytest.raises(CheckpointError) as caught:
        checkpoint_module.verify(checkpoint_module.read_info(info.path))
    assert str(info.path) in caught.value.message
    assert caught.value.remedy
    assert save(store, 3).number == 3
    assert newest(store).step == 3


def test_when_none_is_valid(store: CheckpointStore) -> None:
    assert store.newest_valid() == Search(None, ())
    info = save(store, 1)
    damage_bit(info.path)
    found = store.newest_valid()
    assert found.info is None
    assert len(found.skipped) == 1
    assert store.best() is None
    (store._folder / "best.json").write_text('{"checkpoint": "../../etc"}')
    assert store.best() is None


def test_no_safetensors_inside_a_correct_hash(store: CheckpointStore) -> None:
    info = save(store, 1)
    file = info.path / "model.safetensors"
    file.write_bytes(b"not tensors at all")
    row = json.loads((info.path / COMPLETE).read_text())
    row["files"][file.name] = {
        "bytes": file.stat().st_size,
        "sha256": checkpoint_module.file_sha256(file),
    }
    (info.path / COMPLETE).write_text(json.dumps(row))
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        store.load(newest(store))


def test_a_crash_while_saving_leaves_the_one_before(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)
    real = checkpoint_module.save_model
    calls = 0

    def crash(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "save_model", crash)
        with pytest.raises(KeyboardInterrupt):
            save(store, 2)
    assert os.listdir(store._folder) == ["000001-base-step-000001"]
    # What kill -9 leaves is removed by the next save and never taken for a checkpoint.
    shutil.copytree(newest(store).path, store._folder / ".tmp-000002-base-step-000002")
    assert newest(store).step == 1
    assert save(store, 3).number == 2
    assert len(os.listdir(store._folder)) == 2


def test_room_is_made_or_asked_for(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        save(store, step)
    store.mark_best(store.complete()[0])
    free = [100, 100, 10**9]
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: Usage(10**9, 0, free.pop(0) if free else 10**9)
    )
    save(store, 4)
    assert [info.step for info in store.complete()] == [1, 3, 4]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 100))
    with pytest.raises(DiskFullError, match="100 bytes are free") as caught:
        save(store, 5)
    assert isinstance(caught.value, PreflightError)
    assert [info.step for info in store.complete()] == [1, 4]
    assert newest(store).step == 4


def test_a_really_full_disk_keeps_the_last_checkpoint(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(small_disk / "checkpoints", keep_last=2)
    save(store, 1)
    with pytest.raises(DiskFullError, match="bytes are free"):
        store.save(
            phase="p", stage="s", step=2, groups={"model": {"w": torch.ones(200_000)}}, state={}
        )
    monkeypatch.setattr(checkpoint_module, "_free_bytes", lambda folder: 10**12)
    with pytest.raises(DiskFullError, match="the disk is full"):
        store.save(
            phase="p", stage="s", step=2, groups={"model": {"w": torch.ones(300_000)}}, state={}
        )
    assert os.listdir(store._folder) == ["000001-base-step-000001"]
    assert newest(store).step == 1


def test_shapes_of_another_model_are_refused(store: CheckpointStore) -> None:
    got = store.load(save(store, 1)).groups["model"]
    require_shapes({"w": (5, 3), "b": [7]}, got, where="x")
    with pytest.raises(CheckpointError) as caught:
        require_shapes({"w": (3, 5), "c": (1,)}, got, where="run/7")
    message = caught.value.message
    assert "run/7 belongs to another model" in message
    assert "c is missing" in message
    assert "b is not of this model" in message
    assert "w has shape (5, 3), this model's is (3, 5)" in message


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_last 0"):
        CheckpointStore(tmp_path, keep_last=0)
