"""The packed model directory: the model it was, byte for byte the same, and every fault refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from agentforge_kernels import Int8Weight, PackedTernary
from agentforge_kernels.files import load_tensors, save_tensors

from agentforge.config.schema import MemoryConfig, ModelConfig
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.errors import CheckpointError
from agentforge.formats.packed import (
    FILES,
    Generation,
    packed_module,
    read_packed,
    save_packed,
    write_card,
)
from agentforge.formats.twin import save_twin, twin_module
from agentforge.model.behaviour import Behaviour
from agentforge.model.bit_linear import bit_linears, make_bit_linear
from agentforge.model.language_model import CognateLM
from agentforge.model.linear import Projection
from agentforge.run.tensor_file import load_model, save_model

SHAPES = ModelConfig(
    d_model=64,
    n_heads=2,
    n_prelude=2,
    ffn_width=96,
    embedding_rank=16,
    context=40,
    window=8,
    memory=MemoryConfig(layers=(1,), width=32, chunk=4, gate_rank=4),
)
BEHAVIOUR = Behaviour(0.4, 0.7)


def ternary_model(kept: str = "") -> CognateLM:
    """With every projection ternary but one that stays in full precision."""
    torch.manual_seed(0)
    model = CognateLM(SHAPES, world_tokenizer().vocab_size)
    for name, module in list(model.named_modules()):
        if isinstance(module, Projection):
            make_bit_linear(model, name, 0.5, 1e-6)
    for name, layer in bit_linears(model).items():
        layer.strength = 0.0 if name == kept else 1.0
        layer.prune(0.25)
        if layer.norm is not None:
            layer.norm.weight.data.uniform_(0.5, 1.5)
    # What is stored in FP16 has to be a number of FP16 for the comparison to be exact.
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model.eval()


def save(folder: Path, model: CognateLM, int8: bool = False) -> Path:
    save_packed(
        folder,
        model,
        BEHAVIOUR,
        world_tokenizer(),
        Generation(0.8, 12, thinking=True),
        int8_embedding=int8,
        zero_activations={"core.0.ffn.down": 0.6},
        card="card",
    )
    return folder


@torch.no_grad()
@pytest.mark.parametrize("kept", ["", "answer", "core.0.attention.out"])
def test_a_model_that_was_read_back_is_the_model_that_was_trained(
    kept: str, tmp_path: Path
) -> None:
    model = ternary_model(kept)
    packed = read_packed(save(tmp_path / "model", model))
    assert packed.behaviour == BEHAVIOUR
    assert packed.generation == Generation(0.8, 12, thinking=True)
    assert packed.zero_activations == {"core.0.ffn.down": 0.6}
    assert len(packed.ternary) == 26 - bool(kept)
    # Scales lose bits beyond FP16's eleven: give the model the same ones.
    loaded = packed_module(packed)
    ids = torch.randint(0, packed.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))
    wanted, found = model(ids, BEHAVIOUR), loaded(ids, BEHAVIOUR)
    same = model.embedding.logits(wanted.answer).argmax(-1) == loaded.embedding.logits(
        found.answer
    ).argmax(-1)
    assert float(same.float().mean()) > 0.95
    for name, matrix in packed.ternary.items():
        trits, scale = bit_linears(model)[name].codes()
        torch.testing.assert_close(matrix.scale, scale, rtol=2**-11, atol=0)
        assert matrix.rows == trits.shape[0]


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    first, second = (save(tmp_path / n, ternary_model()) for n in ("a", "b"))
    assert (first / FILES).read_text() == (second / FILES).read_text()


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", ternary_model())
    (folder / "stray.txt").write_text("old")
    save(folder, ternary_model())
    assert not (folder / "stray.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    write_card(folder, "another card")
    assert (folder / "README.md").read_text() == "another card"
    read_packed(folder)


@torch.no_grad()
def test_an_int8_embedding_is_a_quarter_and_close(tmp_path: Path) -> None:
    model = ternary_model()
    plain = read_packed(save(tmp_path / "a", model))
    small = read_packed(save(tmp_path / "b", model, int8=True))
    table = small.tensors["embedding.table"]
    assert isinstance(table, Int8Weight)
    before = plain.tensors["embedding.table"]
    assert isinstance(before, torch.Tensor)
    found = packed_module(small).embedding.table
    limit = before.float().abs().amax(1, keepdim=True) / 127 / 2 + 1e-6
    assert bool(((found - before.float()).abs() <= limit).all())


@torch.no_grad()
def test_packed_model_and_twin_say_the_same(tmp_path: Path) -> None:
    model = ternary_model("answer")
    loaded = packed_module(read_packed(save(tmp_path / "model", model)))
    path = tmp_path / "twin.safetensors"
    save_twin(path, model, BEHAVIOUR, "fingerprint")
    twin = twin_module(load_model(path), path, quantise_inputs=True).eval()
    ids = torch.randint(0, model.vocab_size, (8, 30), generator=torch.Generator().manual_seed(0))
    ours = loaded.embedding.logits(loaded(ids, BEHAVIOUR).answer)
    theirs = twin.embedding.logits(twin(ids, BEHAVIOUR).answer)
    assert float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()) > 0.99
    save_model(path, {"answer.weight": torch.ones(2, 2)}, {})
    read = load_model(path)
    with pytest.raises(CheckpointError, match="no twin"):
        twin_module(read, path, quantise_inputs=True)


def relist(folder: Path, name: str) -> None:
    """Make the list of files agree with a file that was tampered with."""
    listed = json.loads((folder / FILES).read_text())
    data = (folder / name).read_bytes()
    listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / FILES).write_text(json.dumps(listed))


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def altered(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def altered_and_listed(folder: Path) -> None:
    altered(folder)
    relist(folder, "model.safetensors")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    listed = json.loads((folder / FILES).read_text())
    del listed["tokenizer.json"]
    (folder / FILES).write_text(json.dumps(listed))


def without_list(folder: Path) -> None:
    (folder / FILES).unlink()


def newer(folder: Path) -> None:
    edit(folder, "version", 99)


def foreign(folder: Path) -> None:
    edit(folder, "format", "other")


def impossible_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(folder, "model", config["model"] | {"n_heads": 7})


def other_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(folder, "model", config["model"] | {"ffn_width": 128})


def other_vocabulary(folder: Path) -> None:
    edit(folder, "vocab_size", 77)


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    relist(folder, "config.json")


def edit(folder: Path, key: str, value: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[key] = value
    path.write_text(json.dumps(config))
    relist(folder, "config.json")


def with_tensor(folder: Path, name: str, value: float) -> None:
    tensors = load_tensors(folder / "model.safetensors")
    tensor = tensors[name]
    assert isinstance(tensor, torch.Tensor)
    tensor = tensor.clone()
    tensor.view(-1)[0] = value
    save_tensors(folder / "model.safetensors", {**tensors, name: tensor})
    relist(folder, "model.safetensors")


def nan_norm(folder: Path) -> None:
    with_tensor(folder, "latent_norm.weight", float("nan"))


def missing_matrix(folder: Path) -> None:
    tensors = load_tensors(folder / "model.safetensors")
    del tensors["answer.weight"]
    save_tensors(folder / "model.safetensors", tensors)
    relist(folder, "model.safetensors")


def wrong_matrix(folder: Path) -> None:
    tensors = load_tensors(folder / "model.safetensors")
    other = tensors["core.0.ffn.up.weight"]
    assert isinstance(other, PackedTernary)
    save_tensors(folder / "model.safetensors", {**tensors, "answer.weight": other})
    relist(folder, "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, "bytes"),
        (altered, "altered"),
        (altered_and_listed, "model.safetensors"),
        (without_weights, "is missing"),
        (without_tokenizer, "tokenizer"),
        (without_list, "files.json is missing"),
        (newer, "version 99"),
        (foreign, "format 'other'"),
        (impossible_shapes, "n_heads"),
        (other_shapes, "ffn"),
        (other_vocabulary, "77"),
        (no_json, "no JSON"),
        (nan_norm, r"latent_norm.weight holds NaN"),
        (missing_matrix, "answer"),
        (wrong_matrix, "answer is 96 x 64"),
    ],
)
def test_broken_directories_are_refused_in_words(
    damage: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", ternary_model())
    damage(folder)
    with pytest.raises(CheckpointError, match=says) as caught:
        packed_module(read_packed(folder))
    assert str(folder) in str(caught.value)
    assert caught.value.remedy


def test_no_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a directory"):
        read_packed(tmp_path / "none")
