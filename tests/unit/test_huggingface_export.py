"""Our model in transformers: the same tokens, padding, labels, generate, loading by AutoModel."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentforge.formats.huggingface import CognateForCausalLM, save_huggingface, to_huggingface
from agentforge.formats.packed import PackedModel, packed_module, read_packed
from tests.unit.test_packed_directory import BEHAVIOUR, save, ternary_model


@pytest.fixture(params=["", "answer"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> PackedModel:
    return read_packed(save(tmp_path / "model", ternary_model(request.param)))


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 90, shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_it_says_what_the_packed_model_says(packed: PackedModel) -> None:
    model, ours = to_huggingface(packed), packed_module(packed)
    tokens = ids(4, 30)
    wanted = ours.embedding.logits(ours(tokens, BEHAVIOUR).answer)
    found = model(tokens).logits
    assert float((wanted.argmax(-1) == found.argmax(-1)).float().mean()) > 0.98
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, found[:, -2:])


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(packed: PackedModel) -> None:
    model = to_huggingface(packed)
    tokens = ids(2, 12)
    alone = model(tokens).logits
    padding = torch.full((2, 5), packed.tokenizer.pad_id)
    ones, zeros = torch.ones(2, 12), torch.zeros(2, 5)
    left = model(torch.cat([padding, tokens], 1), torch.cat([zeros, ones], 1)).logits[:, 5:]
    right = model(torch.cat([tokens, padding], 1), torch.cat([ones, zeros], 1)).logits[:, :12]
    assert torch.equal(left.argmax(-1), alone.argmax(-1))
    assert torch.equal(right.argmax(-1), alone.argmax(-1))


def test_labels_give_the_shifted_loss_and_gradients(packed: PackedModel) -> None:
    model = to_huggingface(packed)
    tokens = ids(2, 12)
    labels = tokens.clone()
    labels[:, :4] = -100
    found = model(tokens, labels=labels)
    wanted = F.cross_entropy(found.logits[:, 3:-1].flatten(0, 1), tokens[:, 4:].flatten())
    torch.testing.assert_close(found.loss, wanted)
    found.loss.backward()
    assert model.model.embedding.table.grad is not None


@torch.no_grad()
def test_greedy_generation_is_the_argmax_again_and_again(packed: PackedModel) -> None:
    model = to_huggingface(packed)
    tokens = ids(1, 6)
    written = model.generate(tokens, do_sample=False, max_new_tokens=8)
    for length in range(6, written.shape[1]):
        assert int(model(written[:, :length]).logits[0, -1].argmax()) == int(written[0, length])


def test_a_saved_folder_is_loaded_by_name(packed: PackedModel, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    save_huggingface(packed, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, CognateForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "q: remember 2 0."
    assert tokenizer(text, add_special_tokens=False).input_ids == packed.tokenizer.encode(text)
    tokens = ids(2, 10)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, to_huggingface(packed)(tokens).logits)
    assert model.generation_config.temperature == 0.8


def test_other_programs_load_it_as_remote_code(packed: PackedModel, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    save_huggingface(packed, folder)
    script = (
        "from transformers import AutoModelForCausalLM as A; import torch;"
        f"m = A.from_pretrained({str(folder)!r}, trust_remote_code=True);"
        "print(m(torch.tensor([[1, 2, 3]])).logits.shape[-1])"
    )
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) == packed.vocab_size
