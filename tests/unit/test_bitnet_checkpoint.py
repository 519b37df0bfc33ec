"""Directories that transformers itself saved: the plan says what transformers says."""

from __future__ import annotations

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from agentforge_kernels.huggingface import pack_rows
from agentforge_kernels.native import extension
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitNetConfig, BitNetForCausalLM
from transformers.integrations.bitnet import AutoBitLinear, BitLinear

from agentforge.errors import CheckpointError
from agentforge.formats.bitnet_checkpoint import open_bitnet
from agentforge.runtime.lower_bitnet import lower_bitnet
from agentforge.runtime.native import NativeExecutor
from agentforge.runtime.reference import ReferenceExecutor

SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "tied": {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "one key head": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "odd rows": {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 102},
    "silu": {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_act": "silu"},
}
PACKED = ("grouped", "tied", "one key head", "silu")
"""transformers' packed layers take rows that four divides only."""


def make(kind: str, packed: bool, folder: Path) -> nn.Module:
    """Random weights, quantised by transformers' own layers; saved the way it saves them."""
    torch.manual_seed(0)
    config = BitNetConfig(
        hidden_size=64,
        intermediate_size=SHAPES[kind].get("intermediate_size", 96),
        num_hidden_layers=3,
        vocab_size=300,
        max_position_embeddings=64,
        **{k: v for k, v in SHAPES[kind].items() if k != "intermediate_size"},
    )
    model = BitNetForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
        elif "embed" in name or "head" in name:
            parameter.data.normal_(std=0.5)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or "head" in name:
            continue
        parent, _, leaf = name.rpartition(".")
        layer: nn.Module
        if packed:
            weight = module.weight.data
            divisor = 1.0 / weight.abs().mean()
            trits = (weight * divisor).round().clamp(-1, 1).to(torch.int8)
            layer = BitLinear(module.in_features, module.out_features, False, dtype=torch.float32)
            layer.weight, layer.weight_scale = pack_rows(trits), divisor.reshape(1)
            tensors[f"{name}.weight"] = layer.weight
            tensors[f"{name}.weight_scale"] = layer.weight_scale
        else:
            layer = AutoBitLinear(
                module.in_features, module.out_features, bias=False, online_quant=True
            )
            layer.weight.data.copy_(module.weight.data)
            tensors[f"{name}.weight"] = module.weight.data
        setattr(model.get_submodule(parent), leaf, layer)
    model.save_pretrained(folder)
    saved = {k: v for k, v in load_file(folder / "model.safetensors").items() if k not in tensors}
    tied = bool(config.tie_word_embeddings)
    saved = {k: v for k, v in saved.items() if not (tied and k == "lm_head.weight")}
    save_file({**saved, **tensors}, folder / "model.safetensors", {"format": "pt"})
    described = json.loads((folder / "config.json").read_text())
    described["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "bitlinear" if packed else "autobitlinear",
        "quantization_mode": "offline" if packed else "online",
    }
    (folder / "config.json").write_text(json.dumps(described))
    return model.eval()


CASES = [(k, p) for k in SHAPES for p in (False, True) if not p or k in PACKED]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "packed"), CASES)
def test_teacher_forced_logits_are_transformers(kind: str, packed: bool, tmp_path: Path) -> None:
    model = make(kind, packed, tmp_path)
    plan = lower_bitnet(open_bitnet(tmp_path), head="float")
    tokens = torch.randint(0, 300, (8, 48), generator=torch.Generator().manual_seed(1))
    wanted = model(tokens).logits
    executors = [ReferenceExecutor(plan, sequences=8)]
    if extension is not None:
        executors.append(NativeExecutor(plan, sequences=8, tokens=48))  # type: ignore[arg-type]
    for executor in executors:
        same, close = 0, []
        for row in range(8):
            for start in (0, 24):
                part = tokens[row, start : start + 24].tolist()
                places = list(range(start, start + 24))
                found = executor.run(part, [row] * 24, places, list(range(24)))
                truth = wanted[row, start : start + 24]
                same += int((found.argmax(-1) == truth.argmax(-1)).sum())
                close.append(float((found - truth).abs().median()))
        assert same >= 0.995 * 384
        assert max(close) < 0.01


@torch.no_grad()
def test_an_int8_head_finds_the_same_tokens(tmp_path: Path) -> None:
    model = make("grouped", False, tmp_path)
    executor = ReferenceExecutor(lower_bitnet(open_bitnet(tmp_path), head="int8"))
    tokens = torch.randint(0, 300, (1, 60), generator=torch.Generator().manual_seed(1))
    found = executor.run(tokens[0].tolist(), [0] * 60, list(range(60)), list(range(60)))
    assert float((found.argmax(-1) == model(tokens).logits[0].argmax(-1)).float().mean()) > 0.9


@torch.no_grad()
def test_sharded_directories_are_read(tmp_path: Path) -> None:
    model = make("grouped", False, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, some in shards.items():
        save_file({n: tensors[n] for n in some}, tmp_path / file)
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {n: file for file, some in shards.items() for n in some}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    executor = ReferenceExecutor(lower_bitnet(open_bitnet(tmp_path), head="float"))
    wanted = model(torch.tensor([[1, 2, 3]])).logits[0, -1:]
    found = executor.run([1, 2, 3], [0] * 3, [0, 1, 2], [2])
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def poison(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: edit(f, model_type="llama"), "model_type 'llama'"),
        (lambda f: edit(f, attention_bias=True), "attention_bias"),
        (lambda f: edit(f, hidden_act="gelu"), "hidden_act 'gelu'"),
        (lambda f: edit(f, num_key_value_heads=3), "heads"),
        (lambda f: edit(f, rope_scaling={"type": "linear"}), "rope_scaling"),
        (lambda f: edit(f, intermediate_size=128), "mlp"),
        (lambda f: edit(f, hidden_size=None), "config.json"),
        (drop, "down_proj.weight is missing"),
        (cut, "cannot be read"),
        (poison, "NaN"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    ],
)
def test_what_cannot_be_run_is_said(
    damage: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    make("grouped", True, tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=says) as caught:
        lower_bitnet(open_bitnet(tmp_path), head="float")
    assert str(tmp_path) in str(caught.value)
