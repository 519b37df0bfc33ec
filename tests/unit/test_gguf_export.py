"""GGUF export, read back with the public `gguf` package."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from agentforge_kernels import Int8Weight, PackedTernary, unpack
from agentforge_kernels.gguf import to_tq2_0

from agentforge.errors import PreflightError
from agentforge.formats.gguf import save_gguf
from agentforge.formats.packed import read_packed
from tests.unit.test_packed_directory import save, ternary_model


@pytest.mark.parametrize("int8", [False, True])
def test_tensors_are_read_back_equal(int8: bool, tmp_path: Path) -> None:
    packed = read_packed(save(tmp_path / "model", ternary_model("answer"), int8=int8))
    path = tmp_path / "model.gguf"
    save_gguf(packed, path)
    reader = gguf.GGUFReader(path)
    found = {t.name: t for t in reader.tensors}
    assert set(found) == set(packed.tensors)
    for name, tensor in packed.tensors.items():
        data = found[name].data
        if isinstance(tensor, PackedTernary):
            assert found[name].tensor_type == gguf.GGMLQuantizationType.TQ2_0
            assert np.array_equal(data, to_tq2_0(tensor).numpy())
            values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.TQ2_0)
            wanted = unpack(tensor).float() * tensor.scale[:, None]
            assert np.array_equal(values[:, : tensor.columns], wanted.numpy())
            assert not values[:, tensor.columns :].any()
            columns = reader.get_field(f"cognate.columns.{name}")
            assert columns is not None
            assert columns.contents() == tensor.columns
        elif isinstance(tensor, Int8Weight):
            wanted = (tensor.weight.float() * tensor.scale[:, None]).half()
            assert np.array_equal(data, wanted.numpy())
        else:
            assert torch.equal(torch.from_numpy(np.array(data)).view(tensor.shape), tensor.half())


def test_description_and_tokenizer_go_along(tmp_path: Path) -> None:
    packed = read_packed(save(tmp_path / "model", ternary_model()))
    path = tmp_path / "model.gguf"
    save_gguf(packed, path)
    reader = gguf.GGUFReader(path)

    def text(key: str) -> str:
        field = reader.get_field(key)
        assert field is not None, key
        return str(field.contents())

    assert text("general.architecture") == "cognate"
    assert json.loads(text("cognate.shapes"))["d_model"] == 64
    assert json.loads(text("cognate.behaviour"))["write_budget"] == 0.7
    tokenizer = (packed.folder / "tokenizer.json").read_text()
    assert text("tokenizer.huggingface.json") == tokenizer


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    packed = read_packed(save(tmp_path / "model", ternary_model()))
    with pytest.raises(PreflightError, match="none"):
        save_gguf(packed, tmp_path / "none" / "model.gguf")
