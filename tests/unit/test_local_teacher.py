"""The local teacher: forms that small models fill in, with a real (tiny, random) model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agentforge.config.generator import GeneratorConfig
from agentforge.errors import ConfigError, DataError
from agentforge.reasoning.api.generate import Generation
from agentforge.reasoning.api.replies import read_reply
from agentforge.reasoning.local_model import LocalTeacher, form_text, local_config, read_form
from agentforge.reasoning.strategies import BY_NAME, STRATEGIES

STEP = BY_NAME["chain_of_thought"]
FILLED = " How many legs have two dogs?\nReasoning: A dog has four. Two fours.\nAnswer: 8\n\nQ"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random two-layer GPT-2 with a byte tokenizer, saved like any model."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<end>"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path / "tiny"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=2048, n_embd=16, n_layer=2, n_head=2
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_filled_form_becomes_a_valid_example() -> None:
    for strategy in STRATEGIES:
        row = read_form(FILLED, strategy)
        read = read_reply(json.dumps([row]), strategy, "local/x", "c", 1, "", set())
        assert len(read.examples) == 1, read.faults
        assert read.examples[0].answer == "8"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        " Why?\nReasoning:",
        " Why?\nReasoning: so\nAnswer:",
        "\nAnswer: 3",
        " Why?\nReasoning: because\nQuestion: And?\nReasoning: so\nAnswer: 3",
    ],
)
def test_a_form_that_is_not_filled_in_is_a_counted_fault(text: str) -> None:
    row = read_form(text, STEP)
    read = read_reply(json.dumps([row]), STEP, "local/x", "c", 1, "", set())
    assert not read.examples
    assert sum(read.faults.values()) == 1


def test_tokens_that_the_model_writes_itself_are_taken_out() -> None:
    row = read_form(" Why?\nReasoning: [thinking] <mece> so it is\nAnswer: yes", STEP)
    assert row["reasoning"] == "[thinking]<step>   so it is [/endthinking]"


def test_the_form_names_topic_and_strategy() -> None:
    text = form_text(STEP, "money and change")
    assert "money and change" in text
    assert STEP.instruction in text
    assert text.endswith("Question:")


def test_a_real_model_goes_through_the_whole_generation(tiny: Path, tmp_path: Path) -> None:
    config = local_config(GeneratorConfig(per_strategy=1, per_call=1, spare_calls=1.0), tiny)
    told: list[str] = []

    async def work() -> Generation:
        teacher = LocalTeacher(tiny, config)
        generation = Generation(
            config, tmp_path / "set", teacher, lambda _, text: told.append(text)
        )
        await generation.run()
        return generation

    generation = asyncio.run(work())
    # A random model fills in no form: every try is counted, none is kept.
    assert generation.progress.tried == 10
    assert generation.progress.valid + sum(generation.progress.faults.values()) == 10
    assert {a.teacher for a in generation.journal.attempts} == {"local/tiny"}
    assert all(a.output_tokens > 0 and a.usd == 0 for a in generation.journal.attempts)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    config = GeneratorConfig()
    with pytest.raises(ConfigError, match="neither a folder nor a .gguf file"):
        LocalTeacher(tmp_path / "nowhere", config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="transformers cannot load"):
        LocalTeacher(tmp_path / "empty", config)
