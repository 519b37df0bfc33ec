"""Chat with a directory transformers saved: with and without a template, and broken ones."""

from __future__ import annotations

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.errors import CheckpointError
from agentforge.runtime.chat import Chat, ChatOptions, open_chat
from agentforge.runtime.chat_model import open_chat_model
from tests.unit.test_bitnet_checkpoint import make

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Random weights with a vocabulary of 300, and the world's tokenizer of fewer tokens."""
    make("grouped", True, tmp_path / "hf")
    world_tokenizer().save(tmp_path / "hf")
    return tmp_path / "hf"


def with_template(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))


def chat(folder: Path) -> Chat:
    return open_chat(folder, ChatOptions(temperature=0.0, max_new_tokens=5))


def test_a_turn_is_what_the_chat_template_says(folder: Path) -> None:
    with_template(folder)
    session = open_chat(folder, ChatOptions(temperature=0.0, max_new_tokens=5), system="count")
    list(session.say("add 1 2."))
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [
        {"role": "system", "content": "count"},
        {"role": "user", "content": "add 1 2."},
    ]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    wanted = theirs(text, add_special_tokens=False)["input_ids"]
    assert session._sequence.ids[: len(wanted)] == wanted
    assert session.last is not None
    assert session.last.thought == ""
    read = len(session._sequence.ids) + len(session._pending)
    list(session.say("and 3?"))
    later = session._sequence.ids[read:]
    assert later[0] == theirs.eos_token_id
    assert theirs.decode(later[1:]).startswith("user: and 3")


def test_without_a_template_the_text_is_the_prompt(folder: Path) -> None:
    session = chat(folder)
    list(session.say("add 1 2."))
    assert session._sequence.ids[:4] == session.model.tokenizer.encode("add 1 2.")[:4]
    list(session.say(""))
    assert len(session.turns) == 2


def test_end_tokens_come_from_the_generation_config_too(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert {7, 9, world_tokenizer().eos_id} <= set(open_chat_model(folder).stop_ids)


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_missing_file_is_said(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match="missing|cannot be read"):
        chat(folder)


def test_a_tokenizer_of_another_model_is_said(folder: Path) -> None:
    larger = AutoTokenizer.from_pretrained(folder)
    larger.add_tokens([f"word{i}" for i in range(20)])
    larger.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=f"{len(larger)} tokens, the model 300"):
        chat(folder)
