"""Chat with a packed model: turns, thoughts beside answers, streaming, and a transcript."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentforge_kernels.native import extension

from agentforge.runtime.chat_model import ChatModel, open_chat_model
from agentforge.runtime.generate import Executor, TokenSequence, generate
from agentforge.runtime.native import NativeExecutor
from agentforge.runtime.reference import ReferenceExecutor
from agentforge.runtime.sampling_options import SamplingOptions
from agentforge.thinking.thought import ThoughtReader


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How the model answers.

    Attributes:
        thoughts: Whether it may think; a thought that is not shown still helps the answer.
        temperature: None: the model's own default.
        seed: Of the first turn; each turn has the next one.
        top_k, top_p, repetition_penalty: As `SamplingOptions`.
        max_new_tokens: Tokens of thought and answer at most; None: the model's own default.
    """

    thoughts: bool = True
    temperature: float | None = None
    seed: int = 0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Text as it comes: part of a thought or of an answer."""

    kind: Literal["thought", "answer"]
    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One finished turn.

    Attributes:
        prompt: What was asked.
        answer: Text of the answer.
        thought: Text of the thought; empty without one.
        strategy: Its strategy; None without one.
        tokens: Tokens written.
        first_token_s: From the question to the first token.
        tokens_per_s: Of writing, the prompt not counted.
        stopped: ``end``, ``length`` (no more tokens or no room), or ``cancelled``.
        forgot: Earlier turns that no longer fitted and were left out.
    """

    prompt: str
    answer: str
    thought: str
    strategy: str | None
    tokens: int
    first_token_s: float
    tokens_per_s: float
    stopped: Literal["end", "length", "cancelled"]
    forgot: int = 0


class Chat:
    """A conversation with a model.

    What has been said stays in the caches and in the Titans memory, which carries what leaves the
    attention window. When the context is full the oldest turns are left out and the rest is read
    again.

    Args:
        model: The model.
        options: How it answers.
        system: Text before the first turn; empty: none.
    """

    def __init__(self, model: ChatModel, options: ChatOptions, system: str = "") -> None:
        self.model = model
        self.options = options
        self.system = system
        self.turns: list[Turn] = []
        plan = model.plan
        self.executor: Executor = (
            ReferenceExecutor(plan) if extension is None else NativeExecutor(plan)
        )
        self._sequence = TokenSequence(self.executor, plan.context)
        self._reader = ThoughtReader(model.tokenizer)
        self._pending: list[int] = []
        self._said: list[list[int]] = []
        self.last: Turn | None = None

    def say(self, prompt: str, cancelled: Callable[[], bool] | None = None) -> Iterator[Piece]:
        """Answer a turn, piece by piece; afterwards `last` is the whole turn.

        An empty prompt is answered like any other; one that is longer than the context loses its
        beginning.

        Args:
            prompt: What is asked.
            cancelled: Asked before every token.
        """
        began = time.perf_counter()
        model = self.model
        limit = self.options.max_new_tokens or model.generation.max_new_tokens
        ids = self._prompt_ids(prompt)
        forgot = self._make_room(ids, limit)
        forbidden = () if self.options.thoughts else model.forbidden
        default = model.generation.temperature
        temperature = self.options.temperature
        options = SamplingOptions(
            temperature=default if temperature is None else temperature,
            top_k=self.options.top_k,
            top_p=self.options.top_p,
            repetition_penalty=self.options.repetition_penalty,
            seed=self.options.seed + len(self.turns),
            max_new_tokens=limit,
            forbidden=forbidden,
        )
        given = self._pending + ids
        # Too long for the whole context: its end is read, and there is room for an answer.
        room = self._sequence.room - min(limit, self._sequence.context // 4)
        given = given[-max(1, room) :]
        start = len(self._sequence.ids) + len(given)
        written: list[int] = []
        shown: tuple[str, str] = ("", "")
        first = 0.0
        stopped: list[str] = []
        try:
            for token in generate(
                self._sequence,
                given,
                options,
                stop_ids=model.stop_ids,
                cancelled=_noting(cancelled, stopped),
            ):
                written.append(token)
                first = first or time.perf_counter() - began
                kind, text = self._part(written)
                before = shown[1] if kind == shown[0] else ""
                # Half a character of a byte-level vocabulary is shown once it is whole.
                if len(text) > len(before) and not text.endswith("\ufffd"):
                    shown = (kind, text)
                    yield Piece(kind, text[len(before) :])
        except GeneratorExit:
            stopped.append("cancelled")
            raise
        finally:
            # What was written but not read yet is read before the next prompt.
            self._pending = written[max(0, len(self._sequence.ids) - start) :]
            self._said.append([*ids, *written])
            spent = time.perf_counter() - began - first
            self._note(prompt, written, first, spent, bool(stopped), limit, forgot)

    def _note(
        self,
        prompt: str,
        written: list[int],
        first: float,
        spent: float,
        cancelled: bool,
        limit: int,
        forgot: int,
    ) -> None:
        """The turn, read as thought and answer."""
        ended = not cancelled and len(written) < limit and self._sequence.room > 0
        answered = self._reader.read(written, ended)
        decode = self.model.tokenizer.decode
        self.last = Turn(
            prompt=prompt,
            answer=decode(answered.answer).strip(),
            thought=decode(answered.thought).strip() if answered.opened else "",
            strategy=answered.strategy,
            tokens=len(written),
            first_token_s=first,
            tokens_per_s=(len(written) - 1) / spent if len(written) > 1 and spent > 0 else 0.0,
            stopped="cancelled" if cancelled else "end" if ended else "length",
            forgot=forgot,
        )
        self.turns.append(self.last)

    def _prompt_ids(self, prompt: str) -> list[int]:
        """The turn in the chat template; a later one begins on a line of its own."""
        clean = prompt.encode("utf-8", "replace").decode("utf-8")
        first = not self._said
        return self.model.turn_ids(clean, self.system if first else "", first)

    def _make_room(self, ids: list[int], limit: int) -> int:
        """Leave out the oldest turns when the next one would not fit; how many."""
        needed = len(self._pending) + len(ids) + limit
        if needed <= self._sequence.room:
            return 0
        kept: list[list[int]] = []
        size = len(ids) + limit
        for said in reversed(self._said):
            if size + len(said) > self._sequence.context // 2:
                break
            kept.insert(0, said)
            size += len(said)
        forgot = len(self._said) - len(kept)
        self._said = kept
        self._sequence.restart()
        self._pending = [token for said in kept for token in said]
        return forgot

    def _part(self, written: list[int]) -> tuple[Literal["thought", "answer"], str]:
        """What is being written now, and its text so far."""
        answered = self._reader.read(written, ended=False)
        decode = self.model.tokenizer.decode
        if answered.opened and not answered.answer:
            return "thought", decode(answered.thought)
        return "answer", decode(answered.answer).lstrip()


def open_chat(folder: Path, options: ChatOptions, system: str = "") -> Chat:
    """Begin a chat with a packed model directory, or a Hugging Face BitNet directory.

    Raises:
        CheckpointError: The directory is missing or damaged.
    """
    return Chat(open_chat_model(folder), options, system)


def _noting(cancelled: Callable[[], bool] | None, noted: list[str]) -> Callable[[], bool] | None:
    """`cancelled`, with a note when it said so."""
    if cancelled is None:
        return None

    def ask() -> bool:
        if cancelled():
            noted.append("cancelled")
            return True
        return False

    return ask
