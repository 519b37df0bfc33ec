"""What a chat needs of a model: its plan, its tokenizer, how a turn is written, where it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from agentforge.data.example import prompt_text
from agentforge.data.tokenizers import TextTokenizer
from agentforge.errors import CheckpointError
from agentforge.formats.bitnet_checkpoint import CONFIG, open_bitnet
from agentforge.formats.json_object import read_json_object
from agentforge.formats.packed import Generation, PackedModel, read_packed
from agentforge.runtime.lower import lower_packed
from agentforge.runtime.lower_bitnet import lower_bitnet
from agentforge.runtime.plan import DecodePlan

REMEDY = "copy tokenizer.json and tokenizer_config.json of the model into its directory"
CONTEXT = 2048
"""Positions a chat with a Hugging Face model has room for: its own thousands would reserve caches
of gigabytes."""
TurnIds = Callable[[str, str, bool], list[int]]
"""Prompt, system text (of the first turn), whether it is the first -> ids up to the answer."""


@dataclass(frozen=True, slots=True)
class ChatModel:
    """One model, ready to be chatted with.

    Attributes:
        plan: How it is run.
        tokenizer: Ids to text.
        turn_ids: A turn as the model expects it.
        stop_ids: Tokens that end a reply.
        generation: How it generates unless it is told otherwise.
        forbidden: Tokens it may not write when it shall not think.
    """

    plan: DecodePlan
    tokenizer: TextTokenizer
    turn_ids: TurnIds
    stop_ids: tuple[int, ...]
    generation: Generation
    forbidden: tuple[int, ...]


def open_chat_model(folder: Path) -> ChatModel:
    """One of our packed directories, or a Hugging Face BitNet directory.

    Raises:
        CheckpointError: It is neither, or damaged.
    """
    if folder.is_dir() and (folder / CONFIG).is_file():
        kind = read_json_object(folder / CONFIG, "name a model directory").get("model_type")
        if kind is not None:
            return _huggingface(folder)
    return of_packed(read_packed(folder))


def of_packed(packed: PackedModel) -> ChatModel:
    """One of our own models."""
    tokenizer = packed.tokenizer

    def turn(prompt: str, system: str, first: bool) -> list[int]:
        text = prompt_text(prompt) or "Q: \nA:"
        before = f"{system}\n" if system else "" if first else "\n"
        return tokenizer.encode(before + text)

    return ChatModel(
        plan=lower_packed(packed),
        tokenizer=tokenizer,
        turn_ids=turn,
        stop_ids=(tokenizer.eos_id,),
        generation=packed.generation,
        forbidden=tokenizer.thinking_ids,
    )


def _huggingface(folder: Path) -> ChatModel:
    checkpoint = open_bitnet(folder)
    from transformers import AutoTokenizer  # heavy, and only needed here

    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder / 'tokenizer.json'} is missing", remedy=REMEDY)
    try:
        # Never code from the directory: trust_remote_code stays off.
        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        eos = theirs.eos_token
        ours = TextTokenizer(
            Tokenizer.from_file(str(folder / "tokenizer.json")), "huggingface", eos, eos
        )
    except Exception as error:  # the libraries raise whatever they meet
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be read: {error}", remedy=REMEDY
        ) from error
    known, rows = len(theirs), checkpoint.shapes.vocab_size
    if known > rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has {known} tokens, the model {rows}", remedy=REMEDY
        )

    def turn(prompt: str, system: str, first: bool) -> list[int]:
        if theirs.chat_template is None:
            ids = theirs(f"{system}{prompt}", add_special_tokens=first)["input_ids"]
            return list(ids) or [ours.eos_id]
        messages = [{"role": "user", "content": prompt}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        text = str(theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        if not first:
            # The reply before ended with the end token, which the chat does not keep.
            text = eos + text.removeprefix(theirs.bos_token or "")
        return list(theirs(text, add_special_tokens=False)["input_ids"])

    plan = lower_bitnet(checkpoint, context=CONTEXT)
    return ChatModel(
        plan=plan,
        tokenizer=ours,
        turn_ids=turn,
        stop_ids=_ends(folder, ours.eos_id),
        generation=Generation(temperature=0.7, max_new_tokens=256, thinking=False),
        forbidden=(),
    )


def _ends(folder: Path, eos: int) -> tuple[int, ...]:
    """End tokens: the tokenizer's, and those of ``generation_config.json`` or ``config.json``."""
    ends = {eos}
    for name in ("generation_config.json", CONFIG):
        if (folder / name).is_file():
            told = read_json_object(folder / name, REMEDY).get("eos_token_id")
            ends.update(
                int(t) for t in (told if isinstance(told, list) else [told]) if t is not None
            )
    return tuple(sorted(ends))
