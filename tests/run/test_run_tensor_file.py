from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from agentforge.errors import CheckpointError, PreflightError
from agentforge.run import tensor_file
from agentforge.run.tensor_file import DTYPES, load_model, save_model


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def test_every_type_in_odd_shapes_is_read_by_the_library(tmp_path: Path) -> None:
    tensors = {}
    for dtype, name in DTYPES.items():
        for shape in ((), (1,), (3, 5), (2, 0, 3)):
            raw = torch.randint(0, 2, (max(1, *shape, 30) * 8,), dtype=torch.uint8)
            count = int(torch.tensor(shape).prod()) if shape else 1
            tensors[f"{name}{shape}"] = raw.view(dtype)[:count].reshape(shape)
    saved = save_model(tmp_path / "m.safetensors", tensors, {"k": "v"})
    read = load_file(saved.path)
    loaded = load_model(saved.path)
    assert list(loaded.tensors) == sorted(tensors)
    for name, tensor in tensors.items():
        for got in (read[name], loaded.tensors[name]):
            assert got.dtype == tensor.dtype
            assert got.shape == tensor.shape
            assert bits(got) == bits(tensor)
    with safe_open(saved.path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "k": "v"} == loaded.metadata


def test_shared_memory_views_and_gradients(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "same": base,
        "transposed": base.T,
        "slice": base[1:, ::2],
        "expanded": base[:1].expand(5, 4),
        "parameter": torch.nn.Parameter(base),
    }
    loaded = load_model(save_model(tmp_path / "m", tensors, {}).path).tensors
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((i,), i) for i in range(9)}
    metadata = {f"key{i}": f"value \u00e4 {i}" for i in range(20)}
    one = save_model(tmp_path / "one", tensors, metadata)
    two = save_model(
        tmp_path / "two", dict(reversed(tensors.items())), dict(reversed(metadata.items()))
    )
    assert one.sha256 == two.sha256
    assert one.sha256 == hashlib.sha256(one.path.read_bytes()).hexdigest()
    assert one.bytes == one.path.stat().st_size
    assert load_model(one.path).sha256 == one.sha256
    assert load_model(one.path).metadata == {"format": "pt", **metadata}
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_the_libraries_files_are_read_too(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3), "b": torch.randn(2, 2).to(torch.float16)}
    save_file(tensors, tmp_path / "m", {"format": "pt"})
    loaded = load_model(tmp_path / "m")
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in tensors.items())


def test_values_are_aligned_to_their_size(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(3, dtype=torch.uint8),
        "b": torch.ones(5, dtype=torch.float16),
        "c": torch.ones(1, dtype=torch.float64),
    }
    save_model(tmp_path / "m", tensors, {})
    data = (tmp_path / "m").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert b'"c":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}' in data[8 : 8 + length]


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    saved = save_model(tmp_path / "m.safetensors", {"w": torch.randn(9)}, {})
    saved.path.write_bytes(saved.path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"m\.safetensors is no whole safetensors"):
        load_model(saved.path)
    with pytest.raises(CheckpointError, match=rf"truncated: .* written were {saved.bytes}"):
        load_model(saved.path, expected=saved)
    with pytest.raises(CheckpointError, match="is missing"):
        load_model(tmp_path / "none")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_model(tmp_path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=120), st.integers(0, 200))
def test_any_bytes_are_one_clear_error_or_a_model(tmp_path: Path, noise: bytes, place: int) -> None:
    path = tmp_path / "m"
    save_model(path, {"w": torch.arange(5)}, {"a": "b"})
    data = path.read_bytes()
    path.write_bytes(data[:place] + noise + data[place + len(noise) :])
    with contextlib.suppress(CheckpointError):
        load_model(path)
    path.write_bytes(noise)
    with pytest.raises(CheckpointError):
        load_model(path)


def test_a_failed_write_keeps_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    save_model(path, {"w": torch.ones(3)}, {})

    def fail(handle: int, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file, "write_all", fail)
    with pytest.raises(PreflightError, match="the disk is full"):
        save_model(path, {"w": torch.zeros(3)}, {})
    monkeypatch.undo()
    assert torch.equal(load_model(path).tensors["w"], torch.ones(3))
    assert os.listdir(tmp_path) == ["m"]
    with pytest.raises(PreflightError, match="cannot write"):
        save_model(tmp_path / "no" / "m", {}, {})
